"""The real ComfyUI, importable in this process (on the CPU where there is no accelerator) and as a running server."""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from consistent_video.scripts.environment import ROOT, SetupError, comfyui_tree
from consistent_video.scripts.host import Host, device_arguments
from consistent_video.scripts.in_process import use_host

for ending in (signal.SIGTERM, signal.SIGINT):  # the latter is ignored in what a script runs in the background
    signal.signal(ending, signal.default_int_handler)  # so that fixtures stop their servers


try:
    arguments = use_host(ROOT / ".comfyui-data" / "tests" / os.environ.get("PYTEST_XDIST_WORKER", "alone"))
except SetupError as error:
    raise pytest.UsageError(f"{error}; run python scripts/test.py, which gets it") from error
arguments.use_pytorch_cross_attention = True  # as with a GPU
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # the tests compare in float32


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    """Give the processes that share the tests time to stop their servers when they are interrupted."""
    node.nodemanager.EXIT_TIMEOUT = 40  # seconds


def pytest_collection_finish() -> None:
    """Take what was imported out of the garbage collection that each tuning ends with: it takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def folders() -> None:
    """Tell this process's ComfyUI of the pack's folders, as it does when it loads the pack."""
    from consistent_video.modules.files.host import register_folder

    register_folder()


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Iterator[Host]:
    """The running server with this pack, and with TAESD among its models where the test data is there."""
    base = tmp_path_factory.mktemp("comfyui")
    models = base / "models" / "vae_approx"
    models.mkdir(parents=True)
    for file in sorted((data_folder / "taesd").glob("*.safetensors")):
        shutil.copy(file, models)
    with Host(comfyui_tree(), base, device_arguments()) as server:
        yield server
