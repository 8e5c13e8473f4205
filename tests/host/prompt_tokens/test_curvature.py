"""The learning rate that curvature advises for prompt tokens."""

from unittest import mock

import pytest
import torch

from consistent_video.modules.prompt_tokens.host import tokens as prompt_tokens
from consistent_video.modules.prompt_tokens.host.session import PromptSettings, PromptTuning
from consistent_video.modules.prompt_tokens.host.tokens import measure_curvatures
from consistent_video.modules.tuning.host.private_copy import private_copy
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs

from ..small import FRAMES, SOURCE, clip_latent
from .learned import SETTINGS, assert_same, clip_model, run


def test_gradient_descent_at_the_advised_rate_never_rises() -> None:
    gentle = SETTINGS.changed(steps=1, optimizer="gradient descent", learning_rate=1e-9, max_grad_norm=0.0)
    found = run(settings=gentle, with_advice=True)
    rate = 1 / max(curvature.value for curvature in found.curvatures)
    assert [curvature.step for curvature in found.curvatures] == [0, 0, 0, 1, 1, 1]
    safe = run(settings=gentle.changed(steps=5, learning_rate=rate)).adapter.info
    assert safe["rises"] == []
    assert run(settings=gentle.changed(steps=5, learning_rate=1e4 * rate)).adapter.info["rises"]


def test_the_bound_on_this_clips_features_holds() -> None:
    smoothness = run(settings=SETTINGS.changed(steps=1, consistency_part="all"), with_advice=True).smoothness
    assert smoothness.frames == FRAMES and 0 < smoothness.found < smoothness.bound


def test_advice_changes_nothing(adapter) -> None:
    assert_same(run(with_advice=True).adapter, adapter)


def test_curvature_is_that_of_the_whole_hessian() -> None:
    """With few numbers learned, so that the Hessian can be written down column by column."""
    with torch.inference_mode(False), torch.enable_grad(), private_copy(clip_model()) as copy:
        tuning = PromptTuning(copy, clip_model(), TuneInputs(SOURCE, clip_latent()), SETTINGS, PromptSettings(1, 0))
        with mock.patch.object(prompt_tokens, "ITERATIONS", 20), mock.patch.object(prompt_tokens, "LEVELS", (0.5,)):
            (found,) = measure_curvatures(tuning)
        with tuning.tuner.whole_step():
            drawn = tuning.tuner.draw(500)
        shared = tuning.learned.tokens.shared
        gradient = prompt_tokens.gradient_of(tuning, drawn, [shared])
        here, h = shared.detach().reshape(-1).clone(), 2e-3
        columns = [(gradient(here + h * e) - gradient(here - h * e)) / (2 * h) for e in torch.eye(len(here)).to(here)]
        expected = torch.linalg.eigvalsh((torch.stack(columns) + torch.stack(columns).T) / 2).abs().max().item()
    assert found.value == pytest.approx(expected, rel=0.1)
