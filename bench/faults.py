"""docs/reliability.md: faults that were made, and what became of them."""

import argparse
import importlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..modules.files.strict_json import to_json
from ..scripts.environment import say
from .fault_row import Row
from .table import write_table

SEED = 20
INTRODUCTION = (
    "Faults that were made on purpose in a real ComfyUI with the demo model, and what the user sees. Written by "
    "`python -m bench faults`; a row fails where something else happened than should. Places, times and inputs are "
    "drawn from fixed seeds."
)


@dataclass(frozen=True)
class Section:
    """A part of the document.

    Attributes:
        title: of it.
        maker: "module.function" of this folder that yields its rows, from a number of tries and a seed.
        tries, quick: their number, in full and in the quick form; 0 = the maker takes the seed alone.
    """

    title: str
    maker: str
    tries: int = 0
    quick: int = 0

    def make(self, count: int) -> Iterator[Row]:
        """Yield its rows."""
        module, function = self.maker.split(".")
        maker = getattr(importlib.import_module(f".{module}", __package__), function)
        yield from maker(count, SEED) if count else maker(SEED)


SECTIONS = {
    "interrupts": Section("Stopped anywhere", "fault_runs.try_interrupts", 100, 6),
    "kills": Section("Killed", "fault_server.try_kills", 50, 5),
    "files": Section("Damaged and hostile files", "fault_files.try_files", 10000, 200),
    "paths": Section("Names and paths", "fault_files.try_paths"),
    "graphs": Section("Hostile graphs", "fault_graphs.try_graphs", 3000, 150),
    "media": Section("Odd media", "fault_media.try_media"),
    "numbers": Section("Numbers", "fault_runs.try_numbers"),
    "twins": Section("One seed, two servers", "fault_twins.try_twins"),
    "memory": Section("Full memory", "fault_runs.try_full_memory", 10, 2),
    "pressure": Section("Disks and clients", "fault_pressure.try_pressure", 50, 4),
    "soak": Section("Long runs", "fault_soak.try_soak"),  # for as many minutes as asked
}


def rows_path(state: Path, name: str, count: int) -> Path:
    """Return the file of a section's rows, which is there when all of them are."""
    return state / f"faults-{name}-{count}.jsonl"


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file."""
    given = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Row(**{**row, "failed": tuple(row["failed"]), "curve": tuple(map(tuple, row.get("curve", ())))})
            for row in given]  # fmt: skip


def count_of(name: str, options: argparse.Namespace) -> int:
    """Return how often a section tries."""
    if name == "soak":
        return options.soak
    return SECTIONS[name].quick if options.quick else SECTIONS[name].tries


def complete_rows(name: str, options: argparse.Namespace) -> list[Row]:
    """Return the rows of a section; those on disk are not made again, except with --again."""
    count = count_of(name, options)
    path = rows_path(options.state, name, count)
    if options.again or not path.is_file():
        say(name)
        rows = []
        for row in SECTIONS[name].make(count):
            say(f"  {'FAILED' if row.failed else 'ok':6} {row.fault} ({row.tried}): {cell(row.seen)}")
            rows.append(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(to_json(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    return read_rows(path)


def cell(text: Any, length: int = 240) -> str:
    """Return a text as it stands in a table's cell, cut to a length; what cannot be printed becomes a space."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())
    line = re.sub(rf"{re.escape(tempfile.gettempdir())}/[^\s,']+", "the folder", line)
    return (line if len(line) <= length else line[:length] + "...").replace("|", "\\|")


def describe(rows: list[Row]) -> str:
    """Return a section's table, and what failed in words."""
    headings = ["fault", "tried", "what the user sees", "result"]
    body = [
        [cell(row.fault), str(row.tried), cell(row.seen), f"{len(row.failed)} failed" if row.failed else "as it should"]
        for row in rows
    ]
    said = [f"- {cell(row.fault)}: {cell(failure)}" for row in rows for failure in row.failed[:5]]
    return "\n\n".join([write_table(headings, body), *(["What failed:", "\n".join(said)] if said else [])])


def save_plot(curve: Sequence[tuple[float, float, int]], path: Path) -> None:
    """Plot a server's resident memory and its number of tensors over minutes."""
    figure = Figure(figsize=(8, 3), dpi=100, layout="constrained")
    minutes, memory, tensors = zip(*curve, strict=True)
    for axes, values, name in zip(figure.subplots(1, 2), (memory, tensors), ("resident MiB", "tensors"), strict=True):
        axes.plot(minutes, values, "o-", markersize=2)
        axes.set(xlabel="minutes", ylabel=name, ylim=(0, 1.1 * max(values)))
    figure.savefig(path)


def write_document(document: Path, sections: dict[str, list[Row]]) -> None:
    """Write the document from the rows of its sections."""
    total = sum(row.tried for rows in sections.values() for row in rows)
    failed = sum(len(row.failed) for rows in sections.values() for row in rows)
    parts = ["# Reliability", INTRODUCTION, f"{total} faults, {failed} failures."]
    parts += [f"## {SECTIONS[name].title}\n\n{describe(rows)}" for name, rows in sections.items()]
    document.parent.mkdir(parents=True, exist_ok=True)
    curves = [row.curve for rows in sections.values() for row in rows if row.curve]
    if curves:
        plot = document.with_name(f"{document.stem}_memory.png")
        save_plot(curves[-1], plot)
        parts.append(f"![Memory and tensors of a server over a long run]({plot.name})")
    document.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    say(f"Wrote {document}: {total} faults, {failed} failures")


def measure_faults(options: argparse.Namespace) -> int:
    """Make the faults of the sections that are asked for, and write the document of all that are done."""
    wanted = list(options.sections or SECTIONS.keys() - {"soak"}) + (["soak"] if options.soak else [])
    made = {name: complete_rows(name, options) for name in SECTIONS if name in wanted}
    for name in SECTIONS.keys() - made.keys():
        path = rows_path(options.state, name, count_of(name, options))
        if path.is_file():
            made[name] = read_rows(path)
    write_document(options.document, {name: made[name] for name in SECTIONS if name in made})
    return int(any(row.failed for rows in made.values() for row in rows))
