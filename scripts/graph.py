"""Build workflows in the editor's form: nodes in titled columns, from what each needs and what feeds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .workflow import CONTROLS, Json, default_value, is_widget

WIDTH, GAP, TOP = 340, 60, 140
COLOUR = "#3f789e"
SHOWN = {  # pixels of what a node shows below its inputs
    "LoadVideo": WIDTH,
    "SaveVideo": WIDTH,
    "PreviewImage": 240,
    "PreviewAny": 200,
    "ConsistentVideo_OneShotTune": 260,  # preview, with the state of the tuning
}


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
    values: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A titled column of nodes, with an optional note above them."""

    title: str
    nodes: list[Node]
    note: str = ""


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


def build(groups: list[Group], object_info: Json) -> Json:
    """Return a workflow in the editor's form.

    Raises:
        KeyError: a description names a node or input that does not exist.
        ValueError: it names an output that does not exist.
    """
    described = [node for group in groups for node in group.nodes]
    ids = {node.title: number for number, node in enumerate(described, start=1)}
    kinds = {node.title: node.kind for node in described}
    nodes, frames = [], []
    for column, group in enumerate(groups):
        x, y = column * (WIDTH + 2 * GAP), TOP
        if group.note:
            nodes.append(note(len(ids) + column + 1, group.note, x))
        for node in group.nodes:
            nodes.append(place(node, ids[node.title], object_info[node.kind], x, y))
            y += nodes[-1]["size"][1] + GAP
        frames.append({"title": group.title, "bounding": [x - 20, TOP - 70, WIDTH + 40, y - TOP + 70], "color": COLOUR})
    forms = {form["id"]: form for form in nodes}
    links: list[list[Any]] = []
    for node in described:
        for name, (source, output) in node.links.items():
            slot = object_info[kinds[source]]["output_name"].index(output)
            links.append(connect(len(links) + 1, forms[ids[source]], slot, forms[ids[node.title]], name))
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


def place(node: Node, number: int, info: Json, x: int, y: int) -> Json:
    """Return a node in the editor's form, its inputs not yet linked."""
    named = list(widgets(info, node.values))
    inputs: list[Json] = [{"name": name, "type": kind, "link": None} for name, kind in sockets(info)]
    inputs += [{"name": name, "type": kind, "widget": {"name": name}, "link": None} for name, kind, _ in named]
    unknown = {*node.links, *node.values} - {entry["name"] for entry in inputs}
    if unknown:
        raise KeyError(f"{node.kind} has no input {', '.join(sorted(unknown))}")
    outputs = [
        {"name": name, "type": kind, "links": [], "slot_index": slot}
        for slot, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True))
    ]
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
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": [value for *_, values in named for value in values],
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
