"""Write workflows/*.json, in the editor's form, from one short description each.

    python scripts/build_workflows.py

A description lists nodes by column; the editor's form (positions, sockets, numbered links, groups) follows from it and
from the running host's description of its nodes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environment

WORKFLOWS = environment.ROOT / "workflows"
WIDTH, GAP, TOP = 340, 60, 140
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
COLOUR = "#3f789e"


@dataclass(frozen=True)
class Node:
    """A node of a workflow.

    Args:
        title: unique in its workflow.
        kind: node type.
        links: by input, (title of the node that feeds it, name of its output).
        values: by input, widget values that differ from the default.
    """

    title: str
    kind: str
    links: dict[str, tuple[str, str]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A titled column of nodes, with an optional note above them."""

    title: str
    nodes: list[Node]
    note: str = ""


def widgets(info: dict[str, Any], values: dict[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield (input, socket type, widget values) of a node's widgets in the editor's order."""
    for section in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(section, {}).items():
            options = rest[0] if rest else {}
            if not isinstance(kind, list) and kind not in WIDGETS:
                continue
            choices = (kind if isinstance(kind, list) else options.get("options")) or [""]
            first = choices[0]["key"] if isinstance(choices[0], dict) else choices[0]
            value = values.get(name, options.get("default", first))
            yield (
                name,
                "COMBO" if isinstance(kind, list) else kind,
                [value] + ["fixed"] * bool(options.get("control_after_generate")),
            )


def sockets(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (input, type) of a node's inputs that are no widgets."""
    for section in ("required", "optional"):
        for name, (kind, *_) in info["input"].get(section, {}).items():
            if not isinstance(kind, list) and kind not in WIDGETS:
                yield name, kind


def height(info: dict[str, Any]) -> int:
    """Return a node's height in the editor, generously."""
    lines = max(len(list(sockets(info))), len(info["output"])) + sum(len(w[2]) for w in widgets(info, {}))
    specs = [spec for section in ("required", "optional") for spec in info["input"].get(section, {}).values()]
    prompt = any(len(spec) > 1 and spec[1].get("multiline") for spec in specs)
    shows = info["name"] in ("SaveVideo", "LoadVideo", "PreviewImage", "PreviewAny")
    return 50 + 26 * lines + 70 * prompt + 220 * shows


def build(groups: list[Group], object_info: dict[str, Any]) -> dict[str, Any]:
    """Return a workflow in the editor's form.

    Raises:
        KeyError: a description names a node, input or output that does not exist.
    """
    ids = {node.title: i for i, node in enumerate((n for g in groups for n in g.nodes), start=1)}
    kinds = {node.title: node.kind for group in groups for node in group.nodes}
    nodes: list[dict[str, Any]] = []
    links: list[list[Any]] = []
    frames: list[dict[str, Any]] = []
    for column, group in enumerate(groups):
        x, y = column * (WIDTH + 2 * GAP), TOP
        if group.note:
            nodes.append(note(len(ids) + column + 1, group.note, x))
        for node in group.nodes:
            info = object_info[node.kind]
            inputs: list[dict[str, Any]] = []
            for name, kind in sockets(info):
                link = None
                if name in node.links:
                    link = len(links) + 1
                    source, output = node.links[name]
                    slot = object_info[kinds[source]]["output_name"].index(output)
                    links.append([link, ids[source], slot, ids[node.title], len(inputs), kind])
                inputs.append({"name": name, "type": kind, "link": link})
            named = list(widgets(info, node.values))
            unknown = {*node.links, *node.values} - {n for n, _ in sockets(info)} - {n for n, *_ in named}
            if unknown:
                raise KeyError(f"{node.kind} has no input {', '.join(sorted(unknown))}")
            inputs += [{"name": n, "type": kind, "widget": {"name": n}, "link": None} for n, kind, _ in named]
            size = height(info)
            nodes.append(
                {
                    "id": ids[node.title],
                    "type": node.kind,
                    "title": node.title,
                    "pos": [x, y],
                    "size": [WIDTH, size],
                    "flags": {},
                    "order": ids[node.title] - 1,
                    "mode": 0,
                    "inputs": inputs,
                    "outputs": [
                        {"name": name, "type": kind, "links": [], "slot_index": i}
                        for i, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True))
                    ],
                    "properties": {"Node name for S&R": node.kind},
                    "widgets_values": [value for *_, values in named for value in values],
                }
            )
            y += size + GAP
        frames.append({"title": group.title, "bounding": [x - 20, TOP - 70, WIDTH + 40, y - TOP + 70], "color": COLOUR})
    outputs = {node["id"]: node.get("outputs", []) for node in nodes}
    for link, source, slot, *_ in links:
        outputs[source][slot]["links"].append(link)
    return {
        "last_node_id": max(node["id"] for node in nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": frames,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def note(number: int, text: str, x: int) -> dict[str, Any]:
    """Return a note that stands above a column."""
    size = 60 + 22 * (len(text) // 38 + text.count("\n") + 1)
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [x, TOP - 100 - size],
        "size": [WIDTH, size],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
    }


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

    def nodes(self) -> Group:
        """Return the first column of every workflow."""
        prompts = [prompt("Source prompt", self.before), prompt("Edited prompt", self.after)]
        prompts += [prompt("Negative prompt", ""), prompt("Empty prompt", "")]
        return Group(
            "1 Clip and prompts",
            [self.model, *source(self.file, self.crop), *prompts],
            "What the clip shows, and what it shall show. The empty prompt is what the clip is inverted with, as "
            "Tune-A-Video does: the noise then keeps more of the clip for the edit.",
        )


def edit(task: Task, tuning: dict[str, Any]) -> list[Group]:
    """Return the main graph: tune on the clip, invert it, sample with the edited prompt."""
    return [
        task.nodes(),
        Group(
            "2 Clip model",
            [INFLATE, PATCH, tune(**tuning), show("Tune report", "Tune", "report")]
            + [Node("Loss plot", "PreviewImage", {"images": ("Tune", "loss_plot")})]
            + [Node("Save tune", OURS + "SaveTune", {"tune": ("Tune", "tune")})],
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
            "Run the main workflow first: its Save Tune writes the file. query_strength below 1 loosens the hold "
            "of the source.",
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
        "demo_saved_tune": saved_tune(DEMO_TASK, "tune_00001_.safetensors"),
        "sd15_edit": edit(SD15_TASK, {}),
    }


def main() -> None:
    """Write every workflow."""
    environment.enter(__file__, [])
    environment.register_pack()
    from consistent_video.scripts.host import Host, device_arguments

    with (
        tempfile.TemporaryDirectory() as base,
        Host(environment.comfyui_tree(), Path(base), device_arguments()) as host,
    ):
        info = host.object_info()
    WORKFLOWS.mkdir(exist_ok=True)
    for name, groups in workflows().items():
        text = json.dumps(build(groups, info), indent=1, ensure_ascii=False)
        (WORKFLOWS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
