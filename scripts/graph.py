"""Build workflows in the editor's form: nodes in titled columns, from what each needs and what feeds it."""

import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .node import Group, Node, Packed, Subgraph, Workflow, inputs_of, socket_type
from .project import PACK, VERSION
from .workflow import CONTROLS, ENTRY, EXIT, LINK, Json, default_value, is_widget

WIDTH, GAP, TOP = 340, 60, 140
COLOUR = "#3f789e"
CATEGORY = "Consistent Video"
FIRST_INSIDE = 101  # number of a subgraph's first node: in a workflow, no two nodes have the same
CORE = "comfy-core"  # the registry's id of ComfyUI's own nodes
QWEN_IMAGE, Z_IMAGE = "Comfy-Org/Qwen-Image_ComfyUI", "Comfy-Org/z_image"
SOURCES = {  # files that workflows name: their folder below models, the repository of Hugging Face, the folder there
    "v1-5-pruned-emaonly-fp16.safetensors": ("checkpoints", "Comfy-Org/stable-diffusion-v1-5-archive", ""),
    "sd_xl_base_1.0.safetensors": ("checkpoints", "stabilityai/stable-diffusion-xl-base-1.0", ""),
    "control_v11p_sd15_canny_fp16.safetensors": ("controlnet", "comfyanonymous/ControlNet-v1-1_fp16_safetensors", ""),
    "flux1-dev.safetensors": ("diffusion_models", "Comfy-Org/flux1-dev", ""),
    "clip_l.safetensors": ("text_encoders", "comfyanonymous/flux_text_encoders", ""),
    "t5xxl_fp16.safetensors": ("text_encoders", "comfyanonymous/flux_text_encoders", ""),
    "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors": ("checkpoints", "Comfy-Org/stable-diffusion-3.5-fp8", ""),
    "qwen_image_fp8_e4m3fn.safetensors": ("diffusion_models", QWEN_IMAGE, "split_files/diffusion_models/"),
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": ("text_encoders", QWEN_IMAGE, "split_files/text_encoders/"),
    "qwen_image_vae.safetensors": ("vae", QWEN_IMAGE, "split_files/vae/"),
    "z_image_bf16.safetensors": ("diffusion_models", Z_IMAGE, "split_files/diffusion_models/"),
    "qwen_3_4b.safetensors": ("text_encoders", "Comfy-Org/z_image_turbo", "split_files/text_encoders/"),
    "ae.safetensors": ("vae", "Comfy-Org/Lumina_Image_2.0_Repackaged", "split_files/vae/"),
}
FILES = ("file", "ckpt_name", "unet_name")  # inputs that choose one
SHOWN = {  # pixels of what a node shows below its inputs
    "LoadVideo": WIDTH,
    "ConsistentVideo_LoadDemoClip": WIDTH,
    "SaveVideo": WIDTH,
    "PreviewImage": 240,
    "PreviewAny": 200,
    "ConsistentVideo_OneShotTune": 260,  # preview, with the state of the tuning
}


@dataclass
class Canvas:
    """Nodes in the editor's form.

    Attributes:
        nodes: all of them, with the notes above the columns.
        forms: the described nodes by title.
        frames: the columns' groups.
        links: all links so far.
    """

    nodes: list[Json] = field(default_factory=list)
    forms: dict[str, Json] = field(default_factory=dict)
    frames: list[Json] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)

    def fill(self, workflow: Workflow, infos: Json, core: str, first: int = 1) -> None:
        """Place the nodes and groups of a workflow, numbered from `first`, not yet linked."""
        count = sum(isinstance(part, Node) for part in workflow)
        for part in workflow:
            if isinstance(part, Group):
                x, y = len(self.frames) * (WIDTH + 2 * GAP), TOP
                bounding = [x - 20, TOP - 70, WIDTH + 40, 70]
                self.frames.append({"title": part.title, "bounding": bounding, "color": COLOUR})
                if part.note:
                    self.nodes.append(note(first + count + len(self.frames) - 1, part.note, x))
            else:
                form = place(part, first + len(self.forms), infos[part.kind], x, y, core)
                self.nodes.append(form)
                self.forms[part.title] = form
                y += form["size"][1] + GAP
                self.frames[-1]["bounding"][3] = y - TOP + 70

    def link(self, workflow: Workflow, outside: Mapping[str, Json] = MappingProxyType({})) -> None:
        """Link the nodes of a workflow to those that feed them, here or outside."""
        sources = {**outside, **self.forms}
        for node in (part for part in workflow if isinstance(part, Node)):
            form = self.forms[node.title]
            with_widget = {entry["name"] for entry in form["inputs"] if "widget" in entry}
            for name, given in node.inputs.items():
                if isinstance(given, tuple) or name not in with_widget:
                    title, output = given if isinstance(given, tuple) else (given, None)
                    self.connect(sources[title], output, form, name)

    def connect(self, source: Json, output: str | None, target: Json, name: str) -> None:
        """Link an output, of a name or else the first of the input's type, to an input, which may be a widget's.

        Raises:
            KeyError: there is no such input.
            ValueError: there is no such output.
        """
        found = next((pair for pair in enumerate(target["inputs"]) if pair[1]["name"] == name), None)
        if found is None:
            raise KeyError(f"{target['type']} has no input {name}")
        position, entry = found
        named = [port["name" if output else "type"] for port in source["outputs"]]
        slot, number = named.index(output or entry["type"]), len(self.links) + 1
        entry["link"] = number
        source["outputs"][slot]["links"].append(number)
        self.links.append([number, source["id"], slot, target["id"], position, entry["type"]])


def widgets(info: Json, values: Json) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield (name, socket type, widget values) of a node type's inputs that have a widget."""
    for name, kind, options in inputs_of(info):
        if is_widget(kind, options):
            value = values.get(name, default_value(kind, options))
            control = [CONTROLS[0]] if options.get("control_after_generate") else []
            yield name, socket_type(kind), [value, *control]


def sockets(info: Json) -> Iterator[tuple[str, str]]:
    """Yield (name, type) of a node type's inputs that are mere sockets."""
    for name, kind, options in inputs_of(info):
        if not is_widget(kind, options):
            yield name, str(kind)


def height(info: Json) -> int:
    """Return a node's height in the editor, generously."""
    lines = max(len(list(sockets(info))), len(info["output"])) + sum(len(w[2]) for w in widgets(info, {}))
    prompt = any(options.get("multiline") for _, _, options in inputs_of(info))
    return 50 + 26 * lines + 70 * prompt + SHOWN.get(info["name"], 0)


def describe_origin(kind: str, info: Json, values: Sequence[Any], core: str) -> Json:
    """Return the properties by which the editor finds what a node of a workflow lacks: its pack and its files.

    Args:
        kind: node type.
        info: the server's description of it.
        values: its widget values.
        core: the server's version.
    """
    is_ours = info["python_module"].startswith("custom_nodes.")
    pack, version = (PACK, VERSION) if is_ours else (CORE, core)
    models = [
        {"name": name, "url": f"https://huggingface.co/{owner}/resolve/main/{within}{name}", "directory": folder}
        for name, (folder, owner, within) in SOURCES.items()
        if name in values
    ]
    return {"Node name for S&R": kind, "cnr_id": pack, "ver": version, **({"models": models} if models else {})}


def build(workflow: Workflow, object_info: Json, core: str = "unknown") -> Json:
    """Return a workflow in the editor's form.

    Args:
        workflow: its description.
        object_info: the server's description of its nodes, by type.
        core: the server's version.

    Raises:
        KeyError: a description names a node or input that does not exist.
        ValueError: it names an output that does not exist.
    """
    packed = {part.kind: part.subgraph for part in workflow if isinstance(part, Packed)}
    canvas = Canvas()
    infos = object_info | {kind: one.describe(object_info) for kind, one in packed.items()}
    canvas.fill(workflow, infos, core)
    canvas.link(workflow)
    definitions = [define(subgraph, object_info, core) for subgraph in packed.values()]
    return {
        "last_node_id": max(form["id"] for form in canvas.nodes),
        "last_link_id": len(canvas.links),
        "nodes": canvas.nodes,
        "links": canvas.links,
        "groups": canvas.frames,
        "config": {},
        "extra": describe_app(canvas, infos, packed.keys()) if packed else {},
        "version": 0.4,
        **({"definitions": {"subgraphs": definitions}} if definitions else {}),
    }


def describe_app(canvas: Canvas, infos: Json, packed: Container[str]) -> Json:
    """Return what the editor's app mode shows of a workflow: files to choose, subgraphs' dials, and what is saved."""
    nodes = canvas.forms.values()
    saves = [form["id"] for form in nodes if infos[form["type"]].get("output_node")]
    asked = [
        [form["id"], entry["name"]]
        for form in nodes
        for entry in form["inputs"]
        if "widget" in entry and (entry["name"] in FILES or form["type"] in packed)
    ]
    return {"linearData": {"inputs": asked, "outputs": saves}} if saves else {}


def define(subgraph: Subgraph, object_info: Json, core: str) -> Json:
    """Return the definition of a subgraph in the editor's form."""
    info = subgraph.describe(object_info)
    canvas = Canvas()
    canvas.fill(subgraph.parts, object_info, core, FIRST_INSIDE)
    entries: list[Json] = [{"name": name, "type": socket_type(kind), "links": []} for name, kind, _ in inputs_of(info)]
    exits: list[Json] = [
        {"name": name, "type": kind, "link": None}
        for name, kind in zip(info["output_name"], info["output"], strict=True)
    ]
    # What a node outside feeds, seen from within: the entries that are its own, at their places among all.
    fed = {title for title, _ in subgraph.inputs.values()}
    other: Json = {"name": "", "type": ""}
    own = {name: title for name, (title, _) in subgraph.inputs.items()}
    outside = {
        title: {"id": ENTRY, "outputs": [port if own.get(port["name"]) == title else other for port in entries]}
        for title in fed
    }
    canvas.link(subgraph.parts, outside)
    for dial, (title, name) in subgraph.dials.items():
        canvas.connect({"id": ENTRY, "outputs": entries}, dial, canvas.forms[title], name)
    for port, (title, output) in subgraph.outputs.items():
        canvas.connect(canvas.forms[title], output, {"id": EXIT, "inputs": exits}, port)
    right = len(canvas.frames) * (WIDTH + 2 * GAP)
    return {
        "id": subgraph.id,
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": max(form["id"] for form in canvas.nodes),
            "lastLinkId": len(canvas.links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": subgraph.name,
        "description": subgraph.description,
        "category": CATEGORY,
        "inputNode": {"id": ENTRY, "bounding": [-WIDTH, TOP, 160, 40 + 20 * len(entries)]},
        "outputNode": {"id": EXIT, "bounding": [right, TOP, 160, 40 + 20 * len(exits)]},
        "inputs": [describe_port(subgraph, port, port["links"]) for port in entries],
        "outputs": [describe_port(subgraph, port, [port["link"]]) for port in exits],
        "widgets": [],
        "nodes": canvas.nodes,
        "groups": canvas.frames,
        "links": [dict(zip(LINK, link, strict=True)) for link in canvas.links],
        "extra": {},
    }


def describe_port(subgraph: Subgraph, port: Json, links: list[int]) -> Json:
    """Return an input or output of a subgraph's definition."""
    name = port["name"]
    number = uuid.uuid5(uuid.UUID(subgraph.id), f"{name} {port['type']}")
    return {"id": str(number), "name": name, "type": port["type"], "linkIds": links}


def place(node: Node, number: int, info: Json, x: int, y: int, core: str) -> Json:
    """Return a node in the editor's form, its inputs not yet linked."""
    values = {name: value for name, value in node.inputs.items() if not isinstance(value, tuple)}
    named = list(widgets(info, values))
    inputs: list[Json] = [{"name": name, "type": kind, "link": None} for name, kind in sockets(info)]
    inputs += [{"name": name, "type": kind, "widget": {"name": name}, "link": None} for name, kind, _ in named]
    unknown = node.inputs.keys() - {entry["name"] for entry in inputs}
    if unknown:
        raise KeyError(f"{node.kind} has no input {', '.join(sorted(unknown))}")
    outputs = [
        {"name": name, "type": kind, "links": [], "slot_index": slot}
        for slot, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True))
    ]
    written = [value for *_, values in named for value in values]
    return {
        "id": number,
        "type": node.kind,
        "title": node.title,
        "pos": [x, y],
        "size": [WIDTH, height(info)],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": describe_origin(node.kind, info, written, core),
        "widgets_values": written,
    }


def note(number: int, text: str, x: int) -> Json:
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
