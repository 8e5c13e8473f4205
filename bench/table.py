"""Rows on disk and tables in documents."""

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from statistics import quantiles
from typing import Any

from ..modules.files.strict_json import to_json


def load_rows(path: Path, case: type) -> dict[Any, dict[str, Any]]:
    """Return the rows that are done by their case, a frozen dataclass.

    A line that was cut off is left out, and so is one that an older form of the case made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.keys() >= {field.name for field in fields(case)}:
            rows[read_case(row, case)] = row
    return rows


def drop_rows(path: Path, cases: Sequence[Any]) -> None:
    """Take the rows of some cases, all of one kind, from those on disk."""
    kept = [row for case, row in load_rows(path, type(cases[0])).items() if case not in cases]
    new = path.with_suffix(".new")
    new.write_text("".join(to_json(row) + "\n" for row in kept), encoding="utf-8")
    new.replace(path)


def read_case(row: dict[str, Any], case: type) -> Any:
    """Return the case of a row."""
    return case(**{field.name: row[field.name] for field in fields(case)})


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to those on disk, on a line of its own even after one that was cut off."""
    with path.open("a+", encoding="utf-8") as file:
        file.seek(max(0, file.seek(0, 2) - 1))
        is_whole = file.read() in ("", "\n")
        file.write(("" if is_whole else "\n") + to_json(row) + "\n")


def mean_and_error(values: Sequence[float | None]) -> str:
    """Return mean ± standard error of what is known of some values."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "none"
    mean = sum(known) / len(known)
    if len(known) == 1:
        return f"{mean:.3g}"
    error = math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1) / len(known))
    return f"{mean:.3g} ± {error:.1g}"


def median_and_quartiles(values: Sequence[float | None]) -> str:
    """Return median (lower to upper quartile) of what is known of some values."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "none"
    lower, middle, upper = quantiles(known, n=4, method="inclusive") if len(known) > 1 else known * 3
    return f"{middle:.3g} ({lower:.3g} to {upper:.3g})"


def write_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
