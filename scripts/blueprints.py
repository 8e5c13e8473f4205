"""What the pack's subgraph blueprints consist of: parts of the workflows, with the inputs that matter on one node."""

from collections.abc import Iterable
from dataclasses import replace

from .node import Group, Node, Packed, Subgraph, Workflow
from .parts import EDITED, SOURCE, save_video

SOURCE_CLIP, EDITED_CLIP = "Source clip", "Edited clip"
OF_MODEL = {name.lower(): ("Model", name) for name in ("MODEL", "CLIP", "VAE")}
OF_CLIP = {"video": (SOURCE_CLIP, "VIDEO")}
PROMPTS = {"source_prompt": (SOURCE, "text"), "edited_prompt": (EDITED, "text")}
TAKEN = {  # of the file
    "start_time": ("Trim", "start_time"),
    "frames": ("First frames", "length"),
    "width": ("Scale", "width"),
    "height": ("Scale", "height"),
}


def cut(workflow: Workflow, outputs: Iterable[str], outside: Iterable[str]) -> Workflow:
    """Return the part of a workflow that some nodes need, without what feeds it from outside, and without notes."""
    nodes = {part.title: part for part in workflow if isinstance(part, Node)}
    needed: set[str] = set()
    titles = set(outputs)
    while titles:
        needed |= titles
        given = [value for title in titles for value in nodes[title].inputs.values()]
        named = {value[0] if isinstance(value, tuple) else value for value in given if isinstance(value, (str, tuple))}
        titles = (named & nodes.keys()) - needed - set(outside)
    parts: list[Group | Node] = []
    for part in workflow:
        if isinstance(part, Group):
            if parts and isinstance(parts[-1], Group):
                parts.pop()  # nothing of its column is left
            parts.append(replace(part, note=""))
        elif part.title in needed:
            parts.append(part)
    return parts[:-1] if isinstance(parts[-1], Group) else parts


def pack(
    name: str,
    description: str,
    workflow: Workflow,
    inputs: dict[str, tuple[str, str]],
    dials: dict[str, tuple[str, str]],
    outputs: dict[str, tuple[str, str]],
) -> Subgraph:
    """Return the part of a workflow that makes some outputs as one node; see `Subgraph`."""
    parts = cut(workflow, [title for title, _ in outputs.values()], [title for title, _ in inputs.values()])
    return Subgraph(name, description, parts, inputs, dials, outputs)


def use(subgraph: Subgraph) -> Packed:
    """Return a subgraph as a node of a workflow that has the nodes outside, by the same titles."""
    return Packed(subgraph, **{name: title for name, (title, _) in subgraph.inputs.items()})


def edit_clip(edit: Workflow) -> Subgraph:
    """Return an edit without tuning, of the workflow `edit`."""
    dials = {
        "denoise": ("Invert", "denoise"),
        "cfg": ("Edit", "cfg"),
        "cfg_end": ("Edit", "cfg_end"),
        "relation_strength": ("Relation", "strength"),
    }
    return pack(
        "Edit Clip",
        "Edits a clip with an SD1.x model, without tuning. Say what it shows and what it is to show, in the same words "
        "but for what changes. The clip is inverted and sampled with the edited prompt, its frames tied along its "
        "motion. Takes `frames` frames of the four seconds from start_time on.",
        edit,
        OF_MODEL | OF_CLIP,
        PROMPTS | TAKEN | dials,
        {"video": ("Video of edit", "VIDEO"), "images": ("Decode edit", "IMAGE"), "inversion": ("Invert", "inversion")},
    )


def tune_and_edit_clip(ei2: Workflow) -> Subgraph:
    """Return EI²'s edit, of the workflow `ei2`."""
    dials = {
        "tuning_steps": ("Tune", "steps"),
        "learning_rate": ("Tune", "learning_rate"),
        "smoothing": ("Tune", "smoothing"),
        "cfg": ("Edit", "cfg"),
    }
    return pack(
        "Tune and Edit Clip",
        "Tunes an SD1.x model on a clip, as EI² does, and edits the clip with it. Another edited prompt does not tune "
        "again. Connect tune to Save Tune to keep the tuned weights, Tuning Preview to see the edit while it tunes.",
        ei2,
        OF_MODEL | OF_CLIP | {"preview": ("Preview", "CONSISTENT_VIDEO_TUNING_PREVIEW")},
        PROMPTS | TAKEN | dials,
        {
            "video": ("Video of edit", "VIDEO"),
            "tune": ("Tune", "tune"),
            "loss_plot": ("Tune", "loss_plot"),
            "report": ("Tune", "report"),
        },
    )


def invert_and_reconstruct(edit: Workflow) -> Subgraph:
    """Return an inversion and how well it comes back, of the workflow `edit`."""
    dials = {"steps": ("Invert", "steps"), "denoise": ("Invert", "denoise"), "refinements": ("Invert", "refinements")}
    return pack(
        "Invert and Reconstruct",
        "Inverts a clip under the prompt that says what it shows, and samples it back: what is lost here no edit can "
        "keep. inversion and clip_model go into Smooth Sample.",
        edit,
        OF_MODEL | OF_CLIP,
        {"source_prompt": PROMPTS["source_prompt"]} | TAKEN | dials,
        {
            "reconstruction": ("Video of reconstruction", "VIDEO"),
            "inversion": ("Invert", "inversion"),
            "clip_model": ("Patch", "clip_model"),
            "report": ("Invert", "report"),
        },
    )


def steady_an_edit(steady_frames: Workflow) -> Subgraph:
    """Return the blend of an edit of any origin along the source's motion, of the workflow `steady_frames`."""
    nodes = {part.title: part for part in steady_frames if isinstance(part, Node)}
    images = {"source": ("Frames", "images"), "edited": ("Edited frames", "images")}
    return pack(
        "Steady an Edit",
        "Takes the flicker out of a clip that was edited frame by frame, by any model: what the edit changes is "
        "blended along the motion of the source. Both videos have the same frames, of the same size.",
        [
            Group("1 Frames"),
            Node("Frames", "GetVideoComponents", video=SOURCE_CLIP),
            Node("Edited frames", "GetVideoComponents", video=EDITED_CLIP),
            Group("2 Steady"),
            nodes["Motion"].but(images="Frames"),
            nodes["Steady"].but(**images),
            Group("3 Steadied clip"),
            *save_video("steadied edit", ("Steady", "steadied")),
        ],
        {"source": (SOURCE_CLIP, "VIDEO"), "edited": (EDITED_CLIP, "VIDEO")},
        {name: ("Steady", name) for name in ("strength", "passes", "keep_texture")},
        {"video": ("Video of steadied edit", "VIDEO"), "report": ("Steady", "report")},
    )
