"""Turn a workflow as the ComfyUI editor saves it into a prompt as the server runs it, and change its values.

A workflow (UI form) has nodes with positional widget values and a list of links. A prompt (API form) maps a node id to
`{"class_type", "inputs", "_meta": {"title"}}`, where an input is a value or a link `[node id, output index]`.
"""

from collections import deque
from typing import Any

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
REROUTE = "Reroute"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3")
SEEDS = ("seed", "noise_seed")
CONTROLS = ("fixed", "increment", "decrement", "randomize")

Json = dict[str, Any]


class WorkflowError(ValueError):
    """A workflow or a value for it does not fit the server's nodes."""


def to_prompt(workflow: Json, object_info: Json) -> Json:
    """Convert a workflow into a prompt.

    Notes are left out, reroutes and bypassed nodes are followed to what feeds them, muted nodes feed nothing.

    Args:
        workflow: UI form, without subgraphs.
        object_info: the server's description of its nodes, by type.
    Returns:
        The prompt; every node's title is its own or else the type's display name.
    Raises:
        WorkflowError: a node type that the server does not know.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: tuple(link[1:3]) for link in workflow["links"]}
    prompt = {}
    for node in nodes.values():
        if node["type"] in (*NOTES, REROUTE) or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise WorkflowError(f"the server has no node type {node['type']!r} (node {node['id']})")
        info = object_info[node["type"]]
        inputs = take_values(info["input"], deque(node.get("widgets_values") or []))
        for entry in node.get("inputs", []):
            source = find_source(entry.get("link"), nodes, links)
            if source:
                inputs[entry["name"]] = [str(source[0]), source[1]]
        title = node.get("title") or info.get("display_name") or node["type"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def take_values(inputs: Json, values: deque, prefix: str = "") -> Json:
    """Name a node's positional widget values, in the order of its description.

    Args:
        inputs: "required" and "optional" inputs, each `name: [type, options]`.
        values: what is left of the node's widget values; those used are taken off its front. Where none is left the
            input's default stands, as in the editor.
        prefix: of the inputs that belong to one choice of a dynamic combo.
    Returns:
        Values by input name.
    """
    named: Json = {}
    for section in ("required", "optional"):
        for name, spec in inputs.get(section, {}).items():
            kind, options = spec[0], spec[1] if len(spec) > 1 else {}
            if not is_widget(kind, options):
                continue
            value = values.popleft() if values else default_value(kind, options)
            named[prefix + name] = value
            if values and values[0] in CONTROLS and (name in SEEDS or options.get("control_after_generate")):
                values.popleft()
            if kind == "COMFY_DYNAMICCOMBO_V3":
                choices = {option["key"]: option["inputs"] for option in options["options"]}
                if value not in choices:
                    raise WorkflowError(f"{prefix}{name} is {value!r}, not one of {', '.join(choices)}")
                named |= take_values(choices[value], values, f"{prefix}{name}.")
    return named


def is_widget(kind: str | list, options: Json) -> bool:
    """Whether an input has a widget, and so a value of its own, and is not a mere socket."""
    is_choice = isinstance(kind, list)
    return not options.get("forceInput") and (is_choice or options.get("widgetType", kind) in WIDGETS)


def default_value(kind: str | list, options: Json) -> Any:
    """Return the value with which the editor fills a new widget."""
    choices = kind if isinstance(kind, list) else options.get("options")
    if "default" in options or not choices:
        return options.get("default", "")
    return choices[0]["key"] if isinstance(choices[0], dict) else choices[0]


def find_source(link: int | None, nodes: dict, links: dict) -> tuple[int, int] | None:
    """Follow a link through reroutes and bypassed nodes to the output that feeds it, (node id, index), if any does."""
    if link is None:
        return None
    origin, slot = links[link]
    node = nodes[origin]
    if node["type"] == REROUTE:
        return find_source(node["inputs"][0].get("link"), nodes, links)
    if node.get("mode", 0) == MUTED:
        return None
    if node.get("mode", 0) != BYPASSED:
        return origin, slot
    kind, inputs = node["outputs"][slot]["type"], node.get("inputs", [])
    alike = [entry for entry in [*inputs[slot : slot + 1], *inputs] if entry["type"] == kind]
    return find_source(alike[0].get("link"), nodes, links) if alike else None


def find_node(prompt: Json, name: str) -> str:
    """Return the id of the one node with a title, or else of the one node of a type.

    Raises:
        WorkflowError: no node has it, or several.
    """
    titled = [key for key, node in prompt.items() if node["_meta"]["title"] == name]
    found = titled or [key for key, node in prompt.items() if node["class_type"] == name]
    if len(found) != 1:
        titles = ", ".join(sorted(node["_meta"]["title"] for node in prompt.values()))
        raise WorkflowError(f"{len(found)} nodes are called {name!r}; the workflow has {titles}")
    return found[0]


def set_values(prompt: Json, values: dict[tuple[str, str], Any]) -> Json:
    """Return a prompt with some inputs set.

    Args:
        prompt: API form; it stays as it is.
        values: new values by (title or type of the node, name of the input).
    Raises:
        WorkflowError: there is no such node, or it has no such input.
    """
    changed = {key: {**node, "inputs": dict(node["inputs"])} for key, node in prompt.items()}
    for (name, key), value in values.items():
        inputs = changed[find_node(prompt, name)]["inputs"]
        if key not in inputs:
            raise WorkflowError(f"{name!r} has no input {key!r}, only {', '.join(inputs)}")
        inputs[key] = value
    return changed


def replace_node(prompt: Json, name: str, class_type: str, inputs: Json) -> Json:
    """Return a prompt with one node replaced by another whose outputs have the same order; its title stays."""
    key = find_node(prompt, name)
    return {**prompt, key: {"class_type": class_type, "inputs": inputs, "_meta": prompt[key]["_meta"]}}
