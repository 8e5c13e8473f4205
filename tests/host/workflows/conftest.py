"""Workflows that have run in the server, for the tests that go on from them."""

from pathlib import Path

import pytest

from consistent_video.demo.clips import save_video
from consistent_video.scripts.clips import fit_square, read_clip
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.host import Host

from .graphs import PATIENCE, load_workflow


SIDE = 64  # pixels, half of the demo clips'


def small_clip(host: Host, name: str, num_frames: int) -> Path:
    """Put the first frames of a demo clip into the server's input folder, reduced."""
    frames, rate = read_clip(ROOT / "demo" / "clips" / f"{name}.mp4", num_frames)
    save_video(path := host.base / "input" / f"{name}.mp4", fit_square(frames, SIDE), rate)
    return path


@pytest.fixture(scope="session")
def demo_clip(host: Host) -> Path:
    return small_clip(host, "red_circle", 8)


@pytest.fixture(scope="session")
def long_clip(host: Host) -> Path:
    return small_clip(host, "striped_cross", 18)


@pytest.fixture(scope="session")
def tuned(host: Host, demo_clip: Path):
    """EI²'s workflow, run; it saves the tune that another workflow loads."""
    prompt = load_workflow(host, "demo_ei2")
    return prompt, host.run(prompt, patience=PATIENCE)


@pytest.fixture(scope="session")
def judged(host: Host, tuned, demo_clip: Path):
    """Two edits with the saved tune, run."""
    prompt = load_workflow(host, "demo_saved_tune")
    return prompt, host.run(prompt, patience=PATIENCE)
