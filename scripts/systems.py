"""The systems that the papers compare: each a composition of the pack's parts, with the settings of its own code."""

from dataclasses import dataclass, field, replace
from typing import Any, get_args

from ..modules.clip_model.temporal import Norm
from .graph import Group, Node, Workflow
from .parts import (
    EDITED,
    EMPTY,
    INFLATE,
    PATCH,
    PLAIN,
    READ_TEXTS,
    SOURCE,
    Link,
    Task,
    invert,
    ours,
    sample,
    with_texts,
)

Inputs = dict[str, Any]  # of a node, where they differ from its defaults


@dataclass(frozen=True)
class System:
    """A published way to edit a clip.

    Attributes:
        by: who published it, and where.
        patch: inputs of STAM/FFAM Patch.
        tuning: inputs of One-Shot Tune, None = the model is not tuned.
        hints: whether a ControlNet steers tuning, inversion and edit.
        slices: inputs of Slice Denoiser, None = no slices.
        inversion: inputs of the inversion.
        inverted_with: title of the prompt that the clip is inverted with.
        null_text: inputs of Null-Text Optimization, None = the negative stays as it is.
        control: inputs of Attention Control, None = no control.
        cfg: guidance of the edit, away from the empty prompt.
        differs: what its own code does that the parts here do not.
    """

    by: str
    patch: Inputs = field(default_factory=dict)
    tuning: Inputs | None = None
    hints: bool = False
    slices: Inputs | None = None
    inversion: Inputs = field(default_factory=lambda: PLAIN)
    inverted_with: str = SOURCE
    null_text: Inputs | None = None
    control: Inputs | None = None
    cfg: float = 7.5
    differs: str = ""


def inr_on(system: System, **changes: Any) -> System:
    """Return a system with INR Smooth put on it."""
    return replace(system, by="Yu et al., PLoS One 2025", **changes)


UNTUNED: Inputs = {"temporal": "none"}
TUNE_A_VIDEO = System(
    "Wu et al., ICCV 2023",
    {"preset": "Tune-A-Video"},
    tuning={},
    inverted_with=EMPTY,
    cfg=12.5,
    differs="Its checkpointing leaves the encoder blocks untrained.",
)
CONTROL_VIDEO = System(
    "Zhao et al., arXiv 2305.17098",
    {"preset": "ControlVideo"},
    tuning={"steps": 80},
    hints=True,
    cfg=12.0,
    differs="It trains the ControlNet's self-attention as well, which sees the key frame there.",
)
FATE_ZERO = System(
    "Qi et al., ICCV 2023",
    {"spatial": "middle-frame", **UNTUNED},
    control={"cross_end": 0.8, "self_end": 0.8, "recipe": "FateZero"},
    differs="Its settings are another for each clip; these are of a style, without the tenfold weight of its words.",
)
VIDEO_P2P = System(
    "Liu et al., CVPR 2024",
    {"preset": "Tune-A-Video", "spatial": "first-frame"},
    tuning={},
    control={"cross_end": 0.2, "self_end": 0.5, "local_blend": True, "recipe": "Video-P2P"},
)
SYSTEMS: dict[str, System] = {
    "Tune-A-Video": TUNE_A_VIDEO,
    "EI²": System("Zhang et al., NeurIPS 2023", tuning={}, inverted_with=EMPTY),
    "SmoothVideo": replace(
        TUNE_A_VIDEO, by="Peng et al., arXiv 2311.17536", tuning={"smoothing": "SmoothVideo"}, cfg=7.5
    ),
    "ControlVideo": CONTROL_VIDEO,
    "Video-P2P": VIDEO_P2P,
    "Vid2Vid-zero": System(
        "Wang et al., arXiv 2303.17599",
        {"spatial": "full", **UNTUNED},
        inverted_with=EMPTY,
        null_text={"inner_steps": 1},
        control={"cross_end": 0.4, "self_end": 0.4},
        differs="It inverts with attention within frames, and its optimised negatives serve half of the steps.",
    ),
    "FateZero": FATE_ZERO,
    "Slicedit": System(
        "Cohen et al., ICML 2024",
        {"spatial": "sparse-causal", **UNTUNED},
        slices={"blend": "square roots"},
        inversion={**PLAIN, "method": "edit-friendly DDPM, shared noise", "cfg": 3.5, "denoise": 0.84},
        control={"cross": "none", "self_end": 0.85},
        cfg=10.0,
        differs="Its frames attend to three key frames, and it replaces attention in decoder blocks alone.",
    ),
    "STEM-Inversion": replace(
        FATE_ZERO,
        by="Li et al., CVPR 2024",
        inversion={**PLAIN, "method": "STEM"},
        control={"cross_end": 0.8, "self_end": 0.8},
        differs="Its code edits by TokenFlow; prompt-to-prompt with FateZero's ends stands in for it.",
    ),
    "INR on Tune-A-Video": inr_on(TUNE_A_VIDEO, tuning={"smoothing": "INR"}),
    "INR on ControlVideo": inr_on(CONTROL_VIDEO, tuning={"steps": 80, "smoothing": "INR", "smoothing_weight": 0.2}),
    "INR on FateZero": inr_on(FATE_ZERO, inversion={"gamma": 1.0, "direction": "both"}),
    "INR on Video-P2P": inr_on(VIDEO_P2P, inversion={"gamma": 0.5, "direction": "both"}),
}


AT_EI2S_CFG = replace(TUNE_A_VIDEO, cfg=SYSTEMS["EI²"].cfg)
NORMS = {  # EI², Figure 4
    "Tune-A-Video at CFG 7.5": AT_EI2S_CFG,
    **{
        f"Tune-A-Video with {norm}, spectral norm {spectral}": replace(
            AT_EI2S_CFG, patch={**TUNE_A_VIDEO.patch, "norm": norm, "spectral_norm": spectral}
        )
        for norm in get_args(Norm)
        for spectral in ("off", "on")
    },
}
RATIOS = {f"EI², r = {r}": replace(SYSTEMS["EI²"], patch={"r": r}) for r in (1, 2, 4, 8)}  # EI², Figure 5
DIRECTIONS = {  # INR Smooth, Figure 11
    f"{name}, {way}": replace(SYSTEMS[name], inversion={**SYSTEMS[name].inversion, "direction": way})
    for name in ("INR on FateZero", "INR on Video-P2P")
    for way in ("forward", "backward", "both")
}
COMPARED = {**SYSTEMS, **NORMS, **RATIOS, **DIRECTIONS}


def describe_system(task: Task, system: System, ddim_steps: int = 50) -> Workflow:
    """Return the graph of a system, to the latent of its edit."""
    model = "Patch"
    source: Link = SOURCE
    edited: Link = EDITED
    empty: Link = EMPTY
    parts: list[Group | Node] = [
        *task.nodes(with_empty=True),
        Group("2 Clip model", f"{system.by}: the settings of its code. {system.differs}".strip()),
        INFLATE,
        PATCH.but(**system.patch),
    ]
    if system.hints:
        parts += hint_nodes(task)
        source, edited, empty = ("Steer source", "positive"), ("Steer edit", "positive"), ("Steer edit", "negative")
    if system.tuning is not None:
        parts += [
            task.tuning_options(),
            task.tune(options="Options", positive=source, **system.tuning),
            task.save_tune(),
        ]
        model = "Tune"
    if system.slices is not None:
        parts += [ours("Slices", "SliceDenoiser", model=model, empty=EMPTY, **system.slices)]
        model = "Slices"
    inverted = source if system.inverted_with == SOURCE else system.inverted_with
    guided = {"negative": empty} if "cfg" in system.inversion else {}
    steps = round(ddim_steps * system.inversion.get("denoise", 1.0))  # of a part of the levels as many as of them all
    parts += [Group("3 Invert"), invert("Invert", model, inverted, steps=steps, **system.inversion, **guided)]
    if system.null_text is not None:
        given = {"model": model, "inversion": "Invert", "positive": source, "negative": empty, "cfg": system.cfg}
        parts += [ours("Null text", "NullTextOptimization", **given, **system.null_text)]
        empty = "Null text"
    if system.control is not None:
        given = {"model": model, "inversion": "Invert", "clip": "Model", "source_positive": source, **READ_TEXTS}
        parts += [ours("Control", "AttentionControl", **given, **system.control)]
        model = "Control"
    parts += [Group("4 Sample"), sample("Edit", model, edited, system.cfg, empty)]
    return with_texts(parts) if system.control is not None else parts


def hint_nodes(task: Task) -> list[Node]:
    """Return the nodes that steer the source prompt and the edited one by the clip's edges, a hint for each frame."""
    assert task.control_net is not None
    given = {"control_net": "ControlNet", "image": "Edges"}
    return [
        task.control_net,
        Node("Edges", "Canny", image=task.pixels, low_threshold=0.39, high_threshold=0.39),  # 100 of 255
        Node("Steer source", "ControlNetApplyAdvanced", positive=SOURCE, negative=SOURCE, **given),
        Node("Steer edit", "ControlNetApplyAdvanced", positive=EDITED, negative=EMPTY, **given),
    ]
