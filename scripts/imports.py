"""Who imports whom, as a graph of the folders."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

from .environment import ROOT

FOLDERS = ("bench", "demo", "modules", "modules/attention", "modules/host", "nodes", "scripts")


def folder_of(path: Path) -> str:
    """Return the deepest of FOLDERS that holds a path of the pack, relative to its root, or ""."""
    return max((folder for folder in FOLDERS if path.is_relative_to(folder)), key=len, default="")


def targets(file: Path, root: Path) -> set[str]:
    """Return the folders that a file imports from, by its relative imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1].relative_to(root).joinpath(*(node.module or "").split("."))
            found |= {folder_of(base / alias.name) for alias in node.names}
    return found - {""}


def draw_imports(root: Path = ROOT) -> str:
    """Return the graph of the folders as Mermaid; each arrow has the number of files that import so."""
    arrows: Counter[tuple[str, str]] = Counter()
    for origin in FOLDERS:
        for file in (root / origin).glob("*.py"):
            arrows.update((origin, target) for target in targets(file, root) if target != origin)
    lines = [f'    {origin.replace("/", "_")}["{origin}"]' for origin in FOLDERS]
    lines += [
        f"    {origin.replace('/', '_')} -->|{count}| {target.replace('/', '_')}"
        for (origin, target), count in sorted(arrows.items())
    ]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])
