"""Sections of docs/performance.md."""

from pathlib import Path

import pytest

from consistent_video.bench.document import TITLES, UNKNOWN, judge, read_sections, write_section


def test_a_new_document_says_what_is_not_measured(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    write_section(document, "sample", "Some text.\n\n| a |\n| --- |\n| 1 |\n")
    sections = read_sections(document.read_text(encoding="utf-8"))
    assert list(sections) == list(TITLES.values())
    assert sections.pop(TITLES["sample"]) == "Written by `python -m bench sample`. Some text.\n\n| a |\n| --- |\n| 1 |"
    assert set(sections.values()) == {UNKNOWN}


def test_the_other_sections_stay_as_they_are(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    for command in TITLES:
        write_section(document, command, f"First of {command}.")
    write_section(document, "tune", "Second.")
    sections = read_sections(document.read_text(encoding="utf-8"))
    texts = {c: "Second." if c == "tune" else f"First of {c}." for c in TITLES}
    assert sections == {title: f"Written by `python -m bench {c}`. {texts[c]}" for c, title in TITLES.items()}
    written = document.read_text(encoding="utf-8")
    write_section(document, "tune", "Second.")
    assert document.read_text(encoding="utf-8") == written


@pytest.mark.parametrize(
    ("value", "limit", "cells"),
    [
        (1.1, 1.1, ["≤ 1.1", "yes"]),
        (1.11, 1.1, ["≤ 1.1", "no"]),
        (float("inf"), 8.0, ["≤ 8", "no"]),
        (3.0, None, ["", ""]),
    ],
)
def test_a_figure_is_judged_by_its_target(value: float, limit: float | None, cells: list[str]) -> None:
    assert judge(value, limit) == cells
