"""Draw what the documents show of the editor, from the real one: `python scripts/build_pictures.py`.

A picture of each workflow for the template browser, of each node for its help page, and of the main graph's run for the
README's tour.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import environment

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistent_video.scripts.browser import Box, Editor

WORKFLOWS, HELP, DOCS = (environment.ROOT / name for name in ("workflows", "web/docs", "docs"))
OURS = "ConsistentVideo_"
CARD, WINDOW, TALL = 480, (960, 960), (760, 1500)  # pixels
CANVAS = "#141414"
HEADROOM = 34  # of a node, for the badge above it
RUN_PATIENCE = 1_800_000  # milliseconds


def union(boxes: Iterable[Box]) -> Box:
    """Return the box about all boxes."""
    left, top, right, bottom = zip(*((x, y, x + w, y + h) for x, y, w, h in boxes), strict=True)
    return min(left), min(top), max(right) - min(left), max(bottom) - min(top)


def draw_workflows(editor: Editor) -> None:
    """Draw the template browser's picture of each workflow: its whole graph."""
    from PIL import Image, ImageOps

    for path in sorted(WORKFLOWS.glob("*.json")):
        editor.open(json.loads(path.read_text(encoding="utf-8")))
        # The red of files that are the user's own.
        editor.page.evaluate("app.graph.nodes.forEach(node => { node.has_errors = false })")
        shown = editor.show(union(box for _, box in [*editor.boxes("nodes"), *editor.boxes("groups")]))
        picture = ImageOps.pad(editor.picture(shown), (CARD, CARD), Image.Resampling.LANCZOS, CANVAS)
        picture.save(path.with_suffix(".jpg"), quality=70, optimize=True)


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


def main() -> None:
    """Draw every picture."""
    environment.enter(__file__, [])
    environment.register_pack()
    from consistent_video.scripts.browser import Editor
    from consistent_video.scripts.host import Host, device_arguments

    with (
        tempfile.TemporaryDirectory() as base,
        Host(environment.comfyui_tree(), Path(base), device_arguments()) as host,
    ):
        for clip in (environment.ROOT / "demo" / "clips").glob("*.mp4"):
            shutil.copy(clip, host.base / "input")
        info = host.object_info()
        names = {kind: entry["display_name"] for kind, entry in info.items() if kind.startswith(OURS)}
        with Editor(host.address, WINDOW) as editor:
            editor.hide_menus()
            draw_workflows(editor)
        with Editor(host.address, TALL) as editor:
            editor.hide_menus()
            draw_nodes(editor, names)
            draw_tour(editor)


if __name__ == "__main__":
    main()
