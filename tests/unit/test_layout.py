"""The direction of imports: nodes -> host files -> maths, and never back; and the size of files and functions."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("modules", "nodes", "demo")
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview",
        "node_helpers", "server"}  # fmt: skip
# What ComfyUI brings along.
BROUGHT = {
    "PIL",
    "aiohttp",
    "av",
    "kornia",
    "numpy",
    "psutil",
    "torch",
    "torchvision",
    "transformers",
    "typing_extensions",
}
OPTIONAL = {"bitsandbytes", "torchmetrics"}  # extras of pyproject.toml, with a message where they are absent
FILES = sorted(path.relative_to(ROOT) for part in PARTS for path in (ROOT / part).rglob("*.py"))


@cache
def read_nodes(path: Path) -> tuple[ast.AST, ...]:
    """Return all of a file's syntax."""
    return tuple(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))


def list_imports(path: Path) -> Iterator[str]:
    """Yield every import of a file as a path from the root, e.g. "modules/frames", or as an outside module's name."""
    package = path.parent.parts
    for node in read_nodes(path):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            yield from ("/".join([*base, *(node.module or "").split("."), name.name]) for name in node.names)


def read_names(path: str) -> set[str]:
    """Return the module names of a list of requirements."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    return {re.split(r"[<>=~!\[ ]", line)[0].lower().replace("-", "_") for line in lines if line and line[0] != "#"}


def is_within(path: Path, *folders: str) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def is_host(path: Path) -> bool:
    """Whether a path lies in a folder or file called host, or names something of such a file."""
    return "host" in path.with_suffix("").parts


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_one_way(path: Path) -> None:
    imports = list(list_imports(path))
    inside = [Path(name.replace("//", "/")) for name in imports if "/" in name]
    outside = {name.split(".")[0] for name in imports if "/" not in name}
    assert not outside & {*PARTS, "consistent_video"}, "imports inside the pack are relative"
    if is_within(path, "modules"):
        assert not [name for name in inside if is_within(name, "nodes")]
    if is_within(path, "modules") and not is_host(path):
        assert not [name for name in inside if is_host(name) or is_within(name, "demo")]
        assert not outside & HOST, "the maths does not know the host"


def in_circles(imported: dict[str, set[str]]) -> set[str]:
    """Return what imports itself, through others perhaps, or what does."""
    left = dict(imported)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    return set(left)


def test_no_imports_go_in_a_circle() -> None:
    known = {path.with_suffix("").as_posix().removesuffix("/__init__"): path for path in FILES}
    imported: dict[str, set[str]] = {}
    for name, path in known.items():
        found = (Path(entry.replace("//", "/")) for entry in list_imports(path) if "/" in entry)
        every = {part.as_posix() for entry in found for part in (entry, entry.parent)}
        imported[name] = every & known.keys() - {name}
    assert not in_circles(imported)


def test_no_subject_needs_one_that_builds_on_it() -> None:
    subjects: dict[str, set[str]] = {path.name: set() for path in (ROOT / "modules").iterdir() if path.is_dir()}
    for path in FILES:
        if len(path.parts) > 2 and path.parts[0] == "modules":
            entries = (name.split("/") for name in list_imports(path) if name.startswith("modules/"))
            subjects[path.parts[1]] |= {entry[1] for entry in entries} - {path.parts[1]}
    assert not in_circles(subjects)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_what_is_imported_is_required_or_brought_by_comfyui(path: Path) -> None:
    outside = {name.split(".")[0] for name in list_imports(path) if "/" not in name}
    required = read_names("requirements.txt")
    if path.parts[0] == "demo":  # the model's training is no part of what a user runs
        required |= read_names("scripts/requirements.txt")
    assert not outside - set(sys.stdlib_module_names) - HOST - BROUGHT - OPTIONAL - required


PARAMETERS, FUNCTION_LINES, FILE_LINES = 8, 60, 350
SCHEMA = ("define_schema", "execute")  # of a node, which have a line or a parameter for each input
SIZED = sorted(
    path.relative_to(ROOT) for part in (*PARTS, "bench", "scripts", "tests") for path in (ROOT / part).rglob("*.py")
)


def list_larger(path: Path) -> Iterator[str]:
    """Yield the functions of a file that have too many parameters or lines, and "the file" where that is too long."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if text.count("\n") > FILE_LINES:
        yield "the file"
    for node in read_nodes(path):
        if (
            not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            or is_within(path, "nodes")
            and node.name in SCHEMA
        ):
            continue
        given = node.args
        names = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        count = sum(name.arg not in ("self", "cls") for name in names)
        if count > PARAMETERS or node.end_lineno - node.lineno >= FUNCTION_LINES:
            yield node.name


@pytest.mark.parametrize("path", SIZED, ids=str)
def test_files_and_functions_are_short(path: Path) -> None:
    assert not list(list_larger(path))
