"""What all tests share: the pack under one name, and the data that lies beside the project."""

import os
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

runpy.run_path(str(ROOT / "scripts" / "environment.py"))["register_pack"]()
torch.set_num_threads(1)  # the models are tiny: threads would wait for each other


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores, but each takes 3 GB and they would share an accelerator's memory."""
    return 0 if torch.accelerator.is_available() else min(os.cpu_count() or 1, 4)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Where real clips and TAESD lie, which are not part of the project; the folder may be missing."""
    return Path(os.environ.get("CONSISTENT_VIDEO_TEST_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def test_data(data_folder: Path) -> Path:
    """The folder with real clips and TAESD; a test that needs it is skipped where it is missing."""
    if not data_folder.is_dir():
        pytest.skip(f"no test data: {data_folder} is missing and CONSISTENT_VIDEO_TEST_DATA names no other folder")
    return data_folder
