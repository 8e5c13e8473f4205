"""Build workflows in the editor's form: nodes in titled columns, from what each needs and what feeds it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .project import PACK, VERSION
from .workflow import CONTROLS, Json, default_value, is_widget

WIDTH, GAP, TOP = 340, 60, 140
COLOUR = "#3f789e"
CORE = "comfy-core"  # the registry's id of ComfyUI's own nodes
SOURCES = {  # files that workflows name: their folder below models, and the repository of Hugging Face that has them
    "v1-5-pruned-emaonly-fp16.safetensors": ("checkpoints", "Comfy-Org/stable-diffusion-v1-5-archive"),
    "control_v11p_sd15_canny_fp16.safetensors": ("controlnet", "comfyanonymous/ControlNet-v1-1_fp16_safetensors"),
}
SHOWN = {  # pixels of what a node shows below its inputs
    "LoadVideo": WIDTH,
    "SaveVideo": WIDTH,
    "PreviewImage": 240,
    "PreviewAny": 200,
    "ConsistentVideo_OneShotTune": 260,  # preview, with the state of the tuning
}


class Node:
    """A node of a workflow.

    Args:
        title: unique in its workflow.
        kind: node type.
        inputs: by name. A socket takes the title of the node that feeds it by its first output of the socket's type;
            (title, name of the output) is a link to that very output, also into a widget; all else is a widget's value.
    """

    def __init__(self, title: str, kind: str, /, **inputs: Any):
        self.title, self.kind, self.inputs = title, kind, inputs

    def but(self, **inputs: Any) -> "Node":
        """Return the node with other or further inputs."""
        return Node(self.title, self.kind, **{**self.inputs, **inputs})


@dataclass(frozen=True)
class Group:
    """The head of a titled column of nodes, with an optional note above it."""

    title: str
    note: str = ""


Workflow = Sequence[Group | Node]  # columns, each a head and its nodes


def inputs_of(info: Json) -> Iterator[tuple[str, str | list, Json]]:
    """Yield (name, type, options) of a node type's inputs in the editor's order."""
    for section in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(section, {}).items():
            yield name, kind, rest[0] if rest else {}


def widgets(info: Json, values: Json) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield (name, socket type, widget values) of a node type's inputs that have a widget."""
    for name, kind, options in inputs_of(info):
        if is_widget(kind, options):
            value = values.get(name, default_value(kind, options))
            control = [CONTROLS[0]] if options.get("control_after_generate") else []
            yield name, "COMBO" if isinstance(kind, list) else kind, [value, *control]


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
        {"name": name, "url": f"https://huggingface.co/{owner}/resolve/main/{name}", "directory": folder}
        for name, (folder, owner) in SOURCES.items()
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
    described = {node.title: node for node in workflow if isinstance(node, Node)}
    ids = {title: number for number, title in enumerate(described, start=1)}
    nodes: list[Json] = []
    frames: list[Json] = []
    for part in workflow:
        if isinstance(part, Group):
            x, y = len(frames) * (WIDTH + 2 * GAP), TOP
            frames.append({"title": part.title, "bounding": [x - 20, TOP - 70, WIDTH + 40, 70], "color": COLOUR})
            if part.note:
                nodes.append(note(len(ids) + len(frames), part.note, x))
        else:
            nodes.append(place(part, ids[part.title], object_info[part.kind], x, y, core))
            y += nodes[-1]["size"][1] + GAP
            frames[-1]["bounding"][3] = y - TOP + 70
    forms = {form["id"]: form for form in nodes}
    links: list[list[Any]] = []
    for node in described.values():
        kinds = dict(sockets(object_info[node.kind]))
        for name, given in node.inputs.items():
            if name in kinds or isinstance(given, tuple):
                title, output = given if isinstance(given, tuple) else (given, None)
                info = object_info[described[title].kind]
                slot = info["output_name"].index(output) if output else info["output"].index(kinds[name])
                links.append(connect(len(links) + 1, forms[ids[title]], slot, forms[ids[node.title]], name))
    return {
        "last_node_id": max(forms),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": frames,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


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


def connect(number: int, source: Json, slot: int, target: Json, name: str) -> list[Any]:
    """Link an output to an input, which may be a widget's, in both nodes; return the link."""
    position, entry = next((i, entry) for i, entry in enumerate(target["inputs"]) if entry["name"] == name)
    entry["link"] = number
    source["outputs"][slot]["links"].append(number)
    return [number, source["id"], slot, target["id"], position, entry["type"]]


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
