"""Parts of README.md that a command writes, each between two marks of its name."""

from __future__ import annotations

from pathlib import Path

from .environment import ROOT


def write_region(name: str, text: str, readme: Path = ROOT / "README.md") -> None:
    """Write a text between the marks of a name, in the place of what was there.

    Args:
        name: in the marks, as in `<!-- name: begin -->`.
        text: Markdown.
        readme: the file.

    Raises:
        ValueError: the file lacks the marks.
    """
    begin, end = (f"<!-- {name}: {side} -->" for side in ("begin", "end"))
    before, found, rest = readme.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{readme.name} has no region between {begin} and {end}")
    readme.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
