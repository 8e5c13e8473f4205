"""What most tests of tuning start from."""

import pytest

from consistent_video.modules.clip_model.methods import EI2
from consistent_video.modules.tuning.host import progress
from consistent_video.modules.tuning.weights import Tune

from ..small import clip_latent
from .tuned import LONG, lively_model, patched, run


@pytest.fixture(scope="module")
def latent():
    return clip_latent()


@pytest.fixture(scope="session")
def tune() -> Tune:
    return run(patched(EI2))


@pytest.fixture(scope="session")
def long() -> Tune:
    """What LONG learns on a model whose every part matters."""
    return run(patched(EI2, lively_model()), LONG)


@pytest.fixture
def shown(monkeypatch) -> list:
    """What the progress bar is given: steps done, their number, a frame."""
    given = []
    monkeypatch.setattr(
        progress.ProgressBar, "update_absolute", lambda _bar, done, total, frame: given.append((done, total, frame))
    )
    return given
