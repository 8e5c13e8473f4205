"""The nodes' texts in the form of the editor's translations.

A nodeDefs.json maps a node's id to its display name and description and to the name and tooltip of each input, by id,
and of each output, by index. The nodeCategories of a main.json map each part of a menu path to what is shown.
"""

from collections.abc import Sequence
from typing import Any

from .environment import ROOT

LOCALES, MODELS = ROOT / "locales", ROOT / "docs" / "models.md"
Json = dict[str, Any]


def list_inputs(info: Json) -> Json:
    """Return a node's inputs by id, each [type, options], from the host's description of the node."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def describe_node(info: Json) -> Json:
    """Return a node's texts, without parts that would be empty, from the host's description in its object_info."""
    inputs = {
        key: {"name": options.get("display_name") or key, "tooltip": options["tooltip"]}
        for key, (_, options) in list_inputs(info).items()
    }
    pairs = zip(info["output_name"], info["output_tooltips"], strict=True)
    outputs = {str(index): {"name": name, "tooltip": tooltip} for index, (name, tooltip) in enumerate(pairs)}
    texts = {"display_name": info["display_name"], "description": info["description"]}
    return texts | ({"inputs": inputs} if inputs else {}) | ({"outputs": outputs} if outputs else {})


def english(infos: Sequence[Json]) -> dict[str, Json]:
    """Return the content of the English files by name, from the host's descriptions of the nodes."""
    nodes = {info["name"]: describe_node(info) for info in infos}
    parts = sorted({part for info in infos for part in info["category"].split("/")})
    return {"main.json": {"nodeCategories": {part: part for part in parts}}, "nodeDefs.json": nodes}


def families_table(families: Sequence[Any]) -> str:
    """Return which family of models takes which parts of the pack, as Markdown."""
    lines = [
        "| Model | Inversion, sampling, relation | Attention across frames | Temporal modules, tuning, controls | |",
        "|---|---|---|---|---|",
    ]
    for family in families:
        said = ["yes", ", ".join(family.attentions), "yes" if family.parts else "no", family.lacks]
        lines.append(f"| {' | '.join([family.name, *said])} |")
    return "\n".join(lines)
