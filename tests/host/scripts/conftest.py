"""The editor in a browser, with a server of its own."""

import shutil
from collections.abc import Iterator

import pytest

from consistent_video.scripts.browser import Editor
from consistent_video.scripts.environment import ROOT, comfyui_tree
from consistent_video.scripts.host import Host, device_arguments

from ..workflows.graphs import small_clip

SHOTS = ROOT / "output" / "browser"
PATIENCE = 900_000  # milliseconds; a loaded machine is many times slower


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A server of its own: what is queued here is not to lie in the cache of the others' graphs."""
    base = tmp_path_factory.mktemp("edited")
    (base / "input").mkdir()
    for clip in (ROOT / "demo" / "clips").glob("*.mp4"):
        small_clip(base / "input" / clip.name, 4)
    shutil.copy(base / "input" / "red_circle.mp4", base / "input" / "clip.mp4")
    with Host(comfyui_tree(), base, device_arguments()) as host:
        yield host


@pytest.fixture(scope="module")
def editor(server: Host) -> Iterator[Editor]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with Editor(server.address) as opened:
        yield opened
