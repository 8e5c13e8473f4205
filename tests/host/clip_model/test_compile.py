"""torch.compile behind the patch, as TorchCompileModel attaches it."""

import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper

from ..small import clip_latent, random_model, sample
from .patched import CROSS_FRAME, patched


@pytest.mark.parametrize("name", CROSS_FRAME)
def test_a_compiled_model_gives_the_same_clip_whatever_its_length(name: str) -> None:
    model = patched(random_model(), name)
    compiled = model.clone(disable_dynamic=True)
    set_torch_compile_wrapper(compiled, backend="eager", dynamic=True)
    for frames in (3, 5):
        latent = clip_latent(frames)
        torch.testing.assert_close(sample(compiled, latent), sample(model, latent), rtol=1e-4, atol=1e-4)
