"""A blind vote between two methods: a page that shows pairs of edits with their sides drawn at random.

It stands in for the user studies of the papers. The page is one file beside the videos, needs no server, and saves the
votes as CSV.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from ..scripts.environment import say
from .clip_case import Case, find_video
from .table import load_rows

PAGE = Path(__file__).with_name("vote.html")
QUESTIONS = (
    "Which edit shows what was asked for better?",
    "Which edit is steadier from frame to frame?",
    "Which edit keeps what was not to change better?",
    "Which edit do you prefer?",
)


def list_pairs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the pairs of edits of one clip and prompt by two methods, and copy their videos under blind names."""
    cases = load_rows(options.state / "clips.jsonl", Case)
    edits: dict[tuple[str, str], dict[str, Path]] = {}
    for case in (case for case in cases if case.method in options.methods):
        video = options.output / f"{case.name}.mp4"
        if video.is_file():
            edits.setdefault((case.video, case.after), {})[case.method] = video
    options.page.mkdir(parents=True, exist_ok=True)
    for number, (clip, prompt) in enumerate(edits):
        source = find_video(options.folder, clip)
        shutil.copyfile(source, options.page / f"source_{number}{source.suffix}")
        for pair, methods in enumerate(combinations(edits[clip, prompt], 2)):
            files = [f"edit_{number}_{pair}_{side}.mp4" for side in range(2)]
            for file, method in zip(files, methods, strict=True):
                shutil.copyfile(edits[clip, prompt][method], options.page / file)
            named = {"clip": clip, "prompt": prompt, "source": f"source_{number}{source.suffix}"}
            yield {**named, "methods": methods, "files": files}


def measure_vote(options: argparse.Namespace) -> int:
    """Write the page; returns the exit status."""
    if len(options.methods) < 2:
        sys.exit("--methods: give two or more, whose edits are compared in pairs.")
    pairs = list(list_pairs(options))
    if not pairs:
        sys.exit(f"--methods {', '.join(options.methods)}: no clip in {options.output} was edited by two of them.")
    page = PAGE.read_text(encoding="utf-8").replace("/*PAIRS*/", to_script(pairs))
    path = options.page / "vote.html"
    path.write_text(page.replace("/*QUESTIONS*/", to_script(QUESTIONS)), encoding="utf-8")
    say(f"{len(pairs)} pairs. Open {path}, vote, and save the votes as CSV.")
    return 0


def to_script(value: Any) -> str:
    """Return a value as JavaScript that no prompt can end."""
    return json.dumps(value).replace("<", "\\u003c")
