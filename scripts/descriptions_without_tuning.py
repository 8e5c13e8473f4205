"""The workflows that tune nothing and add something to the main graph, or take its place."""

from typing import Any

from .graph import Group, Node, Workflow
from .parts import (
    CFG,
    CFG_END,
    EDITED,
    INFLATE,
    PLAIN,
    READ_TEXTS,
    SOURCE,
    STEPS,
    UNTUNED_PATCH,
    Task,
    edited,
    invert,
    invert_source,
    ours,
    sample,
    sample_tied,
    save,
    show,
    with_texts,
)


def untuned(task: Task, note: str = "") -> Workflow:
    """Return the first two columns of an edit without tuning."""
    group = Group("2 Clip model, invert", note)
    return [*task.nodes(), group, INFLATE, UNTUNED_PATCH, *task.relation(), invert_source("Patch")]


def controlnet(task: Task) -> Workflow:
    """Return an edit that a ControlNet for edges steers as well."""
    assert task.control_net is not None
    steer = {"positive": EDITED, "negative": SOURCE, "control_net": "ControlNet", "image": "Edges"}
    sides: dict[str, Any] = {side: ("Steer", side) for side in ("positive", "negative")}
    return [
        *untuned(task, "The clip is inverted without ControlNet. A LoRA goes between Model and Inflate."),
        Group(
            "3 Steer and sample",
            "One hint for each frame of the clip, of the clip's own size. Less strength, or an earlier end_percent, "
            "gives the edited prompt more say.",
        ),
        task.control_net,
        Node("Edges", "Canny", image=task.pixels),
        Node("Steer", "ControlNetApplyAdvanced", **steer, strength=0.6, end_percent=0.7),
        sample_tied("Patch", **sides),
        *edited(4),
    ]


def attention_control(task: Task) -> Workflow:
    """Return an edit without tuning that follows the attention of the source."""
    given = {"model": "Patch", "inversion": "Invert", "clip": "Model", "source_positive": SOURCE}
    return [
        *with_texts(untuned(task)),
        Group(
            "3 Control, sample",
            "The texts are those of the two prompts. Lower cross_end and self_end where the edit changes shapes, "
            "raise them where it changes looks.",
        ),
        ours("Control", "AttentionControl", **given, **READ_TEXTS, cross_end=0.3, self_end=0.3),
        sample_tied("Control"),
        *edited(4),
    ]


def custom_sampler(task: Task) -> Workflow:
    """Return an edit through ComfyUI's own sampler node."""
    given = {
        "noise": "No noise",
        "guider": "Guide",
        "latent_image": "Invert",
        "sampler": "Sampler",
        "sigmas": "Sampler",
    }
    return [
        *untuned(task),
        Group(
            "3 Sample",
            "Any other guider may replace CFGGuider where cfg_end is 1, which guides at every step.",
        ),
        Node("Guide", "CFGGuider", model="Patch", positive=EDITED, negative=SOURCE, cfg=CFG),
        Node("No noise", "DisableNoise"),
        ours("Sampler", "SmoothSampler", inversion="Invert", relation="Relation", cfg_end=CFG_END),
        Node("Edit", "SamplerCustomAdvanced", **given),
        *edited(4),
    ]


def steady_frames(task: Task) -> Workflow:
    """Return an edit of each frame by itself, whose flicker is taken out afterwards."""
    given = {"positive": EDITED, "negative": SOURCE, "latent_image": "Encode"}
    return [
        *task.nodes(),
        Group(
            "2 Edit each frame by itself",
            "The image model sees one frame at a time, and so the edit flickers. Anything that edits pictures may do "
            "this: another model with its own VAE, an editing model, a filter.",
        ),
        Node("Edit", "KSampler", model="Model", **given, seed=0, steps=STEPS, cfg=5.0, denoise=0.6),
        Group(
            "3 Steady",
            "What the edit changes is blended along the motion of the source. passes: more steady more. Images may be "
            "connected instead of latents, both of them.",
        ),
        ours("Motion", "ClipMotion", images=task.pixels),
        ours("Steady", "SteadyFrames", source=("Encode", "LATENT"), edited=("Edit", "LATENT"), motion="Motion"),
        show("Steady report", "Steady"),
        Group(
            "4 Sharpen",
            "A short inversion and sampling by the clip model takes away the halos that the blend leaves where edits "
            "differ much. denoise: more redraws more. Not needed where the edit flickers in colour alone: save the "
            "steadied clip then.",
        ),
        INFLATE,
        UNTUNED_PATCH,
        invert("Invert steadied", "Patch", EDITED, steps=6, denoise=0.4, **PLAIN).but(latent=("Steady", "steadied")),
        sample("Sharpen", "Patch", EDITED, 1.0, inversion="Invert steadied"),
        Group("5 Edited clip"),
        *save("edit", "Sharpen"),
        Group("6 Steadied alone"),
        *save("edit steadied", ("Steady", "steadied")),
        Group("7 As it was edited"),
        *save("edit per frame", "Edit"),
    ]
