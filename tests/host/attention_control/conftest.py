"""A model whose attention counts, and its inverted clip."""

import pytest
import torch

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, method
from consistent_video.modules.inversion.host.invert import invert_clip

from ..small import SOURCE, UNET, Small, clip_latent, make_model, random_weights
from .controlled import PLAIN


def attentive_weights(shapes: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return random weights whose attention is far from uniform and counts."""
    weights = random_weights(shapes, 0.1, dtype)
    return {key: 3 * value if ".attn" in key and value.ndim == 2 else value for key, value in weights.items()}


@pytest.fixture(scope="module")
def base():
    return make_model(Small, UNET, attentive_weights, torch.float32)


@pytest.fixture(scope="module")
def model(base):
    return attach(inflate(base), *method(EI2, 2))


@pytest.fixture(scope="module")
def latent():
    return clip_latent()


@pytest.fixture(scope="module")
def inversion(model, latent):
    return invert_clip(model, SOURCE, SOURCE, latent, PLAIN)
