"""The folder that Tune-A-Video's files lie in."""

from pathlib import Path

import folder_paths
import pytest

from consistent_video.modules.files import host as files


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tunes, empty and this test's own."""
    for name in (files.FOLDER, files.IMPORTS):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path)], files.EXTENSIONS[name]))
    return tmp_path
