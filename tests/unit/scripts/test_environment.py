"""Setting up: what is unpacked, what is remembered, and that the lists of requirements agree."""

import io
import tarfile
from pathlib import Path

import pytest

from consistent_video.scripts import environment
from consistent_video.scripts.environment import (
    ROOT,
    SetupError,
    check_version,
    comfyui_tree,
    fingerprint,
    link,
    unpack,
)

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib


def read_requirements(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def test_the_lists_of_requirements_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert read_requirements(ROOT / "requirements.txt") == project["dependencies"]
    assert read_requirements(ROOT / "scripts" / "requirements.txt") == project["optional-dependencies"]["test"]


def make_archive(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
        leak = tarfile.TarInfo("top/vendor/ComfyUI/leak")
        leak.type, leak.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(leak)
    return path


def test_only_comfyui_is_unpacked_and_nothing_outside_the_target(tmp_path: Path) -> None:
    names = ["main.py", "comfy/sd.py", "../../../../../evil.py"]
    archive = make_archive(tmp_path / "a.tar.gz", ["top/setup.py", *(f"top/vendor/ComfyUI/{name}" for name in names)])
    unpack(archive, tmp_path / "a" / "b" / "tree")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"a.tar.gz", "a/b/tree/main.py", "a/b/tree/comfy/sd.py"}


def test_another_requirement_is_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("einops")
    before = fingerprint([path])
    path.write_text("einops>=1")
    assert fingerprint([path]) != before


def test_a_link_is_renewed_but_never_replaces_a_folder(tmp_path: Path) -> None:
    old, new, name = tmp_path / "old", tmp_path / "new", tmp_path / "name"
    old.mkdir()
    new.mkdir()
    link(name, new)
    link(name, new)
    assert name.resolve() == new.resolve()
    with pytest.raises(SetupError, match="in the way"):
        link(old, new)


def test_comfyui_path_must_hold_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match="COMFYUI_PATH"):
        comfyui_tree()
    (tmp_path / "main.py").touch()
    assert comfyui_tree() == tmp_path.resolve()


def test_a_complete_tree_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    release = tmp_path / "tree", "package==1", "hash"
    monkeypatch.setattr(environment, "download_source", lambda folder, *_: asked.append(folder))
    monkeypatch.setattr(environment, "unpack", lambda archive, target: target.mkdir())
    environment.get_tree(*release)
    environment.get_tree(*release)
    assert len(asked) == 1
    (tmp_path / "tree" / environment.STAMP).unlink()
    environment.get_tree(*release)
    assert len(asked) == 2


def test_a_download_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "pip", lambda *_: (tmp_path / "x.tar.gz").write_bytes(b"something else"))
    with pytest.raises(SetupError, match="SHA-256"):
        environment.download_source(tmp_path, "package==1", "hash")


def test_an_old_python_is_named() -> None:
    check_version((3, 10), "This Python")
    with pytest.raises(SetupError, match="This Python is 3.9; Python 3.10 or newer"):
        check_version((3, 9), "This Python")
