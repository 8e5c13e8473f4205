"""Losses and gradients that are not finite, and gradients scaled for half precision."""

import math

import pytest
import torch
from torch import Tensor

from consistent_video.modules.tuning.settings import TuneSettings

from .toy import SETTINGS, Toy, finish, make_spectral, make_tuner, spoil, take


def steepen(denoised: Tensor) -> Tensor:
    """Return the same values with a gradient that is not finite: the square root's at 0."""
    return denoised + (denoised - denoised.detach()).sqrt()


SPOILT = {
    "loss became nan": lambda denoised: denoised * math.nan,
    "loss became inf": lambda denoised: denoised * math.inf,
    "gradient's norm became nan": steepen,
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_not_finite_stops_with_the_step_and_the_learning_rate_before_a_weight_changes(what: str) -> None:
    toy, clean = Toy(), Toy()
    tuner = make_tuner(toy, TuneSettings().changed(steps=9, learning_rate=0.0025), denoise=spoil(toy, 3, SPOILT[what]))
    with pytest.raises(FloatingPointError, match=rf"The {what} at step 3; lower learning_rate, 0\.0025 was set\.$"):
        finish(tuner)
    take(make_tuner(clean, TuneSettings().changed(steps=9, learning_rate=0.0025)), 2)
    assert len(toy.asked) == 3 and tuner.done == 2
    assert torch.equal(toy.mix, clean.mix) and torch.equal(toy.shift, clean.shift)


def test_where_the_rate_is_raised_both_are_told() -> None:
    toy, settings = Toy(), TuneSettings().changed(steps=9, learning_rate=0.0025, recipe="fast")
    with pytest.raises(FloatingPointError, match=r"learning_rate, 0\.0025 was set and recipe fast takes 5 times it\.$"):
        finish(make_tuner(toy, settings, denoise=spoil(toy, 3, SPOILT["loss became nan"])))


@pytest.mark.parametrize(("what", "kept"), [("loss became nan", 6), ("gradient's norm became nan", 8)])
def test_the_last_good_weights_had_a_finite_loss(what: str, kept: int) -> None:
    toy, clean, settings = Toy(), Toy(), SETTINGS.changed(steps=40)
    tuner = make_tuner(toy, settings, denoise=spoil(toy, 9, SPOILT[what]))
    with pytest.raises(FloatingPointError):
        finish(tuner)
    take(make_tuner(clean, settings), kept)
    done, state = tuner.last_good
    assert done == kept and torch.equal(state["mix"], clean.mix) and torch.equal(state["shift"], clean.shift)


def test_scaled_gradients_survive_one_that_is_not_finite() -> None:
    toy, clean = Toy(), Toy()
    tuner = make_tuner(toy, denoise=spoil(toy, 3, steepen), scale_gradients=True)
    take(tuner, 3)
    take(make_tuner(clean), 2)
    assert torch.equal(toy.mix, clean.mix), "the third step is left out"
    finish(tuner)
    assert tuner.done == 5 and toy.mix.isfinite().all() and not torch.equal(toy.mix, clean.mix)


def test_scaled_gradients_are_the_same_steps() -> None:
    toys = Toy(), Toy()
    for toy, scale_gradients in zip(toys, (False, True), strict=True):
        finish(make_tuner(toy, scale_gradients=scale_gradients))
    torch.testing.assert_close(toys[1].mix, toys[0].mix)


def test_spectral_norms_are_iterated_once_a_step() -> None:
    toys = make_spectral(1), make_spectral(1)
    twice = lambda x, sigma, frames: (toys[1].mix, toys[1].denoise(x, sigma, frames))[1]  # noqa: E731
    finish(make_tuner(toys[0]))
    finish(make_tuner(toys[1], denoise=twice))
    assert all(torch.equal(a, b) for a, b in zip(toys[0].buffers(), toys[1].buffers(), strict=True))
    assert len(list(toys[0].buffers())) == 2
