"""Files appear whole or not at all, whoever else writes."""

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from consistent_video.modules.files import whole
from consistent_video.modules.files.whole import ABANDONED, PART, appearing, remove_abandoned


@pytest.mark.skipif(os.name == "nt", reason="modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_mode_follows_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    """Whatever the mode that a library gives what it writes."""
    before = os.umask(umask)
    try:
        with appearing(tmp_path / "a") as file, appearing(tmp_path / "b") as folder:
            file.touch(0o600)
            folder.mkdir()
            (folder / "c").touch(0o600)
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "b/c")] == [mode, mode]


def test_what_is_to_be_new_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileExistsError), appearing(tmp_path / "a", new=True):
        raise AssertionError("it is there")
    with appearing(tmp_path / "b", new=True) as first:
        first.write_text("first")
        with pytest.raises(FileExistsError), appearing(tmp_path / "b", new=True):
            raise AssertionError("it is being written")
        assert not (tmp_path / "b").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "first"}


def test_what_appears_while_its_name_is_being_reserved_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process had reserved it, and writes it just before it lets it go."""
    mkdir = Path.mkdir

    def late(path: Path) -> None:
        mkdir(path)
        (tmp_path / "a").write_text("theirs")

    monkeypatch.setattr(Path, "mkdir", late)
    with pytest.raises(FileExistsError), appearing(tmp_path / "a", new=True):
        raise AssertionError("it is there")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


def test_two_that_replace_do_not_mix(tmp_path: Path) -> None:
    with appearing(tmp_path / "a") as one, appearing(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["one"], "the outer one ends last"


@pytest.mark.parametrize("where", ["mkdir", "replace"])
def test_the_first_error_is_seen_with_what_to_do(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a read-only folder nothing can be cleaned up either."""

    def refuse(*_args: object, **_named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for held, name in ((Path, "mkdir"),) if where == "mkdir" else ((os, "replace"), (os, "rmdir"), (os, "unlink")):
        monkeypatch.setattr(held, name, refuse)
    words = rf"^a could not be written \(Permission denied\)\. Free up space in {tmp_path}, and check that"
    with pytest.raises(OSError, match=words), appearing(tmp_path / "a", new=True) as file:
        file.write_text("x")
    assert not (tmp_path / "a").exists()


def write_for_long(path: Path, begun) -> None:
    with appearing(path, new=True) as file:
        file.write_text("half")
        begun.set()
        time.sleep(60)


def make_old(folder: Path) -> None:
    long_ago = time.time() - 2 * ABANDONED
    for path in (folder, *folder.iterdir()):
        os.utime(path, (long_ago, long_ago))


@pytest.mark.skipif(whole.fcntl is None, reason="Windows refuses to delete what is open")
def test_only_what_no_process_writes_is_removed(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    begun = processes.Event()
    process = processes.Process(target=write_for_long, args=(tmp_path / "a", begun))
    process.start()
    assert begun.wait(30)
    (tmp_path / f"young{PART}").mkdir()
    (tmp_path / "movie.safetensors.part").write_text("of a browser")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").touch()
    (tmp_path / f"link{PART}").symlink_to(tmp_path / "elsewhere")
    make_old(tmp_path / f"a{PART}")
    make_old(tmp_path / "elsewhere")
    kept = {f"young{PART}", "movie.safetensors.part", "elsewhere", f"link{PART}"}
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"a{PART}", *kept}, "it is being written"
    process.kill()
    process.join()
    with appearing(tmp_path / "b") as file:
        file.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"b", *kept}, "the next save removes it"
    assert (tmp_path / "elsewhere" / "lock").exists()
