"""Files of users in the real host: damaged ones, hostile names, two processes that save, and no network."""

import importlib.util
import json
import multiprocessing
import os
import sys
from pathlib import Path

import folder_paths
import pytest
import torch

from consistent_video.bench.fault_files import try_files, try_paths
from consistent_video.bench.fault_readers import folders_at, make_readers, make_tune
from consistent_video.modules.files.host import AUTOSAVES, FOLDER, IMPORTS, list_files
from consistent_video.modules.files.whole import PART, appearing
from consistent_video.modules.tuning.weights import load_tune
from consistent_video.nodes.shelves import TUNES
from consistent_video.scripts.environment import ROOT

from ..edits import edit, invert, patched, small_latent


def test_damaged_files_are_refused_in_words() -> None:
    rows = list(try_files(200, seed=2))
    assert sum(row.tried for row in rows) >= 190 and len({row.fault.split(":")[0] for row in rows}) == 8
    assert not {row.fault: row.failed for row in rows if row.failed}


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_hostile_names_are_refused_or_stay_below_the_folder() -> None:
    rows = list(try_paths(seed=0))
    assert len(rows) > 8 and not {row.fault: row.failed for row in rows if row.failed}


def save_some(prefix: str, count: int) -> list[Path]:
    return [TUNES.write(make_tune(), prefix) for _ in range(count)]


@pytest.mark.skipif(os.name == "nt", reason="fork")
def test_processes_that_save_under_one_prefix_overwrite_nothing(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    with folders_at(tmp_path), multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(save_some, [("swan", 8)] * 6, chunksize=1)
        pool.close()
        pool.join()  # a signal to end may find a forked process holding a lock for ever
    paths = [path for some in found for path in some]
    assert len(paths) == len(set(paths)) == 48 and {*paths} == {*tmp_path.iterdir()}
    assert all(len(load_tune(path).tensors) == 2 for path in paths)


def test_what_is_being_written_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (FOLDER, IMPORTS):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path)], {".safetensors"}))
    TUNES.write(make_tune(), "a/swan")
    with appearing(tmp_path / "unet", new=True) as unfinished:
        unfinished.mkdir()
        (unfinished / "half.safetensors").write_text("half")
        assert (tmp_path / f"unet{PART}" / "content" / "half.safetensors").exists()
        assert list_files(FOLDER) == ["a/swan_00001_.safetensors"]
        folder_paths.filename_list_cache.pop(FOLDER, None)
        TUNES.write(make_tune(), f"{AUTOSAVES}/12")
        assert list_files(FOLDER) == ["a/swan_00001_.safetensors", f"{AUTOSAVES}/12_00001_.safetensors"]
        assert list_files(IMPORTS) == ["a/swan_00001_.safetensors"]
    assert (tmp_path / "unet" / "half.safetensors").exists()


OUTWARDS = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system", "os.exec",
            "os.posix_spawn", "os.fork", "urllib.Request")  # fmt: skip
watched: list[str] | None = None


def note(event: str, given: tuple) -> None:
    """Note what leads out of this process; a hook that cannot be taken back."""
    if watched is not None and event in OUTWARDS:
        watched.append(f"{event} {given!r:.100}")


def test_nothing_leads_out_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and no other process, neither at import nor at run."""
    sys.addaudithook(note)
    monkeypatch.setattr(sys.modules[__name__], "watched", [])
    # Import, under another name.
    place = [str(ROOT)]
    spec = importlib.util.spec_from_file_location("again", ROOT / "__init__.py", submodule_search_locations=place)
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "again", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules["again"])
    assert "again.modules.sampling.host" in sys.modules
    for name in [name for name in sys.modules if name.startswith("again.")]:
        del sys.modules[name]
    # Invert, edit, save and read.
    with torch.inference_mode(), folders_at(tmp_path):
        model = patched()
        edit(model, invert(model, small_latent()))
        tune = TUNES.read(TUNES.write(make_tune(), "swan").name)
    for called in ("CLIP folder", "LPIPS"):  # whose libraries would download
        reader = make_readers()[called]
        folder = tmp_path / called / "clip"
        folder.mkdir(parents=True)
        for name, content in reader.files.items():
            (folder / name).write_bytes(content)
        with folders_at(folder):
            reader.read(folder)
    assert watched == [] and "prompt" in json.dumps(tune.info)
    os.system("true")
    assert len(watched) == 1, "it would be seen"
