"""A model, its clip and the inversion, for what samples from it."""

from typing import Any

import pytest
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..edits import edit, invert, patched, small_latent


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    return patched()


@pytest.fixture(scope="module")
def latent() -> dict[str, Tensor]:
    return small_latent()


@pytest.fixture(scope="module")
def plain(model, latent) -> dict[str, Any]:
    return invert(model, latent)


@pytest.fixture(scope="module")
def edited(model, plain) -> Tensor:
    return edit(model, plain)
