"""Workflows that have run in the server, for the tests that go on from them."""

from pathlib import Path

import pytest

from consistent_video.scripts.host import Host

from .graphs import DEMO_FRAMES, PATIENCE, load_workflow, small_clip


@pytest.fixture(scope="session")
def demo_clip(host: Host) -> Path:
    return small_clip(host.base / "input" / "red_circle.mp4", DEMO_FRAMES)


@pytest.fixture(scope="session")
def long_clip(host: Host) -> Path:
    return small_clip(host.base / "input" / "striped_cross.mp4", 18)


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
