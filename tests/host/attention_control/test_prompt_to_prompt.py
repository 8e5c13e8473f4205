"""Attention control against Prompt-to-Prompt written out."""

from dataclasses import replace

import pytest
import torch

from consistent_video.modules.attention_control.host.call import ControlSettings
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, method
from consistent_video.modules.inversion.host.invert import INVERSION, invert_clip, trajectory
from consistent_video.modules.inversion.inversion import InversionSettings

from ..small import SOURCE, TOKENS
from .controlled import PLAIN, PROMPTS, STEPS, WEIGHTED, controlled, sample, watched
from .side_by_side import SideBySide

OFF = ControlSettings("none", 0.0, "replace", 0.0)


@pytest.mark.parametrize(
    ("settings", "prompts", "preset", "cfg"),
    [
        (ControlSettings("refine", 0.8, "replace", 0.0), PROMPTS, EI2, 1.0),
        (ControlSettings("replace", 0.4, "replace", 0.0), PROMPTS, EI2, 3.0),
        (ControlSettings("none", 0.0, "replace", 0.6), PROMPTS, EI2, 3.0),
        (ControlSettings("refine", 0.6, "replace", 0.4), PROMPTS, EI2, 3.0),
        (ControlSettings("none", 1.0, "replace", 0.0), WEIGHTED, EI2, 3.0),
        (ControlSettings("refine", 1.0, "replace", 1.0), WEIGHTED, EI2, 1.0),
        (ControlSettings("refine", 1.0, "replace", 1.0), WEIGHTED, EI2, 3.0),
        (ControlSettings("replace", 0.6, "replace", 0.4), WEIGHTED, PER_FRAME, 3.0),
    ],
    ids=str,
)
def test_it_is_prompt_to_prompt(base, latent, settings, prompts, preset, cfg) -> None:
    model = attach(inflate(base), *method(preset, 2))
    inversion = invert_clip(model, SOURCE, SOURCE, latent, PLAIN)
    ours = sample(controlled(model, inversion, settings, prompts), inversion, cfg).cpu()
    expected = SideBySide(model, inversion, settings, prompts).walk(cfg)
    free = sample(model, inversion, cfg).cpu()
    assert (ours - expected).norm() / expected.norm() < 1e-5
    assert (ours - free).norm() > 100 * (ours - expected).norm()


@pytest.mark.parametrize("settings", [OFF, ControlSettings("refine", 0.0, "fusion", 0.0)])
def test_without_a_part_of_the_steps_it_changes_nothing(model, inversion, settings) -> None:
    seen: list[torch.Tensor] = []
    ours = sample(watched(controlled(model, inversion, settings, WEIGHTED), seen.append), inversion)
    assert torch.equal(ours, sample(model, inversion)) and not seen


@pytest.mark.parametrize("cross", ["refine", "replace"])
def test_an_unchanged_prompt_gives_the_source_back(model, latent, cross) -> None:
    """With the steps of the inversion refined to their fixed point, sampling comes back along the same states."""
    inversion = invert_clip(model, SOURCE, SOURCE, latent, InversionSettings(5, 0.0, denoise=1.0, refinements=8))
    same = replace(PROMPTS, alignment=tuple(range(TOKENS)), replacement=torch.eye(TOKENS))
    model = controlled(model, inversion, ControlSettings(cross, 1.0, "replace", 1.0), same)
    back = sample(model, inversion, 1.0, SOURCE).cpu()
    assert (back - latent["samples"]).norm() / latent["samples"].norm() < 5e-3


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (ControlSettings("refine", 1.0, "replace", 0.0), STEPS),
        (ControlSettings("refine", 0.4, "replace", 0.2), 2),
        (ControlSettings("none", 0.0, "replace", 0.5), 3),
        (ControlSettings("none", 0.0, "replace", 0.0, local_blend=True), STEPS),
    ],
)
def test_the_source_is_evaluated_once_in_each_controlled_step(model, inversion, settings, count) -> None:
    seen: list[torch.Tensor] = []
    sample(watched(controlled(model, inversion, settings), seen.append), inversion)
    assert len(seen) == count
    states, sigmas = trajectory(model.model, inversion[INVERSION]), inversion[INVERSION].sigmas
    for rows, state, sigma in zip(seen, states, sigmas, strict=False):
        torch.testing.assert_close(rows.cpu(), state / (1 + sigma**2).sqrt())


@pytest.mark.parametrize("start", [0, 2])
def test_parts_are_of_the_inversions_steps(model, inversion, start) -> None:
    """From the third of five steps on nothing acts that ends after two."""
    ours = sample(controlled(model, inversion, ControlSettings("refine", 0.4, "replace", 0.4)), inversion, start_step=2)
    assert torch.equal(ours, sample(model, inversion, start_step=2))
    assert not torch.equal(
        sample(controlled(model, inversion, ControlSettings("refine", 0.5)), inversion, start_step=start),
        sample(model, inversion, start_step=start),
    )
