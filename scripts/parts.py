"""What several workflows have in common: the nodes of a part of them, and the task that they work on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .graph import Group, Node

OURS = "ConsistentVideo_"


def prompt(title: str, text: str) -> Node:
    """Return a text encoder fed by the model's CLIP."""
    return Node(title, "CLIPTextEncode", {"clip": ("Model", "CLIP")}, {"text": text})


def source(file: str, crop: tuple[int, int] | None) -> list[Node]:
    """Return the nodes from a video file to its latent, with (frames, side) of what is taken of it."""
    nodes = [
        Node("Source clip", "LoadVideo", {}, {"file": file}),
        Node("Frames", "GetVideoComponents", {"video": ("Source clip", "VIDEO")}),
    ]
    pixels = ("Frames", "images")
    if crop is not None:
        frames, side = crop
        scale = {"upscale_method": "lanczos", "width": side, "height": side, "crop": "center"}
        nodes.append(Node("First frames", "ImageFromBatch", {"image": pixels}, {"batch_index": 0, "length": frames}))
        nodes.append(Node("Scale", "ImageScale", {"image": ("First frames", "IMAGE")}, scale))
        pixels = ("Scale", "IMAGE")
    return [*nodes, Node("Encode", "VAEEncode", {"pixels": pixels, "vae": ("Model", "VAE")})]


def save(name: str, latent: tuple[str, str]) -> list[Node]:
    """Return the nodes from a latent to a saved video."""
    return [
        Node(f"Decode {name}", "VAEDecode", {"samples": latent, "vae": ("Model", "VAE")}),
        Node(f"Video of {name}", "CreateVideo", {"images": (f"Decode {name}", "IMAGE"), "fps": ("Frames", "fps")}),
        Node(
            f"Save {name}",
            "SaveVideo",
            {"video": (f"Video of {name}", "VIDEO")},
            {"filename_prefix": f"consistent_video/{name.replace(' ', '_')}"},
        ),
    ]


DEMO = Node("Model", OURS + "LoadDemoModel")
SD15 = Node("Model", "CheckpointLoaderSimple", {}, {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"})
# Of the main graph, chosen on drawn clips that the benchmark does not measure.
CFG, CFG_END = 3.0, 0.3
PAPERS_CFG = 7.5  # of EI² and Tune-A-Video, whose guidance leads away from the empty prompt
RELATION = {"passes": 8, "end": 0.8}
SOURCE, EDITED, EMPTY = "Source prompt", "Edited prompt", "Empty prompt"
PLAIN = {"gamma": 0.0, "direction": "none"}  # inversion without the noise relation
INFLATE = Node("Inflate", OURS + "InflateUNet", {"model": ("Model", "MODEL")})
PATCH = Node("Patch", OURS + "STAMFFAMPatch", {"model": ("Inflate", "clip_model")})
UNTUNED_PATCH = replace(PATCH, values={"temporal_strength": 0.0})  # temporal modules mean nothing before a tuning


def tune(links: dict[str, tuple[str, str]], **values: Any) -> Node:
    """Return the tuning node, with links beside those it always has."""
    always = {"model": ("Patch", "clip_model"), "positive": (SOURCE, "CONDITIONING")}
    return Node("Tune", OURS + "OneShotTune", {**always, "latent": ("Encode", "LATENT"), **links}, values)


def tuning(task: Task, prefix: str | None = None, previews: bool = True) -> list[Node]:
    """Return the tuning node with options, a preview of the edit if wanted, and its reports.

    The preview has a prompt of its own: it is part of the tuning, which the edited prompt must not run again.
    """
    sides = {"positive": ("Preview prompt", "CONDITIONING"), "negative": (EMPTY, "CONDITIONING")}
    preview = {"preview": ("Preview", "preview")} if previews else {}
    shown = [prompt("Preview prompt", task.after), Node("Preview", OURS + "TuningPreview", sides)]
    return [
        Node("Options", OURS + "TuningOptions", {}, task.options),
        *(shown if previews else []),
        tune({"options": ("Options", "options"), **preview}, **task.tuning),
        show("Tune report", "Tune", "report"),
        Node("Loss plot", "PreviewImage", {"images": ("Tune", "loss_plot")}),
        save_tune(prefix or Path(task.file).stem),
    ]


def save_tune(prefix: str) -> Node:
    """Return the node that saves the tune."""
    return Node("Save tune", OURS + "SaveTune", {"tune": ("Tune", "tune")}, {"filename_prefix": prefix})


def apply_saved_tune(file: str) -> list[Node]:
    """Return the nodes that load a tune and apply it."""
    apply = {"model": ("Model", "MODEL"), "tune": ("Load tune", "tune")}
    return [Node("Load tune", OURS + "LoadTune", {}, {"tune_name": file}), Node("Tune", OURS + "ApplyTune", apply)]


def invert(title: str, model: str, positive: str, **values: Any) -> Node:
    """Return an inversion node."""
    links = {"model": (model, "clip_model"), "positive": (positive, "CONDITIONING")}
    kind = OURS + "INRBidirectionalDDIMInversion"
    return Node(title, kind, {**links, "latent": ("Encode", "LATENT")}, values)


def sample(
    title: str, model: str, positive: str, inversion: str, cfg: float, negative: str = SOURCE, **values: Any
) -> Node:
    """Return a sampling node."""
    links = {"model": (model, "clip_model"), "positive": (positive, "CONDITIONING")}
    links |= {"negative": (negative, "CONDITIONING"), "inversion": (inversion, "inversion")}
    return Node(title, OURS + "SmoothSample", links, {"cfg": cfg, **values})


def invert_source(model: str, **values: Any) -> Node:
    """Return the plain inversion of the clip under the source prompt, from which an edit starts."""
    return invert("Invert", model, SOURCE, **PLAIN, **values)


def edit_from_source(model: str, title: str = "Edit") -> Node:
    """Return the sampling of the edit, guided away from the source prompt at the steps that decide the layout."""
    return sample(title, model, EDITED, "Invert", CFG, cfg_end=CFG_END)


def relink(node: Node, **links: tuple[str, str]) -> Node:
    """Return a node with further or other links."""
    return replace(node, links={**node.links, **links})


def relation(task: Task) -> list[Node]:
    """Return the nodes that tie frames to each other along the clip's motion."""
    return [
        Node("Motion", OURS + "ClipMotion", {"images": task.pixels}),
        Node("Relation", OURS + "InterframeNoiseRelation", {"motion": ("Motion", "motion")}, RELATION),
    ]


def show(title: str, source_node: str, output: str) -> Node:
    """Return a node that shows a text."""
    return Node(title, "PreviewAny", {"source": (source_node, output)})


@dataclass(frozen=True)
class Task:
    """What is edited, and how it is tuned.

    Args:
        model: loads it.
        file: a video among ComfyUI's inputs.
        crop: (frames, side) to take of it, None for all.
        before, after: source and edited prompt.
        tuning, options: values of One-Shot Tune and of Tuning Options.
    """

    model: Node
    file: str
    crop: tuple[int, int] | None
    before: str
    after: str
    tuning: dict[str, Any]
    options: dict[str, Any]

    @property
    def pixels(self) -> tuple[str, str]:
        """The source clip's frames."""
        return ("Scale", "IMAGE") if self.crop else ("Frames", "images")

    def nodes(self, with_empty: bool = False) -> Group:
        """Return the first column of a workflow; the empty prompt is for the papers' own inversion and guidance."""
        prompts = [prompt(SOURCE, self.before), prompt(EDITED, self.after)]
        text = "Choose the clip; say what it shows and what it is to show, in the same words but for what changes."
        if with_empty:
            prompts.append(prompt(EMPTY, ""))
            text += (
                " As in the papers, the clip is inverted with the empty prompt, and guidance leads away from it; text "
                "in it is a negative prompt."
            )
        return Group("1 Clip and prompts", [self.model, *source(self.file, self.crop), *prompts], text)
