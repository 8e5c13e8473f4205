"""Draw what the documents show of the editor, from the real one: `python scripts/build_pictures.py`.

What comes of each workflow, for the template browser, by a run with the demo model; its graph, for the docs; each node,
for its help page; and the main graph's run, for the tour. Names draw results and graphs of those workflows alone.
Results that are as they should be are left, so that a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import environment

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistent_video.scripts.browser import Box, Editor
    from consistent_video.scripts.host import Host

WORKFLOWS, HELP, DOCS = (environment.ROOT / name for name in ("workflows", "web/docs", "docs"))
GRAPHS = DOCS / "graphs"
BASE = environment.ROOT / "output" / "pictures"  # of the server; keeps what workflows save for others
PARTS = ("results", "graphs", "nodes", "tour")
PLACES = ((WORKFLOWS, "json"), (HELP, "md"))  # of what has a picture, by its name
WINDOW, TALL = (1600, 1200), (760, 1500)  # pixels
CANVAS = "#141414"
HEADROOM = 34  # of a node, for the badge above it
RUN_PATIENCE = 1_800_000  # milliseconds


def union(boxes: Iterable[Box]) -> Box:
    """Return the box about all boxes."""
    left, top, right, bottom = zip(*((x, y, x + w, y + h) for x, y, w, h in boxes), strict=True)
    return min(left), min(top), max(right) - min(left), max(bottom) - min(top)


def draw_graphs(editor: Editor, names: Iterable[str]) -> None:
    """Draw the whole graph of each workflow, for the docs."""
    GRAPHS.mkdir(exist_ok=True)
    for name in names:
        editor.open(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))
        # The red of files that are the user's own.
        editor.page.evaluate("app.graph.nodes.forEach(node => { node.has_errors = false })")
        shown = editor.show(union(box for _, box in [*editor.boxes("nodes"), *editor.boxes("groups")]))
        editor.picture(shown).save(GRAPHS / f"{name}.webp", quality=60, method=6)


def list_in_docs() -> None:
    """Write the list of all results and graphs into the docs' page of workflows."""
    from consistent_video.scripts.regions import write_region

    rows = [
        f'| `{path.stem}` | <img src="../workflows/{path.stem}.jpg" width="240" alt="What comes of {path.stem}"> '
        f'| <a href="graphs/{path.stem}.webp"><img src="graphs/{path.stem}.webp" width="420" alt="Its graph"></a> |'
        for path in sorted(WORKFLOWS.glob("*.json"))
    ]
    write_region(
        "pictures", "\n".join(["| Workflow | Result | Graph |", "|---|---|---|", *rows]), DOCS / "workflows.md"
    )


def draw_nodes(editor: Editor, names: dict[str, str]) -> None:
    """Draw each node alone, with the values that it has from the start, for its help page."""
    for kind, name in names.items():
        editor.open_node(kind)
        draw_node(editor, editor.box(name)).save(HELP / f"{kind}.webp", quality=80, method=6)


def draw_node(editor: Editor, box: Box) -> Image:
    """Return a picture of a node with the badge above it."""
    x, y, width, height = box
    return editor.picture(editor.show((x, y - HEADROOM, width, height + HEADROOM), 8))


def draw_tour(editor: Editor) -> None:
    """Run the main graph as a user does, and draw the nodes that the tour speaks of."""
    from PIL import Image

    from consistent_video.scripts.pictures import MAIN, TOUR

    editor.open(json.loads((WORKFLOWS / f"{MAIN}.json").read_text(encoding="utf-8")))
    editor.page.evaluate("app.queuePrompt(0)")
    for title in TOUR["result"]:
        editor.show(editor.box(title))
        editor.wait_for_video(title, RUN_PATIENCE)
    for step, titles in TOUR.items():
        pictures = [draw_node(editor, editor.box(title)) for title in titles]
        width, height = sum(picture.width for picture in pictures), max(picture.height for picture in pictures)
        row = Image.new("RGB", (width, height), CANVAS)
        for number, picture in enumerate(pictures):
            row.paste(picture, (sum(before.width for before in pictures[:number]), 0))
        row.save(DOCS / f"tour_{step}.webp", quality=80, method=6)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="workflows and node ids to draw, e.g. edit (default all)")
    only = "kind of pictures to draw, may be repeated (default all; of names, all but the tour)"
    parser.add_argument("--only", choices=PARTS, action="append", help=only)
    parser.add_argument("--again", action="store_true", help="draw results as well that are as they should be")
    return parser


def main() -> None:
    """Draw the pictures that the command line asks for."""
    parser = make_parser()
    options = parser.parse_args()
    flows, pages = (sorted(path.stem for path in folder.glob(f"*.{end}")) for folder, end in PLACES)
    if unknown := set(options.names) - {*flows, *pages}:
        parser.error(f"no workflow or node is called {', '.join(sorted(unknown))}; there are {', '.join(flows)}")
    if options.names:
        flows, pages = ([name for name in names if name in options.names] for names in (flows, pages))
    parts = options.only or (PARTS[:-1] if options.names else PARTS)
    environment.enter(__file__, sys.argv[1:])
    environment.register_pack()
    from consistent_video.scripts.host import Host, device_arguments
    from consistent_video.scripts.results import draw_results

    tree = environment.comfyui_tree()
    if "results" in parts and flows:
        with Host(tree, BASE, device_arguments()) as host:
            draw_results(host, WORKFLOWS, flows, options.again)
    if {*parts} != {"results"}:
        with tempfile.TemporaryDirectory() as base, Host(tree, Path(base), device_arguments()) as host:
            draw_editor(host, flows, pages, parts)


def draw_editor(host: Host, flows: Sequence[str], pages: Sequence[str], parts: Container[str]) -> None:
    """Draw the pictures of the editor: graphs of workflows, nodes, and the main graph's run."""
    from consistent_video.scripts.browser import Editor

    for clip in (environment.ROOT / "demo" / "clips").glob("*.mp4"):
        shutil.copy(clip, host.base / "input")
    names = {kind: entry["display_name"] for kind, entry in host.object_info().items() if kind in pages}
    if "graphs" in parts and flows:
        with Editor(host.address, WINDOW) as editor:
            editor.hide_menus()
            draw_graphs(editor, flows)
        list_in_docs()
    if ("nodes" in parts and names) or "tour" in parts:
        with Editor(host.address, TALL) as editor:
            editor.hide_menus()
            if "nodes" in parts:
                draw_nodes(editor, names)
            if "tour" in parts:
                draw_tour(editor)


if __name__ == "__main__":
    main()
