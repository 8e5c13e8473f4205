"""The small model and a clip that the tests start from."""

import pytest

from ..small import clip_latent, random_model


@pytest.fixture
def model():
    return random_model()


@pytest.fixture
def latent():
    return clip_latent()
