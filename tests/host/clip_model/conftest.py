"""The small model, a clip and what is sampled without frame attention."""

import pytest

from ..small import clip_latent, random_model


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def latent():
    return clip_latent()
