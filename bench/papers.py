"""The tables and figures of the papers: their systems on one set of clips, beside the published figures.

Without real clips the drawn ones are edited with the demo model, and the world that drew them judges as well.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..demo.clips import RATE, save_video
from ..demo.reader import ShapeReader
from ..scripts.clips import read_clip
from ..scripts.environment import say
from ..scripts.systems import COMPARED, DIRECTIONS, NORMS, RATIOS
from .clip_case import CAPTION, DEMO_MODEL, KINDS, VIDEO, Case
from .clips import complete, list_failures
from .edit_document import COLUMNS
from .table import mean_and_error, read_case, write_table
from .tasks import FRAMES, Task, Truth, list_tasks
from .tasks import KINDS as EDIT_KINDS
from .world import READER

TRUE = ("obeyed", "kept", "motion_error", "warp_error", "flicker", "texture")  # what the drawn world says
CLIP_TEXT, CLIP_FRAMES = "CLIP-T", "CLIP-F all pairs"


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper.

    Attributes:
        title: of the paper and the table.
        systems: their names in COMPARED.
        published: figures by system, as far as they are known, by the name of the column.
        note: what is to be known of it.
    """

    title: str
    systems: Sequence[str]
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""


INR = ("Tune-A-Video", "ControlVideo", "FateZero", "Video-P2P")  # that it is put on
TABLES = (
    Table(
        "EI², Table 1",
        ("Tune-A-Video", "Vid2Vid-zero", "Video-P2P", "EI²"),
        {"Tune-A-Video": {CLIP_FRAMES: 96.64, CLIP_TEXT: 28.72}, "EI²": {CLIP_FRAMES: 95.94, CLIP_TEXT: 29.84}},
    ),
    Table("EI², Figure 4", tuple(NORMS), note="Norms of the temporal module, on Tune-A-Video's attention."),
    Table("EI², Figure 5", tuple(RATIOS), note="FFAM over its downsampling r; tuned, with STAM."),
    Table(
        "INR Smooth, Tables 1 and 2",
        (*(name for base in INR for name in (base, f"INR on {base}")), "SmoothVideo", "Slicedit", "STEM-Inversion"),
        note="Each system without INR and with it, and others.",
    ),
    Table(
        "INR Smooth, Figure 11", tuple(DIRECTIONS), note="Neighbours that the noise relation of the inversion takes."
    ),
)


def chosen_tasks(options: argparse.Namespace) -> dict[str, Task]:
    """Return the edits of drawn clips that are measured, by name."""
    return list_tasks(options.clips_of_kind, held_out=True, kinds=options.kinds or EDIT_KINDS)


def draw_clips(options: argparse.Namespace) -> None:
    """Draw clips of the kinds that the demo model knows, as files with a table of prompts; they become the folder."""
    options.folder, options.prompts = options.state / "drawn", options.state / "drawn" / "prompts.json"
    options.checkpoint, options.frames = Path(DEMO_MODEL), FRAMES
    options.output /= f"drawn_{options.steps}_{options.learning_rate:g}_{options.ddim_steps}"  # judged again later
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, task in chosen_tasks(options).items():
        save_video(options.folder / f"{name}.mp4", Truth(task).source.frames, RATE)
        before, after = task.prompts
        rows.append({VIDEO: name, CAPTION: before, KINDS["object"]: after})
    options.prompts.write_text(json.dumps(rows), encoding="utf-8")


def judge_drawn(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Add to each row what the drawn world reads from its edit, the saved video."""
    tasks, reader = chosen_tasks(options), ShapeReader.load(READER)
    truths = cache(lambda name: Truth(tasks[name]))
    for row in rows:
        edit = read_clip(options.output / f"{read_case(row, Case).name}.mp4")[0]
        judged = truths(row["video"]).judge(edit, reader)
        row["rows"]["edit"] = {**{COLUMNS[key]: judged[key] for key in TRUE}, **row["rows"]["edit"]}


def measure_papers(options: argparse.Namespace) -> int:
    """Edit what is not done yet, and write the document; returns the exit status."""
    is_drawn = options.folder is None
    if is_drawn:
        draw_clips(options)
    elif options.checkpoint is None or options.prompts is None:
        sys.exit("--folder needs --checkpoint and --prompts.")
    tables = [table for table in TABLES if not options.tables or any(part in table.title for part in options.tables)]
    options.methods = list(dict.fromkeys(name for table in tables for name in table.systems))
    rows, failures = complete(options)
    if is_drawn:
        judge_drawn(rows, options)
    options.document.parent.mkdir(parents=True, exist_ok=True)
    options.document.write_text(make_document(tables, rows, failures, options), encoding="utf-8")
    say(f"Wrote {options.document}")
    return int(bool(failures))


def make_document(
    tables: Sequence[Table], rows: Sequence[dict[str, Any]], failures: Mapping[Case, str], options: argparse.Namespace
) -> str:
    """Return the document: each table with our figures beside the published ones, then the settings that ran."""
    cards: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        cards.setdefault(row["method"], []).append(row["rows"]["edit"])
    measures = list(dict.fromkeys(key for card in sum(cards.values(), []) for key in card))
    lines = ["# The papers' tables", "", introduce(options, len({row["video"] for row in rows})), "", LEGEND, ""]
    for table in tables:
        known = [key for key in (CLIP_TEXT, CLIP_FRAMES) if any(key in own for own in table.published.values())]
        body = [
            [
                name,
                str(len(cards.get(name, []))),
                *(mean_and_error([card.get(key) for card in cards.get(name, [])]) for key in measures),
                *(f"{table.published.get(name, {}).get(key, '')}" for key in known),
            ]
            for name in table.systems
        ]
        headings = ["system", "edits", *measures, *(f"{key}, published" for key in known)]
        lines += [f"## {table.title}", "", *((table.note, "") if table.note else ()), write_table(headings, body), ""]
    lines += [
        "## Settings",
        "",
        "As they ran, where they differ from the nodes' defaults; all tunings by the recipe paper.",
        "",
    ]
    lines += [
        f"- **{name}** ({COMPARED[name].by}): {settings_of(name, rows)}. {COMPARED[name].differs}".strip()
        for name in cards
    ]
    lines += list_failures(failures)
    return "\n".join(lines) + "\n"


UNSAID = ("Save tune", "Scorecard")  # nodes whose settings change no edit


def settings_of(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return what the nodes of a system were set to."""
    settings = next(row["settings"] for row in rows if row["method"] == name)
    return "; ".join(
        f"{title}: {', '.join(f'{key} {value}' for key, value in values.items())}"
        for title, values in settings.items()
        if title not in UNSAID
    )


def introduce(options: argparse.Namespace, clips: int) -> str:
    """Return how the figures came about."""
    what = f"clip{'s' * (clips != 1)}"
    if str(options.checkpoint) == DEMO_MODEL:
        what = f"drawn {what} that the demo model never saw"
    return (
        f"Written by `python -m bench papers`: {clips} {what}, {options.frames} frames of {options.size} x "
        f"{options.size}; {options.checkpoint.name}, tuned for {options.steps} steps at {options.learning_rate:g}, "
        f"{options.ddim_steps} DDIM steps. A cell holds the mean over edits ± its standard error. Published figures "
        "are of other clips, and of Stable Diffusion 1.4 or 1.5; an empty cell is one that we do not know."
    )


LEGEND = (
    "What each figure is, the help page of Edit Scorecard says; for those of the drawn world see "
    "[benchmark.md](benchmark.md). INR Smooth has a column for optical flow without a definition; ours is *warp error*."
)
