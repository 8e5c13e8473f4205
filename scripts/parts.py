"""What several workflows have in common: the nodes of a part of them, and the task that they work on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .graph import Group, Node, Workflow

# Of the main graph, chosen on drawn clips that the benchmark does not measure.
CFG, CFG_END = 3.0, 0.3
SECONDS = 4.0  # that are decoded of a video file
STEPS = 20  # of inversion and sampling
RELATION = {"passes": 8, "end": 0.8}
SOURCE, EDITED, EMPTY = "Source prompt", "Edited prompt", "Empty prompt"
TEXTS = {SOURCE: "Source text", EDITED: "Edited text"}
READ_TEXTS = {"source_text": (TEXTS[SOURCE], "STRING"), "edit_text": (TEXTS[EDITED], "STRING")}
OF_DEMO = (
    "Clip and model come with the pack. The model knows drawn shapes alone: red, orange, yellow, green, cyan, blue, "
    "purple or pink; circle, square, triangle, star, heart, ring or cross; on a white or grey background, in the night "
    "sky, on a meadow, sand, a brick wall or the sea."
)
OWN_CLIP = (
    "For a drawn clip of your own double-click the canvas, add Load Video, upload the file there and drag its VIDEO to "
    "the video of {}. Real footage needs a checkpoint: open the workflow {}."
)
SPREAD = (
    "Of 30 frames per second, 8 are a quarter of a second. To spread them over the clip, put ComfyUI's Sample Video "
    "Frame between Trim and Frames, with as many num_frames as First frames takes, and leave Trim's start_time at 0. "
    "It drops the sound and keeps the frame rate."
)
RECONSTRUCTION = "The reconstruction shows how well the clip comes back: delete it and its branch once you are content."
Link = str | tuple[str, str]  # title of a node, and the name of its output where it is not the first of its type
PLAIN: dict[str, Any] = {"gamma": 0.0, "direction": "none"}  # inversion without the noise relation


def ours(title: str, kind: str, **inputs: Any) -> Node:
    """Return a node of this pack."""
    return Node(title, "ConsistentVideo_" + kind, **inputs)


DEMO = ours("Model", "LoadDemoModel")
INFLATE = ours("Inflate", "InflateUNet", model="Model")
PATCH = ours("Patch", "STAMFFAMPatch", model="Inflate")
UNTUNED_PATCH = PATCH.but(temporal_strength=0.0)  # temporal modules mean nothing before a tuning


def checkpoint(file: str) -> Node:
    """Return the loader of a checkpoint."""
    return Node("Model", "CheckpointLoaderSimple", ckpt_name=file)


def prompt(title: str, text: str) -> Node:
    """Return a text encoder fed by the model's CLIP."""
    return Node(title, "CLIPTextEncode", clip="Model", text=text)


def with_loaders(workflow: Workflow, clip: Node, vae: Node) -> Workflow:
    """Return a workflow whose text encoders and VAE are not the model's, but loaded by nodes of their own."""
    parts: list[Group | Node] = []
    for part in workflow:
        if isinstance(part, Node):
            own = {"clip": clip.title, "vae": vae.title}
            part = part.but(**{name: title for name, title in own.items() if part.inputs.get(name) == "Model"})
        parts += [part, clip, vae] if isinstance(part, Node) and part.title == "Model" else [part]
    return parts


def with_texts(workflow: Workflow) -> Workflow:
    """Return a part of a workflow whose prompts take their texts from nodes that others can read as well."""
    parts: list[Group | Node] = []
    for part in workflow:
        if isinstance(part, Node) and part.title in TEXTS:
            text = TEXTS[part.title]
            parts.append(Node(text, "PrimitiveStringMultiline", value=part.inputs["text"]))
            part = part.but(text=(text, "STRING"))
        parts.append(part)
    return parts


def show(title: str, source: str, output: str = "report") -> Node:
    """Return a node that shows a text."""
    return Node(title, "PreviewAny", source=(source, output))


def save_video(name: str, images: Any) -> list[Node]:
    """Return the nodes from frames to a saved video with the source's sound, which ComfyUI cuts to the frames."""
    file = f"consistent_video/{name.replace(' ', '_')}"
    return [
        Node(f"Video of {name}", "CreateVideo", images=images, fps=("Frames", "fps"), audio=("Frames", "audio")),
        Node(f"Save {name}", "SaveVideo", video=f"Video of {name}", filename_prefix=file),
    ]


def save(name: str, latent: Link) -> list[Node]:
    """Return the nodes from a latent to a saved video."""
    decode = Node(f"Decode {name}", "VAEDecode", samples=latent, vae="Model")
    return [decode, *save_video(name, decode.title)]


def invert(title: str, model: str, positive: Link, **inputs: Any) -> Node:
    """Return an inversion of the clip."""
    kind = "INRBidirectionalDDIMInversion"
    return ours(title, kind, model=model, positive=positive, latent="Encode", **inputs)


def invert_source(model: str, positive: str = SOURCE, **inputs: Any) -> Node:
    """Return the plain inversion of the clip under the source prompt, from which an edit starts."""
    return invert("Invert", model, positive, **{"steps": STEPS, **PLAIN, **inputs})


def sample(
    title: str,
    model: str,
    positive: Link,
    cfg: float,
    negative: Link = SOURCE,
    inversion: str = "Invert",
    **inputs: Any,
) -> Node:
    """Return a sampling of an inverted clip."""
    links = {"model": model, "positive": positive, "negative": negative, "inversion": inversion}
    return ours(title, "SmoothSample", **links, cfg=cfg, **inputs)


def sample_edit(model: str, title: str = "Edit", **inputs: Any) -> Node:
    """Return the sampling of the edit, guided away from the source prompt at the steps that decide the layout."""
    return sample(title, model, EDITED, CFG, cfg_end=CFG_END).but(**inputs)


def sample_tied(model: str, title: str = "Edit", **inputs: Any) -> Node:
    """Return the same with frames tied by the noise relation."""
    return sample_edit(model, title, **inputs).but(relation="Relation")


def edited(number: int) -> Workflow:
    """Return the column that saves the edit."""
    return [Group(f"{number} Edited clip"), *save("edit", "Edit")]


def results() -> Workflow:
    """Return the columns that save the edit, the reconstruction and the autoencoder's round trip."""
    return [
        *edited(5),
        Group("6 Reconstruction"),
        *save("reconstruction", "Reconstruction"),
        Group("7 Autoencoder alone"),
        *save("autoencoder round trip", "Encode"),
    ]


@dataclass(frozen=True)
class Task:
    """What is edited, and how it is tuned.

    Args:
        model: loads it.
        file: a video among ComfyUI's inputs.
        crop: (frames, side) to take of it, None for all.
        before, after: source and edited prompt.
        tuning, options: values of One-Shot Tune and of Tuning Options.
        control_net: loads one for edges.
        shipped: whether the file is one of the demo clips, which need not lie among ComfyUI's inputs.
    """

    model: Node
    file: str
    crop: tuple[int, int] | None
    before: str
    after: str
    tuning: dict[str, Any]
    options: dict[str, Any]
    control_net: Node | None = None
    shipped: bool = False

    @property
    def name(self) -> str:
        """What files made of the clip are called."""
        return Path(self.file).stem

    @property
    def pixels(self) -> str:
        """The node that gives the source clip's frames."""
        return "Scale" if self.crop else "Frames"

    def source(self) -> list[Node]:
        """Return the nodes from the video file to its latent."""
        load = "ConsistentVideo_LoadDemoClip" if self.shipped else "LoadVideo"
        nodes = [Node("Source clip", load, file=self.file)]
        if self.crop:
            nodes.append(Node("Trim", "Video Slice", video="Source clip", duration=SECONDS))
        nodes.append(Node("Frames", "GetVideoComponents", video=nodes[-1].title))
        if self.crop:
            frames, side = self.crop
            given = {"image": "First frames", "upscale_method": "lanczos", "crop": "center"}
            nodes += [
                Node("First frames", "ImageFromBatch", image="Frames", batch_index=0, length=frames),
                Node("Scale", "ImageScale", **given, width=side, height=side),
            ]
        return [*nodes, Node("Encode", "VAEEncode", pixels=self.pixels, vae="Model")]

    def nodes(self, with_empty: bool = False) -> Workflow:
        """Return the first column of a workflow; the empty prompt is for the papers' own inversion and guidance."""
        prompts = [prompt(SOURCE, self.before), prompt(EDITED, self.after)]
        text = "Choose the clip; say what it shows and what it is to show, in the same words but for what changes."
        if self.shipped:
            text += f" {OF_DEMO} {OWN_CLIP.format('Frames', 'edit')}"
        if self.crop:
            text += (
                " Trim says which seconds of the file are decoded, First frames how many frames of them are taken, as "
                f"they follow each other. {SPREAD}"
            )
        if with_empty:
            prompts.append(prompt(EMPTY, ""))
            text += " As in the papers, guidance leads away from the empty prompt; text in it is a negative prompt."
        return [Group("1 Clip and prompts", text), self.model, *self.source(), *prompts]

    def relation(self) -> list[Node]:
        """Return the nodes that tie frames to each other along the clip's motion."""
        return [
            ours("Motion", "ClipMotion", images=self.pixels),
            ours("Relation", "InterframeNoiseRelation", motion="Motion", **RELATION),
        ]

    def tuning_options(self, **values: Any) -> Node:
        """Return the options of a tuning."""
        return ours("Options", "TuningOptions", **self.options, **values)

    def tune(self, **inputs: Any) -> Node:
        """Return the tuning node, by the papers' recipe unless said otherwise."""
        papers = {"recipe": "paper", "steps": 500}
        return ours("Tune", "OneShotTune", model="Patch", positive=SOURCE, latent="Encode").but(
            **{**papers, **inputs, **self.tuning}
        )

    def save_tune(self, file: str = "") -> Node:
        """Return the node that saves the tune."""
        return ours("Save tune", "SaveTune", tune="Tune", filename_prefix=file or self.name)

    def previewed_tune(self, file: str = "", **inputs: Any) -> list[Node]:
        """Return the tuning with options, a preview of the edit, and its reports.

        The preview has prompts of its own: it is part of the tuning, which those of the edit must not run again.
        """
        return [
            self.tuning_options(),
            prompt("Preview prompt", self.after),
            prompt("Preview negative", ""),
            ours("Preview", "TuningPreview", positive="Preview prompt", negative="Preview negative"),
            self.tune(options="Options", preview="Preview", **inputs),
            show("Tune report", "Tune"),
            Node("Loss plot", "PreviewImage", images="Tune"),
            self.save_tune(file),
        ]

    def apply_saved(self) -> list[Node]:
        """Return the nodes that load the tune of the first run of the workflow ei2 and apply it."""
        return [
            ours("Load tune", "LoadTune", tune_name=f"{self.name}_00001_.safetensors"),
            ours("Tune", "ApplyTune", model="Model", tune="Load tune"),
        ]


def main_graph(task: Task, clip_model: str, inversion: str, patch: Node = UNTUNED_PATCH) -> Workflow:
    """Return the graph that edits a clip without tuning: invert it, sample with the edited prompt, tie the frames.

    Args:
        task: what is edited.
        clip_model, inversion: what the notes of these columns say.
        patch: the node that connects the frames.
    """
    return [
        *task.nodes(),
        Group("2 Clip model, motion", clip_model),
        INFLATE,
        patch,
        *task.relation(),
        Group("3 Invert", inversion),
        invert_source("Patch"),
        show("Inversion report", "Invert"),
        Group(
            "4 Sample",
            "The source prompt is the negative: guidance changes what the prompts differ in. cfg: higher follows the "
            "edited prompt more and the clip less. cfg_end: a later end of the guidance edits more and flickers more. "
            f"{RECONSTRUCTION}",
        ),
        sample_tied("Patch"),
        sample("Reconstruction", "Patch", SOURCE, 1.0),
        *results(),
    ]
