"""One-shot tuning with a smoothing loss, against the sum of both losses written out."""

import math
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from consistent_video.modules.diffusion.ddim import Prediction
from consistent_video.modules.tuning.losses import smoothing as smoothing_losses
from consistent_video.modules.tuning.losses.smoothing import SmoothingLoss
from consistent_video.modules.tuning.losses.term import Forward
from consistent_video.modules.tuning.objective import Clip
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.modules.tuning.tuner import Tuner

TABLE = torch.logspace(-1.5, 1.1, 37)
SETTINGS = TuneSettings().changed(steps=4, learning_rate=1e-2, seed=2, max_grad_norm=0, smoothing="INR")
KINDS = ("INR", "SmoothVideo", "SmoothVideo simple")


class Toy(nn.Module):
    """A denoiser of two channels that learns a matrix, and notes what it was asked and was then."""

    def __init__(self, seed: int = 4) -> None:
        super().__init__()
        self.mix = nn.Parameter(0.5 * torch.randn(2, 2, generator=torch.Generator().manual_seed(seed)))
        self.asked: list[tuple[Tensor, Tensor, slice, Tensor]] = []

    def denoise(self, x: Tensor, sigma: Tensor, frames: slice) -> Tensor:
        self.asked.append((x, sigma, frames, self.mix.detach().clone()))
        return predict(x, sigma, self.mix)


def predict(x: Tensor, sigma: Tensor, mix: Tensor) -> Tensor:
    """A prediction of x_0 that is not linear."""
    return torch.einsum("ij, f j h w -> f i h w", mix, x / (1 + sigma**2).sqrt()).tanh()


def abar(sigma: Tensor) -> Tensor:
    return 1 / (1 + sigma**2)


def draw_clip() -> Tensor:
    return torch.randn(5, 2, 4, 3, generator=torch.Generator().manual_seed(0))


def draw_mask() -> Tensor:
    return torch.rand(5, 1, 4, 3, generator=torch.Generator().manual_seed(8)).sub(0.3).clamp(min=0)


def make_tuner(
    toy: Toy,
    settings: TuneSettings = SETTINGS,
    prediction: Prediction = "eps",
    mask: Tensor | None = None,
) -> Tuner:
    return Tuner(toy.denoise, toy, Clip(draw_clip(), TABLE, prediction, mask), settings)


def finish(tuner: Tuner) -> Tuner:
    for _ in tuner.steps():
        pass
    return tuner


def take(tuner: Tuner, steps: int) -> Tuner:
    for _ in islice(tuner.steps(), steps):
        pass
    return tuner


def diffusion(x: Tensor, x_0: Tensor, denoised: Tensor, sigma: Tensor, prediction: Prediction, mask: Tensor) -> Tensor:
    """The diffusion loss; both targets are linear in x and x_0, so that their error is that of x_0 times a factor."""
    factor = 1 / sigma if prediction == "eps" else (1 + 1 / sigma**2).sqrt()
    errors = (factor * (denoised - x_0)).square()
    return (mask * errors).sum() / mask.expand_as(errors).sum()


def smoothing(residual: Tensor, predicted: Tensor, settings: TuneSettings, where: Tensor) -> Tensor:
    """INR Smooth (19-22) or SmoothVideo's loss, frame by frame; a difference counts where all its frames do."""
    settings, frames = SimpleNamespace(**settings.flat()), range(len(residual))
    if settings.smoothing != "INR":
        bends = [
            (where[n] * where[n - 1] * where[n + 1], (2 * predicted[n] - predicted[n - 1] - predicted[n + 1]).abs())
            for n in frames[1:-1]
        ]
        return weighted(bends)
    held = residual.detach() if settings.coupling == "detached neighbour" else residual
    far = settings.coupling == "cumulative"
    sides = (
        [(n, frames[-1] if far else n + 1) for n in frames[:-1]],
        [(n, frames[0] if far else n - 1) for n in frames[1:]],
    )
    after, before = (
        weighted([(where[n] * where[m], (residual[n] - held[m]).square()) for n, m in pairs]) for pairs in sides
    )
    return settings.backward_weight * after + settings.forward_weight * before


def weighted(terms: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean of pictures by the weight of their positions."""
    total = sum((weight * value).sum() for weight, value in terms)
    return total / sum(weight.expand_as(value).sum() for weight, value in terms)


def by_hand(
    toy: Toy, step: int, settings: TuneSettings, prediction: Prediction, mask: Tensor | None
) -> tuple[float, float, Tensor]:
    """Return both losses of a step and the gradient of their weighted sum, from what the toy was asked."""
    x, sigma, frames, mix = (value.double() if isinstance(value, Tensor) else value for value in toy.asked[step])
    x_0, mix = draw_clip()[frames].double(), mix.requires_grad_()
    where = torch.ones(len(x_0), 1, 4, 3).double() if mask is None else mask[frames].double()
    denoised = predict(x, sigma, mix)
    loss = diffusion(x, x_0, denoised, sigma, prediction, where)
    eps, predicted = (x - x_0) / sigma, (x - denoised) / sigma
    flat = SimpleNamespace(**settings.flat())
    if flat.smoothing == "SmoothVideo":
        earlier = TABLE[int((TABLE.double() - sigma).abs().argmin()) - 1].double()
        c = abar(sigma).sqrt() / (
            abar(sigma).sqrt() * (1 - abar(earlier)).sqrt() - abar(earlier).sqrt() * (1 - abar(sigma)).sqrt()
        )
        predicted = predicted - x * abar(sigma).sqrt() * c / 1000
    smooth = smoothing(eps - predicted, predicted, settings, where)
    settings = flat
    start = {"INR": 2.0}.get(flat.smoothing, 0.2) if flat.smoothing_weight is None else flat.smoothing_weight
    end = start if settings.smoothing_end is None else settings.smoothing_end
    part = step / max(1, settings.steps - 1)
    weight = (1 - part) * start + part * end
    snr = sigma.item() ** -2
    min_snr = min(snr, settings.min_snr_gamma or math.inf) / (snr + (prediction == "v"))
    total = loss * (min_snr if settings.min_snr_gamma else 1) + weight * smooth
    (gradient,) = torch.autograd.grad(total, mix)
    return loss.item(), smooth.item(), gradient


CASES = {
    "INR": {},
    "SmoothVideo": {"smoothing": "SmoothVideo"},
    "SmoothVideo simple": {"smoothing": "SmoothVideo simple", "smoothing_weight": 0.7},
    "weights": {"backward_weight": 0.9, "forward_weight": 0.2, "coupling": "cumulative"},
    "detached": {"coupling": "detached neighbour"},
    "rising": {"smoothing_weight": 0.5, "smoothing_end": 4.0},
    "falling to nothing": {"smoothing_weight": 3.0, "smoothing_end": 0.0},
    "one step": {"steps": 1, "smoothing_end": 7.0},
    "windows": {"frames_per_step": 3},
    "min-SNR": {"min_snr_gamma": 0.3},
    "windows of SmoothVideo": {"smoothing": "SmoothVideo", "frames_per_step": 4},
}


@pytest.mark.parametrize("mask", [None, draw_mask()], ids=["everywhere", "masked"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("case", CASES)
def test_each_step_follows_the_gradient_of_both_losses(case: str, prediction: Prediction, mask: Tensor | None) -> None:
    settings, toy = SETTINGS.changed(**CASES[case]), Toy()
    tuner = make_tuner(toy, settings, prediction, mask)
    for step in range(settings.steps):
        tuner.advance()
        loss, smooth, gradient = by_hand(toy, step, settings, prediction, mask)
        assert tuner.losses["loss"][step] == pytest.approx(loss, rel=1e-3)
        assert tuner.losses["smoothing_loss"][step] == pytest.approx(smooth, rel=1e-3)
        torch.testing.assert_close(toy.mix.grad.double(), gradient, rtol=1e-3, atol=1e-4)
    assert tuner.done == len(tuner.losses["smoothing_loss"]) == settings.steps


@pytest.mark.parametrize("kind", KINDS)
def test_the_diffusion_loss_means_the_same_with_smoothing(kind: str) -> None:
    toys = Toy(), Toy()
    plain, smooth = (
        make_tuner(toy, SETTINGS.changed(smoothing=what, smoothing_weight=50.0))
        for toy, what in zip(toys, ("none", kind), strict=True)
    )
    for tuner in (plain, smooth):
        take(tuner, 1)
    assert plain.losses["loss"] == smooth.losses["loss"]
    assert not torch.equal(toys[0].mix.grad, toys[1].mix.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_under_a_mask_is_the_smoothing_of_what_it_shows(kind: str) -> None:
    def value(predicted: Tensor, eps: Tensor, mask: Tensor | None) -> Tensor:
        made = Forward(predicted, eps, eps, predicted, 0 * eps, *torch.tensor([2.0, 1.0]), mask)
        return SmoothingLoss(kind).term().value(made)

    predicted, eps = (torch.randn(5, 2, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    half = torch.zeros(5, 1, 4, 6)
    half[..., :3] = 1
    shown = value(predicted[..., :3], eps[..., :3], None)
    torch.testing.assert_close(value(predicted, eps, half), shown)
    torch.testing.assert_close(value(predicted, eps, 0.3 * half), shown)
    moving = torch.rand(5, 1, 4, 6, generator=torch.Generator().manual_seed(3))
    even = predicted[:1].expand(5, -1, -1, -1)
    assert value(even, even + 0.7 if kind == "INR" else eps, moving) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_a_smoothing_of_weight_0_is_none_to_the_bit(kind: str) -> None:
    toys = Toy(), Toy()
    plain = finish(make_tuner(toys[0], SETTINGS.changed(smoothing="none", smoothing_weight=9.0, smoothing_end=2.0)))
    smooth = finish(make_tuner(toys[1], SETTINGS.changed(smoothing=kind, smoothing_weight=0.0)))
    assert torch.equal(toys[0].mix, toys[1].mix) and plain.losses["loss"] == smooth.losses["loss"]
    assert plain.losses["smoothing_loss"] == [0.0] * 4
    assert len(smooth.losses["smoothing_loss"]) == 4 and min(smooth.losses["smoothing_loss"]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuning_with_smoothing_goes_on_to_the_bit(kind: str) -> None:
    settings = SETTINGS.changed(smoothing=kind, steps=6, smoothing_end=0.5)
    tuner = take(make_tuner(Toy(), settings), 2)
    state = tuner.state_dict()
    finish(tuner)
    again = make_tuner(Toy(5), settings)
    again.load_state_dict(state)
    assert list(again.steps()) == [3, 4, 5, 6]
    assert again.losses == tuner.losses
    assert again.state_dict().keys() == tuner.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in tuner.state_dict().items())


def test_smoothing_that_begins_later_lies_at_its_own_steps() -> None:
    tuner = take(make_tuner(Toy(), SETTINGS.changed(smoothing="none")), 2)
    again = make_tuner(Toy(5), SETTINGS.changed(smoothing="INR"))
    again.load_state_dict(tuner.state_dict())
    finish(again)
    assert again.losses["smoothing_loss"][:2] == [0.0, 0.0] and min(again.losses["smoothing_loss"][2:]) > 0
    assert len(again.losses["smoothing_loss"]) == again.done


@pytest.mark.parametrize(("kind", "frames", "enough"), [("INR", 1, 2), *((kind, 2, 3) for kind in KINDS[1:])])
def test_too_few_frames_to_smooth_are_refused(kind: str, frames: int, enough: int) -> None:
    with pytest.raises(ValueError, match=f"smoothing {kind} .* needs {enough} in each step; there .* {frames}"):
        make_tuner(Toy(), SETTINGS.changed(smoothing=kind, frames_per_step=frames))
    make_tuner(Toy(), SETTINGS.changed(smoothing=kind, frames_per_step=enough))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_smoothing_loss_that_is_not_finite_ends_the_tuning(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    tuner = take(make_tuner(toy), 1)
    before = toy.mix.detach().clone()
    monkeypatch.setattr(smoothing_losses, "inr_loss", lambda residual, *_: value * residual.sum())
    with pytest.raises(FloatingPointError, match=r"loss became \S+ at step 2"):
        tuner.advance()
    assert tuner.done == len(tuner.losses["smoothing_loss"]) == 1 and torch.equal(toy.mix, before)
