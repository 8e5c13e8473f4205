"""docs/reliability.md: faults that were made, and what became of them."""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


def interrupts(count: int) -> Iterator[Row]:
    """Yield the rows of runs that were interrupted."""
    from .fault_runs import try_interrupts

    yield from try_interrupts(count, SEED)


def numbers(_count: int) -> Iterator[Row]:
    """Yield the rows of extreme numbers."""
    from .fault_runs import try_numbers

    yield from try_numbers(SEED)


def full_memory(count: int) -> Iterator[Row]:
    """Yield the rows of full memories."""
    from .fault_runs import try_full_memory

    yield from try_full_memory(count, SEED)


def files(count: int) -> Iterator[Row]:
    """Yield the rows of files that are not as they should be."""
    from .fault_files import try_files

    yield from try_files(count, SEED)


def paths(_count: int) -> Iterator[Row]:
    """Yield the rows of names and paths that lead elsewhere."""
    from .fault_files import try_paths

    yield from try_paths(SEED)


def kills(count: int) -> Iterator[Row]:
    """Yield the rows of servers and writers that were killed."""
    from .fault_server import try_kills

    yield from try_kills(count, SEED)


def graphs(count: int) -> Iterator[Row]:
    """Yield the rows of hostile graphs."""
    from .fault_graphs import try_graphs

    yield from try_graphs(count, SEED)


def media(_count: int) -> Iterator[Row]:
    """Yield the rows of odd media."""
    from .fault_server import try_media

    yield from try_media()


def pressure(count: int) -> Iterator[Row]:
    """Yield the rows of full and read-only disks, and of clients that work at once."""
    from .fault_server import try_pressure

    yield from try_pressure(count, SEED)


# By name: the title, what yields the rows of a number of tries, the number in full and in the quick form.
Section = tuple[str, Callable[[int], Iterator[Row]], int, int]
SECTIONS: dict[str, Section] = {
    "interrupts": ("Stopped anywhere", interrupts, 100, 6),
    "kills": ("Killed", kills, 50, 5),
    "files": ("Damaged and hostile files", files, 10000, 200),
    "paths": ("Names and paths", paths, 1, 1),
    "graphs": ("Hostile graphs", graphs, 10000, 150),
    "media": ("Odd media", media, 1, 1),
    "numbers": ("Numbers", numbers, 1, 1),
    "memory": ("Full memory", full_memory, 20, 2),
    "pressure": ("Disks and clients", pressure, 50, 4),
}


def rows_path(state: Path, name: str, count: int) -> Path:
    """Return the file of a section's rows, which is there when all of them are."""
    return state / f"faults-{name}-{count}.jsonl"


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file."""
    given = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Row(**{**row, "failed": tuple(row["failed"])}) for row in given]


def complete_rows(name: str, options: argparse.Namespace) -> list[Row]:
    """Return the rows of a section; those on disk are not made again, except with --again."""
    _, make, full, quick = SECTIONS[name]
    count = quick if options.quick else full
    path = rows_path(options.state, name, count)
    if options.again or not path.is_file():
        say(f"{name}: {count}")
        rows = []
        for row in make(count):
            say(f"  {'FAILED' if row.failed else 'ok':6} {row.fault} ({row.tried}): {cell(row.seen)}")
            rows.append(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(to_json(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    return read_rows(path)


def cell(text: Any, length: int = 240) -> str:
    """Return a text as it stands in a table's cell, cut to a length; what cannot be printed becomes a space."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())
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


def write_document(document: Path, sections: dict[str, list[Row]]) -> None:
    """Write the document from the rows of its sections."""
    total = sum(row.tried for rows in sections.values() for row in rows)
    failed = sum(len(row.failed) for rows in sections.values() for row in rows)
    parts = ["# Reliability", INTRODUCTION, f"{total} faults, {failed} failures."]
    parts += [f"## {SECTIONS[name][0]}\n\n{describe(rows)}" for name, rows in sections.items()]
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    say(f"Wrote {document}: {total} faults, {failed} failures")


def measure_faults(options: argparse.Namespace) -> int:
    """Make the faults of the sections that are asked for, and write the document of all that are done."""
    random.seed(SEED)
    made = {name: complete_rows(name, options) for name in options.sections or SECTIONS}
    for name, (_, _, full, quick) in SECTIONS.items():
        path = rows_path(options.state, name, quick if options.quick else full)
        if name not in made and path.is_file():
            made[name] = read_rows(path)
    write_document(options.document, {name: made[name] for name in SECTIONS if name in made})
    return int(any(row.failed for rows in made.values() for row in rows))
