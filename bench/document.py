"""docs/performance.md: one section for each performance benchmark."""

import re
from pathlib import Path

TITLES = {
    "attention": "Attention across frames",
    "temporal": "Temporal modules",
    "sample": "Sampling",
    "solvers": "Solvers",
    "windows": "Long clips",
    "tune": "Tuning",
    "memory": "Memory",
    "cost": "EI²'s Table 1",
    "options": "What might be faster",
    "gpu": "Tests on a GPU",
}
INTRODUCTION = (
    "Each section is written by a command of its own and holds what was last measured, and where. SD1.5's "
    "structure with random weights. Times are compared within one run, turn by turn in balanced order: a cell holds "
    "the median over the rounds of the ratio and, in brackets, its quartiles. Without a GPU a section is measured on "
    "the processor at a smaller size, and memory is accounted instead of measured: the tensors that PyTorch's "
    "operations make are counted as long as they live, at full size and without computing anything. Targets are meant "
    "for a GPU and 64 × 64 latents; *met* says whether the figures next to it keep to them, wherever they are from."
)
UNKNOWN = "Not measured."


def judge(value: float, limit: float | None) -> list[str]:
    """Return the cells "target" and "met" of a figure that is to be at most `limit`, empty ones without a limit."""
    return ["", ""] if limit is None else [f"≤ {limit:g}", "yes" if value <= limit else "no"]


def read_sections(text: str) -> dict[str, str]:
    """Return the sections of a document by their titles, without what precedes the first."""
    parts = re.split(r"^## (.+)$", text, flags=re.M)
    return {title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def write_section(document: Path, command: str, body: str) -> None:
    """Put a command's section into the document; the others stay as they are."""
    sections = read_sections(document.read_text(encoding="utf-8")) if document.is_file() else {}
    sections[TITLES[command]] = f"Written by `python -m bench {command}`. {body.strip()}"
    written = [f"## {title}\n\n{sections.get(title, UNKNOWN)}\n" for title in TITLES.values()]
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text("\n".join(["# Performance\n", INTRODUCTION + "\n", *written]), encoding="utf-8")
