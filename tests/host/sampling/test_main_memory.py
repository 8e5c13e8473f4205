"""What is kept of every step of a clip lies in main memory; the GPU holds one step of it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from consistent_video.bench.memory_count import HeldWithoutValues
from consistent_video.bench.windows import KEPT_STEPS, kept_of_clip
from consistent_video.modules.diffusion.ddim import ddim_trajectory
from consistent_video.modules.inversion.inversion import Inversion, InversionSettings, Relation
from consistent_video.modules.sampling.host import Relating, RelationSettings

SHAPE = (6, 4, 16, 24)


class HeldByGpu(HeldWithoutValues):
    """Counts what a GPU would hold."""

    def note(self, value: Any, counts: bool) -> None:
        if isinstance(value, Tensor) and value.device.type == "cuda":
            super().note(value, counts)


def held_by_gpu(steps: int) -> int:
    """Return the bytes that a GPU holds at most while a clip is inverted and its frames are tied in one step."""
    with FakeTensorMode(), HeldByGpu() as held:
        x, sigmas = torch.empty(SHAPE, device="cuda"), torch.ones(steps + 1)
        inverting = Relation(InversionSettings(steps, 0.0, "none"), sigmas)
        for step in range(steps):
            inverting(step, x, x + 1)
        clip = torch.empty(SHAPE)
        inversion = Inversion(sigmas, torch.stack(inverting.noises), clip, clip, inverting.settings, "")
        states = ddim_trajectory(inversion.source, inversion.noises, sigmas)
        Relating(RelationSettings(), inversion, states)(1, x, x + 1)
    return held.peak


def test_the_gpu_holds_no_more_for_more_steps() -> None:
    few, many = held_by_gpu(3), held_by_gpu(30)
    assert few == many > 4 * torch.Size(SHAPE).numel()


@pytest.mark.parametrize("frames", [8, 32])
def test_main_memory_holds_the_noises_and_states_once(frames: int) -> None:
    latent, row = 4 * frames * 4 * 16**2, kept_of_clip(frames, 16)
    kept = (KEPT_STEPS / 2 + 2) * latent  # noises in half precision, source and start
    assert kept <= row["kept"] <= 1.01 * kept
    assert kept + (KEPT_STEPS + 1) * latent <= row["bytes"] <= kept + (KEPT_STEPS + 5) * latent
