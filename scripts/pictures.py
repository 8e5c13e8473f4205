"""What the pictures of the editor show, which build_pictures.py draws."""

from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .workflow import NOTES, Json

MAIN = "demo_edit"  # the workflow that the tour runs
TOUR = {  # nodes that each of its pictures shows
    "clip": ("Source clip", "Edited prompt"),
    "model": ("Patch", "Motion", "Relation"),
    "noise": ("Invert", "Edit"),
    "result": ("Save edit", "Save reconstruction", "Save autoencoder round trip"),
}


def list_pictures(root: Path) -> Iterator[tuple[str, str, Callable[[Json], Any]]]:
    """Yield each picture, the JSON file that it shows something of, and what tells of its content what is shown."""
    for path in sorted((root / "workflows").glob("*.json")):
        yield f"workflows/{path.stem}.jpg", f"workflows/{path.name}", shown_of_result
        yield f"docs/graphs/{path.stem}.webp", f"workflows/{path.name}", shown_of_graph
    for path in sorted((root / "docs").glob("tour_*.webp")):
        titles = TOUR[path.stem.removeprefix("tour_")]
        yield f"docs/{path.name}", f"workflows/{MAIN}.json", partial(shown_of_nodes, titles=titles)
    for path in sorted((root / "web" / "docs").glob("*.webp")):
        yield f"web/docs/{path.name}", "locales/en/nodeDefs.json", partial(shown_of_texts, kind=path.stem)


def shown_of_result(workflow: Json) -> list[list[Any]]:
    """Return what a picture of what comes of a workflow depends on: its nodes with their values, but for notes."""
    nodes = [node for node in workflow["nodes"] if node["type"] not in NOTES]
    packed = workflow.get("definitions", {}).get("subgraphs", [])
    nodes += [node for subgraph in packed for node in subgraph["nodes"]]
    return [[node["type"], node.get("title"), node.get("widgets_values")] for node in nodes]


def shown_of_graph(workflow: Json) -> list[list[Any]]:
    """Return what a picture of a whole workflow shows."""
    return [[node.get(key) for key in ("type", "title", "pos", "size", "widgets_values")] for node in workflow["nodes"]]


def shown_of_nodes(workflow: Json, titles: Container[str]) -> list[list[Any]]:
    """Return what a picture of some nodes of a workflow shows."""
    return [[node["title"], node["widgets_values"]] for node in workflow["nodes"] if node.get("title") in titles]


def shown_of_texts(texts: Json, kind: str) -> list[Any]:
    """Return what a picture of a node alone shows of its texts: the names."""
    sides = (texts[kind].get(side, {}).values() for side in ("inputs", "outputs"))
    return [texts[kind]["display_name"], *([part["name"] for part in parts] for parts in sides)]
