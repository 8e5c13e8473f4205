"""What each workflow of the pack consists of."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from . import blueprints
from .descriptions_of_flows import BY_DEMO_MODEL, FLOWS
from .descriptions_of_tuning import (
    ei2,
    import_tune_a_video,
    inr_smooth,
    prompt_tokens,
    reconstruction,
    resume_tune,
    saved_tune,
    tune_a_video,
    tuning_settings,
)
from .descriptions_without_tuning import attention_control, controlnet, custom_sampler, steady_frames
from .graph import Group, Node, Packed, Subgraph, Workflow, build
from .parts import (
    DEMO,
    INFLATE,
    OF_DEMO,
    OWN_CLIP,
    SPREAD,
    UNTUNED_PATCH,
    Task,
    checkpoint,
    edited,
    invert_source,
    main_graph,
    ours,
    sample_tied,
)
from .systems import SYSTEMS, describe_system
from .workflow import Json

WINDOW = 16  # frames that the model sees at a time in a long clip


def edit(task: Task) -> Workflow:
    """Return the main graph, without tuning: invert, sample with the edited prompt, frames tied along the motion."""
    return main_graph(
        task,
        "The patch lets every frame attend to all others; the relation ties what the edit changes along the clip's "
        "motion. A LoRA goes between Model and Inflate. Nothing is tuned: for EI²'s tuning see the workflow ei2.",
        "Done once for the clip: another edited prompt runs the sampling only. denoise: more leaves the edit freer, "
        "less keeps more of the clip; 0 matches it to the size, which suits edits of an object. For another background "
        "set method to edit-friendly DDPM, which flickers more.",
    )


def edit_clip(task: Task) -> Workflow:
    """Return the main graph as one node."""
    graph = edit(task)
    nodes = {part.title: part for part in graph if isinstance(part, Node)}
    packed = blueprints.use(blueprints.edit_clip(graph))
    chosen = (
        "Model wants a Stable Diffusion 1.5 checkpoint, Source clip a video: upload yours there. A LoRA goes between "
        "Model and Edit Clip."
    )
    if task.shipped:
        chosen = f"Press Run. {OF_DEMO} {OWN_CLIP.format('Edit Clip', 'edit_clip')}"
    return [
        Group("1 Model and clip", chosen),
        nodes["Model"],
        nodes["Source clip"],
        Group(
            "2 Edit",
            "The upper text says what the clip shows, the lower what it is to show, in the same words but for what "
            "changes. frames: how many are taken of the file, as they follow each other; raise it for a longer edit. "
            f"{'' if task.shipped else f'{SPREAD} Both are inside the node. '}"
            "cfg: higher follows the edited prompt more and the clip less. "
            "denoise: more leaves the edit freer; 0 matches it to the size. The button at the node's top right, or a "
            "double click next to its name, opens all that it consists of.",
        ),
        packed,
        Group("3 Edited clip"),
        nodes["Save edit"].but(video=(packed.title, "video")),
    ]


def long_clip(task: Task) -> Workflow:
    """Return an edit of a clip that is too long for one batch, sampled in windows."""
    windows = {"context_length": WINDOW, "context_overlap": WINDOW // 2, "causal_window_fix": False}
    return [
        *task.nodes(),
        Group("2 Clip model", "A LoRA goes between Model and Inflate."),
        INFLATE,
        UNTUNED_PATCH,
        Group(
            "3 Windows, invert, sample",
            "The model sees context_length frames at a time; neighbouring windows are blended where they overlap. The "
            "relation ties all frames along the motion, across the windows too, and FFAM sees the whole clip. What the "
            "model needs of memory depends on context_length, not on the clip. ControlNet and Attention Control work "
            "as without windows. To tune on a long clip, set frames_per_step in Tuning Options.",
        ),
        Node("Windows", "ContextWindowsManual", model="Patch", **windows),
        invert_source("Windows"),
        *task.relation(),
        sample_tied("Windows"),
        *edited(4),
    ]


def preset(name: str, task: Task) -> Workflow:
    """Return a system of the papers with its published settings."""
    return [*describe_system(task, SYSTEMS[name]), *edited(5)]


CONTROL_NET = "control_v11p_sd15_canny_fp16.safetensors"
DEMO_TASK = Task(
    DEMO,
    "red_circle.mp4",
    None,
    "a red circle on a white background",
    "a blue square on a white background",
    {"steps": 200, "learning_rate": 1e-4},
    {},
    ours("ControlNet", "LoadDemoControlNet"),
)
SD15_TASK = Task(
    checkpoint("v1-5-pruned-emaonly-fp16.safetensors"),
    "clip.mp4",
    (8, 512),
    "a jeep car is moving on the road",
    "a jeep car is moving on the road, watercolor",
    {},
    {"gradient_checkpointing": True},
    Node("ControlNet", "ControlNetLoader", control_net_name=CONTROL_NET),
)
SDXL_TASK = replace(SD15_TASK, model=checkpoint("sd_xl_base_1.0.safetensors"), crop=(8, 1024))
STRIPED = {"before": "a striped blue cross on a brick wall", "after": "a striped red ring on a brick wall"}
OWN_DEMO_TASKS = {
    "edit_clip": replace(DEMO_TASK, crop=(8, 128)),
    "long_clip": replace(DEMO_TASK, file="striped_cross.mp4", **STRIPED),  # type: ignore[arg-type]
    "controlnet": replace(DEMO_TASK, after="a blue circle on a white background"),
    **dict.fromkeys(BY_DEMO_MODEL, replace(DEMO_TASK, model=DEMO.but(prediction="flow"))),
}
DESCRIBED = (
    edit_clip,
    edit,
    ei2,
    inr_smooth,
    tune_a_video,
    import_tune_a_video,
    saved_tune,
    resume_tune,
    tuning_settings,
    long_clip,
    controlnet,
    attention_control,
    custom_sampler,
    reconstruction,
    prompt_tokens,
    steady_frames,
)
MAKE = {make.__name__: make for make in DESCRIBED}
RUN_WITHOUT_DOWNLOAD = ("edit_clip", "edit", "ei2")  # of which a twin for the demo model is a file, too


HAVE_THEIR_OWN = ("EI²", "Tune-A-Video", "INR on Tune-A-Video")  # systems that a workflow above shows
PRESETS: dict[str, Callable[[Task], Workflow]] = {
    re.sub(r"\W", "_", name.lower()): partial(preset, name) for name in SYSTEMS if name not in HAVE_THEIR_OWN
}  # by file name


def describe_demo(name: str, shipped: bool = False) -> Workflow:
    """Return a workflow for the demo model, of a clip among ComfyUI's inputs or of one that comes with the pack."""
    return {**MAKE, **PRESETS, **BY_DEMO_MODEL}[name](replace(OWN_DEMO_TASKS.get(name, DEMO_TASK), shipped=shipped))


def workflows() -> dict[str, Workflow]:
    """Return every workflow by its file name."""
    long = replace(SD15_TASK, crop=(48, 512))
    return {
        **{f"demo_{name}": describe_demo(name, shipped=True) for name in RUN_WITHOUT_DOWNLOAD},
        **{name: make(long if make is long_clip else SD15_TASK) for name, make in {**MAKE, **PRESETS}.items()},
        "edit_sdxl": edit(SDXL_TASK),
        **{name: make(replace(SD15_TASK, model=model)) for name, (make, model) in FLOWS.items()},
    }


def subgraphs() -> dict[str, Subgraph]:
    """Return every subgraph blueprint by its file name."""
    made = (
        blueprints.edit_clip(edit(SD15_TASK)),
        blueprints.tune_and_edit_clip(ei2(SD15_TASK)),
        blueprints.invert_and_reconstruct(edit(SD15_TASK)),
        blueprints.steady_an_edit(steady_frames(SD15_TASK)),
    )
    return {each.name: each for each in made}


def write_all(object_info: Json, core: str) -> dict[str, Json]:
    """Return every workflow and blueprint in the editor's form, by its path.

    Args:
        object_info: the server's description of its nodes, by type.
        core: its version.
    """
    files = {f"workflows/{name}.json": groups for name, groups in workflows().items()}
    files |= {f"subgraphs/{name}.json": [Group(name), Packed(each)] for name, each in subgraphs().items()}
    return {name: build(parts, object_info, core) for name, parts in files.items()}
