"""The temporal consistency loss in a tuning, and gradient descent with its check."""

from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from consistent_video.modules.tuning.learning_rate import Curvature, Smoothness, advice_text, safe_learning_rate
from consistent_video.modules.tuning.losses.consistency import mean_consistency_loss
from consistent_video.modules.tuning.objective import Clip
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.modules.tuning.tuner import ROUNDING, Tuner

TABLE = torch.linspace(0.5, 2.0, 11)
SETTINGS = TuneSettings().changed(steps=4, learning_rate=1e-2, seed=3)


class Toy(nn.Module):
    """A linear denoiser that shows two blocks of features of its last call."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(0.3 * torch.randn(3, 3, generator=torch.Generator().manual_seed(4)))
        self.held: list[Tensor] = []

    def denoise(self, x: Tensor, sigma: Tensor, _frames: slice) -> Tensor:
        noise = torch.einsum("ij, f j h w -> f i h w", self.mix, x)
        self.held = [noise, noise[:, :, ::2].square()]
        return x - sigma * noise

    def features(self) -> dict[str, list[Tensor]]:
        return {"middle": self.held}


def make_tuner(settings: TuneSettings, frames: int = 4) -> Tuner:
    toy = Toy()
    clip = torch.randn(frames, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    return Tuner(toy.denoise, toy, Clip(clip, TABLE, "eps"), settings, features=toy.features)


def finish(tuner: Tuner, steps: int | None = None) -> Tuner:
    for _ in islice(tuner.steps(), steps):
        pass
    return tuner


def test_a_weight_of_zero_changes_nothing_and_asks_for_no_features() -> None:
    plain, other = (make_tuner(SETTINGS.changed(consistency_part=part)) for part in ("middle", "all"))
    assert torch.equal(finish(plain).learned.mix, finish(other).learned.mix) and plain.losses == other.losses
    assert plain.losses["consistency_loss"] == [0.0] * plain.done and not plain.settings.parts | other.settings.parts


def test_the_loss_is_added_with_its_weight() -> None:
    tuner = make_tuner(SETTINGS.changed(consistency_weight=0.7))
    drawn = tuner.draw()
    losses, total = tuner.objective.evaluate(drawn, 0)
    expected = mean_consistency_loss(tuner.learned.held)
    assert torch.equal(losses["consistency_loss"], expected) and expected > 0
    expected = losses["loss"] + 0.7 * losses["consistency_loss"]
    torch.testing.assert_close(total, expected)
    finish(tuner)
    assert len(tuner.losses["consistency_loss"]) == 4 and min(tuner.losses["consistency_loss"]) > 0


def test_it_is_what_is_minimised() -> None:
    """On the same draws, with next to no other loss and with next to none of it."""
    weak, strong = (make_tuner(SETTINGS.changed(steps=60, consistency_weight=w)) for w in (1e-9, 1e4))
    ends = [sum(finish(tuner).losses["consistency_loss"][-20:]) for tuner in (weak, strong)]
    assert ends[1] < 0.9 * ends[0]


def test_two_frames_cost_nothing() -> None:
    assert finish(make_tuner(SETTINGS.changed(consistency_weight=1.0), 2)).losses["consistency_loss"] == [0.0] * 4


@pytest.mark.parametrize("optimizer", ["AdamW", "gradient descent"])
def test_it_goes_on_to_the_bit(optimizer: str) -> None:
    settings = SETTINGS.changed(optimizer=optimizer, consistency_weight=0.5, learning_rate=0.8)
    whole, part = finish(make_tuner(settings)), finish(make_tuner(settings), 2)
    again = make_tuner(settings)
    again.load_state_dict(part.state_dict())
    finish(again)
    assert torch.equal(again.learned.mix, whole.learned.mix)
    assert (again.losses, again.rises) == (whole.losses, whole.rises)


def test_gradient_descent_is_plain() -> None:
    tuner = make_tuner(SETTINGS.changed(steps=1, optimizer="gradient descent", max_grad_norm=0.0, weight_decay=0.5))
    before = tuner.learned.mix.detach().clone()
    with tuner.whole_step():
        drawn = tuner.draw()
    (slope,) = torch.autograd.grad(tuner.objective.evaluate(drawn, 0)[1], tuner.learned.mix)
    finish(tuner)
    torch.testing.assert_close(tuner.learned.mix, before - 1e-2 * slope)


class Bowl(nn.Module):
    """A denoiser of which the loss is a quadratic with the curvature 2 at any draw: its output is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(5.0))

    def denoise(self, x: Tensor, sigma: Tensor, _frames: slice) -> Tensor:
        return x - sigma * self.level.expand_as(x)


BOWL = Clip(torch.zeros(3, 3, 20, 20), TABLE, "eps")


def descend(rate: float, steps: int = 20) -> Tuner:
    bowl = Bowl()
    settings = TuneSettings(steps).changed(learning_rate=rate, optimizer="gradient descent", max_grad_norm=0.0)
    return finish(Tuner(bowl.denoise, bowl, BOWL, settings))


@pytest.mark.parametrize("share", [0.1, 1.0, 1.9])
def test_below_two_over_l_every_step_lowers_its_loss(share: float) -> None:
    tuner = descend(share / 2)
    assert tuner.rises == [] and tuner.losses["loss"][-1] < tuner.losses["loss"][0]


def test_above_two_over_l_steps_raise_theirs_and_are_named() -> None:
    tuner = descend(2.2 / 2, 5)
    assert tuner.rises == [1, 2, 3, 4, 5] and tuner.losses["loss"][-1] > tuner.losses["loss"][0]


def test_a_step_is_done_before_it_is_checked(monkeypatch) -> None:
    bowl, settings = Bowl(), TuneSettings(3).changed(learning_rate=0.1, optimizer="gradient descent", max_grad_norm=0.0)
    tuner = Tuner(bowl.denoise, bowl, BOWL, settings)
    monkeypatch.setattr(tuner, "has_risen", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(tuner.steps())
    assert tuner.done == 1 and not tuner.is_applying
    monkeypatch.undo()
    finish(tuner)
    whole = descend(0.1, 3)
    assert tuner.losses == whole.losses and torch.equal(bowl.level, whole.learned.level)


def test_rounding_is_no_rise(monkeypatch) -> None:
    for rounding, rises in ((1e-5, [1]), (10.0, [])):
        monkeypatch.setitem(ROUNDING, "fp32", rounding)
        assert descend(1.1, 1).rises == rises


def test_adamw_is_not_checked() -> None:
    assert finish(make_tuner(SETTINGS.changed(learning_rate=100.0))).rises == []


CURVATURES = [Curvature(0, 0.5, 4.0), Curvature(9, 2.0, 10.0)]


def test_the_safe_rate_is_one_over_the_largest_curvature() -> None:
    assert safe_learning_rate(CURVATURES) == 0.1
    assert safe_learning_rate([Curvature(0, 1.0, 0.0)]) == 0


def test_the_advice_says_what_is_proven_and_what_is_estimated() -> None:
    smooth = Smoothness(8, 2.0, 3.65, 0.5)
    text = advice_text(CURVATURES, smooth, None)
    assert "learning_rate 0.1 = 1 / L" in text and "3.65, proven" in text and "the bound is ours" in text
    assert "step" not in text.split("\n\n")[-1]
    assert "Every step lowered" in advice_text(CURVATURES, smooth, [])
    assert "2 steps raised the very loss they were taken on (steps 3, 7)" in advice_text(CURVATURES, smooth, [3, 7])
    assert "needs 3 frames, and there are 2" in advice_text(CURVATURES, Smoothness(2, 2.0, 0.0, 0.0), None)
