"""What a GPU may do otherwise than a CPU: weights that come and go, half precision, its memory, the order of sums.

`python -m bench gpu` runs these and the others that are marked so; without one, what it needs is left out.
"""

import math
from collections.abc import Iterator
from functools import partial

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import pytest
import torch

from consistent_video.modules.clip_model.methods import EI2

from ..small import UNET, Small, clip_latent, family_model, make_model, random_weights, sample
from .tuned import SETTINGS, assert_same_tuning, distance, lively_model, patched, run

pytestmark = pytest.mark.gpu
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def dynamic_vram(monkeypatch) -> Iterator[None]:
    """Let weights come and go, as ComfyUI's main.py does on NVIDIA cards; what is loaded does not outlive it."""
    if not comfy.model_management.is_nvidia() or comfy.model_management.is_wsl():
        pytest.skip("ComfyUI has no DynamicVRAM here")
    control = pytest.importorskip("comfy_aimdo.control")
    control.init()
    assert control.init_devices(device.index for device in comfy.model_management.get_all_torch_devices())
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    yield
    comfy.model_management.unload_all_models()


@on_gpu
def test_weights_that_come_and_go_give_the_same_clip(dynamic_vram) -> None:
    make = partial(make_model, Small, UNET, partial(random_weights, std=0.1), torch.float32)
    held, moving = (patched(EI2, make(disable_dynamic=given)) for given in (True, False))
    assert moving.is_dynamic() and not held.is_dynamic()
    found, expected = (sample(model, clip_latent()) for model in (moving, held))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@on_gpu
@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_a_clip_in_half_precision_is_near_that_in_full(dtype: torch.dtype, near: float) -> None:
    half, full = (sample(patched(EI2, family_model("SD1.x", kind)), clip_latent()) for kind in (dtype, torch.float32))
    assert half.isfinite().all() and 0 < distance(half, full) < near


@on_gpu
def test_a_deterministic_tuning_is_the_same_to_the_bit() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, again = (run(patched(EI2, lively_model())) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_tuning(again, first)


@on_gpu
def test_a_tuning_that_does_not_fit_takes_less() -> None:
    latent = clip_latent(frames=16)
    latent["samples"] = torch.nn.functional.interpolate(latent["samples"], scale_factor=8.0)

    def peak(**changes) -> int:
        comfy.model_management.soft_empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run(patched(EI2), SETTINGS.changed(steps=1, **changes), latent=latent)
        return torch.cuda.max_memory_reserved()

    peaks = peak(), peak(chunking=True, gradient_checkpointing=True)
    assert peaks[1] < 0.8 * peaks[0], "the case must be one that checkpointing helps"
    whole, cap = torch.cuda.get_device_properties(0).total_memory, sum(peaks) / 2
    try:
        torch.cuda.set_per_process_memory_fraction(cap / whole)
        found = run(patched(EI2), SETTINGS.changed(steps=3), latent=latent)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert found.info["stepped_down"] and all(map(math.isfinite, found.info["loss"]))
