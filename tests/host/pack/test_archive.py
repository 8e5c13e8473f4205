"""The archive that the registry hands to users: its metadata and content, and that a fresh host loads it."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from consistent_video.scripts.environment import ROOT, comfyui_tree
from consistent_video.scripts.host import PACK, Host, device_arguments

WEIGHTS = {
    "control.safetensors",
    "clip.safetensors",
    "config.json",
    "provenance.json",
    "unet.safetensors",
    "vae.safetensors",
}
TOP = {"CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "pyproject.toml", "requirements.txt"}
WHOLE = ("locales", "modules", "nodes", "subgraphs", "web", "workflows")
LINK = re.compile(r"\]\(([^)#:]+)\)")
LARGEST = 32 * 2**20


def list_tracked() -> list[str]:
    """Return the paths of the files that git knows and that are there."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("what is packed is what git tracks, and this is no clone")
    output = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in output.split("\0") if name and (ROOT / name).is_file()]


def run_comfy(folder: Path, *arguments: str) -> str:
    """Run comfy-cli in a folder, without its statistics and questions, and return what it printed."""
    quiet = {"DO_NOT_TRACK": "1", "HOME": str(folder.parent), "XDG_CONFIG_HOME": str(folder.parent)}
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the same files: the archive is written into the folder it is made of."""
    folder = tmp_path_factory.mktemp("registry") / PACK
    for name in list_tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for arguments in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def unpacked(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, unpacked where a fresh ComfyUI looks for it."""
    run_comfy(copy, "node", "pack")
    (archive,) = copy.glob("*.zip")
    assert archive.stat().st_size < LARGEST
    folder = tmp_path_factory.mktemp("base") / "custom_nodes" / PACK
    zipfile.ZipFile(archive).extractall(folder)
    return folder


def list_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def find_targets(page: Path) -> Iterator[Path]:
    """Yield the files that a page in Markdown links to; help of any language is shown as if it lay in web/docs."""
    folder = page.parents[1] if page.parents[1].name == "docs" else page.parent
    yield from (folder / target for target in LINK.findall(page.read_text(encoding="utf-8")))


def test_the_metadata_pass_the_registrys_check(copy: Path) -> None:
    output = run_comfy(copy, "node", "validate")
    assert "passed" in output
    assert "arning" not in output and "rror" not in output


@pytest.mark.parametrize(("name", "width", "height"), [("icon", 400, 400), ("banner", 1260, 540)])
def test_the_pictures_have_the_registrys_sizes(name: str, width: int, height: int) -> None:
    picture = ElementTree.parse(ROOT / "docs" / f"{name}.svg").getroot()
    assert (picture.get("width"), picture.get("height")) == (str(width), str(height))


def test_the_archive_holds_what_users_need_and_nothing_else(unpacked: Path) -> None:
    files = list_files(unpacked)
    assert {name for name in list_tracked() if name.startswith(tuple(f"{folder}/" for folder in WHOLE))} <= files
    assert {path.name for path in (unpacked / "demo" / "weights").iterdir()} == WEIGHTS
    assert {name.split("/")[0] for name in files if "/" in name} == {*WHOLE, "demo", "docs"}
    assert {name for name in files if "/" not in name} == TOP
    assert {path.name for path in (unpacked / "demo").iterdir()} == {"captions.py", "clips", "weights"}


def test_the_archive_holds_the_clips_of_the_demo_workflows(unpacked: Path) -> None:
    for workflow in sorted((unpacked / "workflows").glob("demo_*.json")):
        nodes = json.loads(workflow.read_text(encoding="utf-8"))["nodes"]
        loaders = [node for node in nodes if node["type"] == "ConsistentVideo_LoadDemoClip"]
        clips = [node["widgets_values"][0] for node in loaders]
        assert clips and not [clip for clip in clips if not (unpacked / "demo" / "clips" / clip).is_file()], (
            workflow.name
        )


def test_the_archives_pages_link_to_files_that_are_there(unpacked: Path) -> None:
    pages = [*unpacked.glob("*.md"), *unpacked.glob("docs/*.md"), *unpacked.glob("web/docs/**/*.md")]
    assert not [target for page in pages for target in find_targets(page) if not target.exists()]


def test_a_fresh_host_loads_the_archive_and_its_demo_model(unpacked: Path) -> None:
    prompt = {
        "1": {"class_type": "ConsistentVideo_LoadDemoModel", "inputs": {}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    ids = json.loads((unpacked / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    with Host(comfyui_tree(), unpacked.parents[1], device_arguments(), unpacked) as host:
        assert set(ids) <= set(host.object_info())
        assert host.get("workflow_templates")[PACK]
        assert host.read(f"extensions/{PACK}/docs/ConsistentVideo_LoadDemoModel.md")
        assert "ModelPatcher" in host.run(prompt, patience=120).text("2")
