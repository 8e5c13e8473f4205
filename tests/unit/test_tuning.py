"""One-shot tuning of toy denoisers, against the losses and the optimiser written out."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from consistent_video.modules.ddim import Prediction
from consistent_video.modules.tuning import TuneSettings, tune

TABLE = torch.logspace(-1.5, 1.1, 37)


class Toy(nn.Module):
    """A linear denoiser of three channels that notes what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.mix = nn.Parameter(0.3 * torch.randn(3, 3, generator=generator))
        self.shift = nn.Parameter(0.1 * torch.randn(3, 1, 1, generator=generator))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.asked.append((x, sigma))
        return self.predict(x, sigma, self.mix, self.shift)

    def predict(self, x: Tensor, sigma: Tensor, mix: Tensor, shift: Tensor) -> Tensor:
        noise = torch.einsum("ij, f j h w -> f i h w", mix, x / (1 + sigma**2).sqrt()) + shift
        return x - sigma * noise


def draw_clip() -> Tensor:
    return torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0))


def run(
    toy: Toy, prediction: Prediction = "eps", parameters: list[nn.Parameter] | None = None, **changes: object
) -> list[float]:
    settings = TuneSettings(**{"steps": 5, "learning_rate": 1e-2, **changes})
    given = list(toy.parameters()) if parameters is None else parameters
    return tune(toy.denoise, given, draw_clip(), TABLE, prediction, settings, lambda step, loss: None)


def get_loss(x_0: Tensor, x: Tensor, sigma: Tensor, denoised: Tensor, prediction: Prediction) -> Tensor:
    """The paper's loss in the variance-preserving form: both outputs solved from x_vp and x_0."""
    alpha_bar = 1 / (1 + sigma**2)
    x_vp, share, noise_share = alpha_bar.sqrt() * x, alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction == "eps":
        errors = (x_vp - share * denoised) / noise_share - (x_vp - share * x_0) / noise_share
    else:
        errors = (share * x_vp - denoised) / noise_share - (share * x_vp - x_0) / noise_share
    return errors.square().sum() / errors.numel()


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_losses_are_the_papers(prediction: Prediction) -> None:
    toy, start = Toy(), Toy()
    losses = run(toy, prediction, steps=1)
    x, sigma = (value.double() for value in toy.asked[0])
    denoised = start.predict(x, sigma, start.mix.double(), start.shift.double())
    expected = get_loss(draw_clip().double(), x, sigma, denoised, prediction)
    assert losses == [pytest.approx(expected.item(), rel=1e-4)]


def test_v_and_eps_are_different_losses() -> None:
    assert run(Toy(), "v", steps=1)[0] != pytest.approx(run(Toy(), "eps", steps=1)[0], rel=0.05)


def take_adamw_steps(start: Toy, asked: list[tuple[Tensor, Tensor]], settings: TuneSettings) -> list[Tensor]:
    """AdamW (Loshchilov and Hutter, algorithm 2) after clipping, in double precision."""
    x_0, (beta, beta_2) = draw_clip().double(), settings.betas
    parameters = [start.mix.detach().double(), start.shift.detach().double()]
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step, (x, sigma) in enumerate(asked, start=1):
        leaves = [p.clone().requires_grad_() for p in parameters]
        x, sigma = x.double(), sigma.double()
        gradients = torch.autograd.grad(get_loss(x_0, x, sigma, start.predict(x, sigma, *leaves), "eps"), leaves)
        norm = sum(gradient.square().sum() for gradient in gradients) ** 0.5
        gradients = [gradient * min(1.0, settings.max_grad_norm / norm) for gradient in gradients]
        for i, gradient in enumerate(gradients):
            means[i] = beta * means[i] + (1 - beta) * gradient
            squares[i] = beta_2 * squares[i] + (1 - beta_2) * gradient**2
            update = means[i] / (1 - beta**step) / ((squares[i] / (1 - beta_2**step)).sqrt() + 1e-8)
            decayed = parameters[i] * (1 - settings.learning_rate * settings.weight_decay)
            parameters[i] = decayed - settings.learning_rate * update
    return parameters


@pytest.mark.parametrize("max_grad_norm", [0.05, 1e6])
def test_the_steps_are_those_of_adamw_with_clipped_gradients(max_grad_norm: float) -> None:
    settings = TuneSettings(
        steps=6, learning_rate=0.03, betas=(0.8, 0.95), weight_decay=0.3, max_grad_norm=max_grad_norm
    )
    toy = Toy()
    tune(toy.denoise, list(toy.parameters()), draw_clip(), TABLE, "eps", settings, lambda step, loss: None)
    mix, shift = take_adamw_steps(Toy(), toy.asked, settings)
    torch.testing.assert_close(toy.mix.detach().double(), mix, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(toy.shift.detach().double(), shift, rtol=1e-4, atol=1e-5)


def test_the_defaults_are_those_of_ei2_and_tune_a_video() -> None:
    settings = TuneSettings()
    assert (settings.steps, settings.learning_rate) == (500, 3e-5)
    assert (settings.betas, settings.weight_decay, settings.max_grad_norm) == ((0.9, 0.999), 1e-2, 1.0)


def test_each_step_draws_one_noise_level_and_noise_of_its_own_for_each_frame() -> None:
    toy = Toy()
    run(toy, steps=300)
    sigmas = torch.stack([sigma for _, sigma in toy.asked])
    assert sigmas.shape == (300,)
    counts = (sigmas.view(-1, 1) == TABLE).sum(0)
    assert counts.sum() == 300 and (counts > 0).all() and counts.max() < 25
    noise = torch.stack([(x - draw_clip()) / sigma for x, sigma in toy.asked]).flatten(2)
    assert abs(noise.mean().item()) < 0.02 and noise.std().item() == pytest.approx(1, abs=0.02)
    pairs = torch.corrcoef(torch.cat([noise[:-1].movedim(1, 0).flatten(1), noise[1:, 0].flatten()[None]]))
    assert (pairs - torch.eye(5)).abs().max() < 0.08


def test_the_same_seed_gives_the_same_bits() -> None:
    toys = [Toy(), Toy(), Toy()]
    losses = []
    for toy, seed, global_seed in zip(toys, (7, 7, 8), (0, 1, 0), strict=True):
        torch.manual_seed(global_seed)
        losses.append(run(toy, seed=seed))
    assert losses[0] == losses[1] and torch.equal(toys[0].mix, toys[1].mix)
    assert losses[0] != losses[2] and not torch.equal(toys[0].mix, toys[2].mix)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    run(Toy())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_falls(prediction: Prediction) -> None:
    losses = run(Toy(), prediction, steps=300)
    assert sum(losses[-50:]) < 0.7 * sum(losses[:50])


def test_only_the_given_parameters_change() -> None:
    toy, start = Toy(), Toy()
    run(toy, parameters=[toy.mix])
    assert torch.equal(toy.shift, start.shift) and not torch.equal(toy.mix, start.mix)


def test_steps_are_reported_in_order_with_their_losses() -> None:
    toy, reports = Toy(), list[tuple[int, float]]()
    settings = TuneSettings(steps=4, learning_rate=1e-2)

    def report(step: int, loss: float) -> None:
        reports.append((step, loss))

    losses = tune(toy.denoise, list(toy.parameters()), draw_clip(), TABLE, "eps", settings, report)
    assert reports == list(enumerate(losses)) and len(losses) == 4


def spoil(toy: Toy, call: int, value: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the toy's denoiser, whose answer to one call is a value that no training survives."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = toy.denoise(x, sigma)
        return denoised * value if len(toy.asked) == call else denoised

    return denoise


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_learning_rate(value: float) -> None:
    toy, steps = Toy(), list[int]()
    settings = TuneSettings(steps=9, learning_rate=0.0025)
    with pytest.raises(FloatingPointError, match=r"at step 3; lower learning_rate = 0\.0025"):
        tune(
            spoil(toy, 3, value), list(toy.parameters()), draw_clip(), TABLE, "eps", settings,
            lambda step, loss: steps.append(step),
        )  # fmt: skip
    assert steps == [0, 1] and len(toy.asked) == 3
    assert toy.mix.isfinite().all() and toy.shift.isfinite().all()


class Stop(BaseException):
    """Stands in for the host's interruption, which is no Exception."""


def test_what_on_step_raises_ends_the_tuning() -> None:
    toy = Toy()

    def stop(step: int, loss: float) -> None:
        if step == 1:
            raise Stop

    with pytest.raises(Stop):
        tune(toy.denoise, list(toy.parameters()), draw_clip(), TABLE, "eps", TuneSettings(steps=9), stop)
    assert len(toy.asked) == 2
