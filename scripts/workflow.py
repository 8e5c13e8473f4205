"""Turn a workflow as the ComfyUI editor saves it into a prompt as the server runs it, and change its values.

A workflow (UI form) has nodes with positional widget values and a list of links. A prompt (API form) maps a node id to
`{"class_type", "inputs", "_meta": {"title"}}`, where an input is a value or a link `[node id, output index]`.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
REROUTE = "Reroute"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3")
SEEDS = ("seed", "noise_seed")
ENTRY, EXIT = -10, -20  # what stands for a subgraph's inputs and outputs among its nodes
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")  # of a subgraph, in a workflow's order
CONTROLS = ("fixed", "increment", "decrement", "randomize")

Json = dict[str, Any]


class WorkflowError(ValueError):
    """A workflow or a value for it does not fit the server's nodes."""


def to_prompt(workflow: Json, object_info: Json) -> Json:
    """Convert a workflow into a prompt.

    Notes are left out, reroutes and bypassed nodes are followed to what feeds them, muted nodes feed nothing. Nodes of
    a subgraph are called after the node that it is, such as 5:101.

    Args:
        workflow: UI form.
        object_info: the server's description of its nodes, by type.
    Returns:
        The prompt; every node's title is its own or else the type's display name.
    Raises:
        WorkflowError: a node type that the server does not know.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: tuple(link[1:3]) for link in workflow["links"]}
    subgraphs = {each["id"]: each for each in workflow.get("definitions", {}).get("subgraphs", [])}
    prompt: Json = {}
    unpacked: dict[tuple[str, int], Any] = {}  # what the outputs of subgraphs are
    for node in nodes.values():
        if node["type"] in (*NOTES, REROUTE) or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] in subgraphs:
            sources = [find_source(entry.get("link"), nodes, links) for entry in node["inputs"]]
            inside, outputs = unpack(node, sources, subgraphs[node["type"]], object_info)
            prompt |= inside
            unpacked |= outputs
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
    return relink(prompt, lambda key, slot: unpacked.get((key, slot), [key, slot]))


def unpack(
    node: Json, sources: list[tuple[int, int] | None], subgraph: Json, object_info: Json
) -> tuple[Json, dict[tuple[str, int], Any]]:
    """Return the nodes of a subgraph as a prompt, and what its outputs are.

    Args:
        node: that is the subgraph, in the workflow.
        sources: the output that feeds each of its inputs, None where none does.
        subgraph: its definition.
        object_info: the server's description of its nodes, by type.
    """
    values = deque(node.get("widgets_values") or [])
    given: dict[int, Any] = {}
    for slot, (entry, source) in enumerate(zip(node["inputs"], sources, strict=True)):
        value = values.popleft() if "widget" in entry and values else None
        if source or value is not None:
            given[slot] = [str(source[0]), source[1]] if source else value

    def from_outside(key: str, slot: int) -> Any:
        return given[slot] if key == str(ENTRY) else [f"{node['id']}:{key}", slot]

    links = [[link[key] for key in LINK] for link in subgraph["links"]]
    links = [link for link in links if link[1] != ENTRY or link[2] in given]
    inside = relink(to_prompt({**subgraph, "links": links}, object_info), from_outside)
    nodes = {each["id"]: each for each in subgraph["nodes"]}
    origins = {link[0]: tuple(link[1:3]) for link in links}
    ends = {link[4]: find_source(link[0], nodes, origins) for link in links if link[3] == EXIT}
    outputs = {(str(node["id"]), slot): from_outside(str(end[0]), end[1]) for slot, end in ends.items() if end}
    return {f"{node['id']}:{key}": each for key, each in inside.items()}, outputs


def relink(prompt: Json, give: Callable[[str, int], Any]) -> Json:
    """Return a prompt with another link, or a value, in place of each link."""
    return {
        key: {
            **node,
            "inputs": {name: give(*value) if is_link(value) else value for name, value in node["inputs"].items()},
        }
        for key, node in prompt.items()
    }


def is_link(value: Any) -> bool:
    """Whether an input of a prompt is a link, [node id, output index], and not a value of its own."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


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
    if link not in links:
        return None
    origin, slot = links[link]
    if origin == ENTRY:
        return origin, slot
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
