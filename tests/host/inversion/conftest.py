"""A model and its clip, for what inverts it."""

from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from consistent_video.modules.tuning.host.progress import TuningProgress
from consistent_video.modules.tuning.host.training import tune_model
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.modules.tuning.weights import Tune

from ..edits import invert, patched, small_latent
from ..small import SOURCE


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    return patched()


@pytest.fixture(scope="module")
def latent() -> dict[str, Tensor]:
    return small_latent()


@pytest.fixture(scope="module")
def tune(latent) -> Tune:
    settings = TuneSettings().changed(steps=2, learning_rate=1e-2)
    with torch.inference_mode():
        return tune_model(patched(), TuneInputs(SOURCE, latent), settings, TuningProgress("1"))


@pytest.fixture(scope="module")
def plain(model, latent) -> dict[str, Any]:
    return invert(model, latent)
