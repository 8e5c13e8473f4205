"""What each workflow of the pack consists of."""

from __future__ import annotations

from dataclasses import dataclass
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
INFLATE = Node("Inflate", OURS + "InflateUNet", {"model": ("Model", "MODEL")})
PATCH = Node("Patch", OURS + "STAMFFAMPatch", {"model": ("Inflate", "clip_model")})


def tune(**values: Any) -> Node:
    """Return the tuning node."""
    links = {"model": ("Patch", "clip_model"), "positive": ("Source prompt", "CONDITIONING")}
    return Node("Tune", OURS + "OneShotTune", {**links, "latent": ("Encode", "LATENT")}, values)


def invert(title: str, model: str, positive: str, **values: Any) -> Node:
    """Return an inversion node."""
    links = {"model": (model, "clip_model"), "positive": (positive, "CONDITIONING")}
    kind = OURS + "INRBidirectionalDDIMInversion"
    return Node(title, kind, {**links, "latent": ("Encode", "LATENT")}, values)


def sample(title: str, model: str, positive: str, inversion: str, cfg: float) -> Node:
    """Return a sampling node."""
    links = {"model": (model, "clip_model"), "positive": (positive, "CONDITIONING")}
    links |= {"negative": ("Negative prompt", "CONDITIONING"), "inversion": (inversion, "inversion")}
    return Node(title, OURS + "SmoothSample", links, {"cfg": cfg})


def show(title: str, source_node: str, output: str) -> Node:
    """Return a node that shows a text."""
    return Node(title, "PreviewAny", {"source": (source_node, output)})


@dataclass(frozen=True)
class Task:
    """What is edited: the model, a video file, (frames, side) to take of it or None for all, and the prompts."""

    model: Node
    file: str
    crop: tuple[int, int] | None
    before: str
    after: str

    def nodes(self, names_source: bool = False) -> Group:
        """Return the first column of a workflow; the source prompt is for those that tune or reconstruct."""
        prompts = [prompt("Source prompt", self.before)] if names_source else []
        prompts += [prompt("Edited prompt", self.after), prompt("Negative prompt", ""), prompt("Empty prompt", "")]
        return Group(
            "1 Clip and prompts",
            [self.model, *source(self.file, self.crop), *prompts],
            "What the clip is to show. The empty prompt is what the clip is inverted with, as "
            "Tune-A-Video does: the noise then keeps more of the clip for the edit.",
        )


def edit(task: Task, tuning: dict[str, Any]) -> list[Group]:
    """Return the main graph: tune on the clip, invert it, sample with the edited prompt."""
    return [
        task.nodes(names_source=True),
        Group(
            "2 Clip model",
            [INFLATE, PATCH, tune(**tuning), show("Tune report", "Tune", "report")]
            + [Node("Loss plot", "PreviewImage", {"images": ("Tune", "loss_plot")})]
            + [
                Node(
                    "Save tune",
                    OURS + "SaveTune",
                    {"tune": ("Tune", "tune")},
                    {"filename_prefix": Path(task.file).stem},
                )
            ],
            "Tuning teaches the model this clip. Too many steps and the edit no longer shows; too few and the motion "
            "is lost.",
        ),
        Group(
            "3 Invert",
            [
                invert("Invert", "Tune", "Empty prompt"),
                show("Inversion report", "Invert", "report"),
                invert("Invert to reconstruct", "Tune", "Source prompt", gamma=0.0),
            ],
            "The lower inversion is plain and only serves the reconstruction, which shows how well the clip comes "
            "back. Delete it and its branch once you are content.",
        ),
        Group(
            "4 Sample",
            [
                sample("Edit", "Tune", "Edited prompt", "Invert", 7.5),
                sample("Reconstruction", "Tune", "Source prompt", "Invert to reconstruct", 1.0),
            ],
            "CFG: higher follows the edited prompt more and the clip less.",
        ),
        Group("5 Edited clip", save("edit", ("Edit", "latent"))),
        Group("6 Reconstruction", save("reconstruction", ("Reconstruction", "latent"))),
        Group("7 Autoencoder alone", save("autoencoder round trip", ("Encode", "LATENT"))),
    ]


def training_free(task: Task) -> list[Group]:
    """Return an edit without tuning, through the host's own sampler node."""
    guider = {"model": ("Patch", "clip_model"), "positive": ("Edited prompt", "CONDITIONING")}
    guider |= {"negative": ("Negative prompt", "CONDITIONING")}
    sampler = {"noise": ("No noise", "NOISE"), "guider": ("Guide", "GUIDER"), "latent_image": ("Invert", "inversion")}
    sampler |= {"sampler": ("Sampler", "sampler"), "sigmas": ("Sampler", "sigmas")}
    return [
        task.nodes(),
        Group(
            "2 Clip model, invert",
            [INFLATE, PATCH, invert("Invert", "Patch", "Empty prompt"), show("Inversion report", "Invert", "report")],
            "Without tuning only the attention connects the frames: quick, and less steady.",
        ),
        Group(
            "3 Sample",
            [
                Node("Guide", "CFGGuider", guider, {"cfg": 7.5}),
                Node("No noise", "DisableNoise"),
                Node("Sampler", OURS + "SmoothSampler", {"inversion": ("Invert", "inversion")}),
                Node("Edit", "SamplerCustomAdvanced", sampler),
            ],
            "Any guider of the host may take CFGGuider's place.",
        ),
        Group("4 Edited clip", save("edit", ("Edit", "output"))),
    ]


def saved_tune(task: Task, file: str) -> list[Group]:
    """Return an edit with a tune from a file."""
    apply = {"model": ("Model", "MODEL"), "tune": ("Load tune", "tune")}
    return [
        task.nodes(),
        Group(
            "2 Saved tune",
            [
                Node("Load tune", OURS + "LoadTune", {}, {"tune_name": file}),
                Node("Tune", OURS + "ApplyTune", apply),
                invert("Invert", "Tune", "Empty prompt"),
            ],
            "Run the main workflow first: its Save Tune writes the file; choose the newest number. query_strength "
            "below 1 loosens the hold of the source.",
        ),
        Group("3 Sample", [sample("Edit", "Tune", "Edited prompt", "Invert", 7.5)]),
        Group("4 Edited clip", save("edit", ("Edit", "latent"))),
    ]


DEMO_TASK = Task(
    DEMO, "red_circle.mp4", None, "a red circle on a white background", "a blue square on a white background"
)
SD15_TASK = Task(
    SD15, "clip.mp4", (8, 512), "a jeep car is moving on the road", "a jeep car is moving on the road, watercolor"
)


def workflows() -> dict[str, list[Group]]:
    """Return every workflow by its file name."""
    return {
        "demo_edit": edit(DEMO_TASK, {"steps": 200, "learning_rate": 1e-4}),
        "demo_training_free": training_free(DEMO_TASK),
        "demo_saved_tune": saved_tune(DEMO_TASK, "red_circle_00001_.safetensors"),
        "sd15_edit": edit(SD15_TASK, {}),
        "sd15_saved_tune": saved_tune(SD15_TASK, "clip_00001_.safetensors"),
    }
