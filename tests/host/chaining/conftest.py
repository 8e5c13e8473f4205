"""A clip model, its clip and inversion; whatever is chained to it, the base model stays as it was."""

from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..edits import edit, invert, patched, small_latent
from ..tuning.tuned import lively_model


@pytest.fixture(scope="module")
def base() -> ModelPatcher:
    return lively_model()


@pytest.fixture(scope="module")
def model(base) -> ModelPatcher:
    return patched(base=base)


@pytest.fixture(scope="module")
def latent() -> dict[str, Tensor]:
    return small_latent()


@pytest.fixture(scope="module")
def inversion(model, latent) -> dict[str, Any]:
    return invert(model, latent, steps=3)


@pytest.fixture(scope="module")
def edited(model, inversion) -> Tensor:
    return edit(model, inversion)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """The weights of a base model that nothing is chained to."""
    return lively_model().model.state_dict()


@pytest.fixture(autouse=True)
def the_base_model_stays(base, expected):
    """Check after each test that the shared model has its weights to the bit, no hooks, methods or options."""
    yield
    comfy.model_management.load_models_gpu(
        [base]
    )  # the host takes patches of weights out where it loads the next model
    comfy.model_management.unload_all_models()
    weights = base.model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], value) for key, value in expected.items())
    layers = list(base.model.modules())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer) for layer in layers)
    assert base.model_options == {"transformer_options": {}} and not base.patches and not base.object_patches
