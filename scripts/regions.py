"""Parts of a page that a command writes, each between two marks of its name."""

from pathlib import Path

from .environment import ROOT


def write_region(name: str, text: str, page: Path = ROOT / "README.md") -> None:
    """Write a text between the marks of a name, replacing what was there.

    Args:
        name: in the marks, as in `<!-- name: begin -->`.
        text: Markdown.
        page: Markdown file.

    Raises:
        ValueError: the file lacks the marks.
    """
    begin, end = (f"<!-- {name}: {side} -->" for side in ("begin", "end"))
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page.name} has no region between {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
