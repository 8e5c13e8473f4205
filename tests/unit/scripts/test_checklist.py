"""The list for a release: each point passes in a small project that is ready, and fails where that is broken."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from consistent_video.scripts import checklist
from consistent_video.scripts.checklist import NotReady, Skipped
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.project import PACK

OWNER = "https://github.com/someone/consistent-video"
PYPROJECT = """[project]
name = "consistent-video"
version = "1.2.0"
[project.urls]
Repository = ""
Documentation = ""
Issues = ""
[tool.comfy]
Icon = ""
Banner = ""
"""
GRAPH = {"nodes": [{"type": "Load", "pos": [0, 0], "properties": {"ver": "1"}}]}
TEXTS = {"Load": {"display_name": "Load", "inputs": {"file": {"name": "file", "tooltip": "Which."}}}}
PROJECT = {
    "pyproject.toml": PYPROJECT,
    "CHANGELOG.md": "# Changelog\n\n## [1.2.0] - 2026-12-01\n\n## [1.1.0] - 2026-11-01\n",
    "README.md": "## Status\n\nVersion 1.2.0. It works.\n",
    "workflows/edit.json": json.dumps(GRAPH),
    "workflows/edit.jpg": "a picture",
    "docs/graphs/edit.webp": "a picture",
    "locales/en/nodeDefs.json": json.dumps(TEXTS),
    "locales/zh/nodeDefs.json": json.dumps(TEXTS),
    "web/docs/Load.webp": "a picture",
}


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def change(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text(encoding="utf-8")
    assert old in text
    write(root, name, text.replace(old, new))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in PROJECT.items():
        write(tmp_path, name, text)
    checklist.fill_addresses(tmp_path, OWNER)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "Begin")
    return tmp_path


def test_a_project_that_is_ready_passes(root: Path) -> None:
    assert checklist.check_version(root) == "1.2.0"
    assert checklist.check_date(root) == "2026-12-01"
    assert checklist.check_addresses(root) == OWNER
    assert "raw.githubusercontent.com/someone/consistent-video/main/docs/icon.svg" in checklist.read(
        root, "pyproject.toml"
    )
    assert checklist.check_tree(root)
    assert checklist.check_built(root, {"workflows/edit.json": GRAPH}, "x.py") == "1 files"
    assert checklist.check_translations(root) == "zh"
    assert checklist.check_pictures(root) == "3 pictures"


@pytest.mark.parametrize(
    ("check", "name", "old", "new", "words"),
    [
        (checklist.check_version, "README.md", "1.2.0", "1.1.0", "pyproject.toml says 1.2.0.*README.md says 1.1.0"),
        (checklist.check_version, "CHANGELOG.md", "## [1.2.0]", "## 1.2.0", "CHANGELOG.md says 1.1.0"),
        (checklist.check_date, "CHANGELOG.md", "2026-12-01", "unreleased", "no date"),
        (checklist.check_date, "README.md", "1.2.0.", "1.2.0, not yet released.", "not yet released"),
        (checklist.check_addresses, "pyproject.toml", f"{OWNER}/issues", "", "^Issues wait"),
        (checklist.check_addresses, "pyproject.toml", f'"{OWNER}"', '""', "Repository, Doc.* wait for .*--add"),
        (checklist.check_tree, "README.md", "works", "should work", "1 files are not committed, such as README.md"),
        (checklist.check_translations, "locales/zh/nodeDefs.json", "tooltip", "hint", "Load inputs file .* missing"),
        (checklist.check_pictures, "workflows/edit.json", '"Load"', '"Save"', "2 of 3 are older, such as .*edit.jpg"),
        (checklist.check_pictures, "workflows/edit.json", "[0, 0]", "[0, 9]", "1 of 3 are older, such as .*edit.webp"),
        (checklist.check_pictures, "locales/en/nodeDefs.json", '"name": "file"', '"name": "clip"', "such as .*Load"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named(root: Path, check, name: str, old: str, new: str, words: str) -> None:
    change(root, name, old, new)
    with pytest.raises(NotReady, match=words):
        check(root)


def test_a_picture_that_was_drawn_again_is_as_new_as_its_graph(root: Path) -> None:
    change(root, "workflows/edit.json", "[0, 0]", "[0, 9]")
    write(root, "docs/graphs/edit.webp", "another picture")
    git(root, "commit", "--quiet", "--all", "--message", "Draw")
    change(root, "workflows/edit.json", '"ver": "1"', '"ver": "2"')  # which no picture shows
    assert checklist.check_pictures(root) == "3 pictures"


def test_files_that_a_command_would_write_otherwise_are_named(root: Path) -> None:
    edit, more = "workflows/edit.json", "workflows/more.json"
    for built, name in (({edit: {}}, edit), ({edit: GRAPH, more: GRAPH}, more), ({more: GRAPH}, edit)):
        with pytest.raises(NotReady, match=f"python scripts/x.py would change {name}"):
            checklist.check_built(root, built, "x.py")


def test_an_archive_without_what_users_need_or_with_ours_is_refused() -> None:
    tracked = [*checklist.FILES, "nodes/patch.py", "tests/test_it.py", "docs/tour.md"]
    whole = {*checklist.FILES, "nodes/patch.py", "docs/tour.md"}
    checklist.check_content(whole, tracked)
    for files, words in (
        (whole - {"nodes/patch.py"}, "lacks nodes/patch.py"),
        (whole - {"LICENSE"}, "lacks LICENSE"),
        (whole | {"tests/test_it.py"}, "holds tests/test_it.py"),
        (whole | {".github/workflows/check.yml"}, "holds .github"),
    ):
        with pytest.raises(NotReady, match=words):
            checklist.check_content(files, tracked)


def test_packages_are_audited_where_that_can_be_done(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(Skipped, match="pip-audit is not installed: pip install pip-audit"):
        checklist.check_packages(root)
    if os.name == "nt":
        return
    audit = root / "pip-audit"
    audit.write_text("#!/bin/sh\necho einops has a hole\nexit 1\n")
    audit.chmod(0o755)
    with pytest.raises(NotReady, match="einops has a hole"):
        checklist.check_packages(root)
    audit.write_text("#!/bin/sh\necho einops Dependency not found on PyPI and could not be audited\n")
    with pytest.raises(Skipped, match="could not audit 1 packages"):
        checklist.check_packages(root)
    audit.write_text("#!/bin/sh\necho No known vulnerabilities found\n")
    assert checklist.check_packages(root) == "pip-audit found nothing"


def test_one_point_that_fails_fails_the_whole_and_each_has_a_line() -> None:
    def fail() -> str:
        raise NotReady("do this")

    def skip() -> str:
        raise Skipped("not here")

    lines: list[str] = []
    assert checklist.report({"a": lambda: "fine", "b": skip}, lines.append) == 0
    assert checklist.report({"c": fail, "d": lambda: "fine"}, lines.append) == 1
    assert [line.split() for line in lines] == [
        ["ok", "a", "fine"],
        ["skipped", "b", "not", "here"],
        ["FAILED", "c", "do", "this"],
        ["ok", "d", "fine"],
    ]


@pytest.mark.parametrize("address", ["someone/consistent-video", "https://example.com/a/b", f"{OWNER}/tree"])
def test_only_a_repositorys_address_is_taken(root: Path, address: str) -> None:
    with pytest.raises(ValueError, match="not the address of a repository"):
        checklist.fill_addresses(root, address)


def test_the_packs_id_is_as_the_registry_asks() -> None:
    """Its specification: letters, digits and single marks, a letter first, without the word ComfyUI."""
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", PACK) and "comfyui" not in PACK


@pytest.mark.parametrize("name", ["check", "publish"])
def test_a_workflow_of_github_runs_what_is_there_with_the_packages_of_the_project(name: str) -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))["jobs"]
    words = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"]).split()
    pinned = (ROOT / "scripts" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all((ROOT / word).is_file() for word in words if word.startswith("scripts/"))
    assert {word for word in words if "==" in word} <= {*pinned}
    assert all(job["timeout-minutes"] for job in jobs.values())
