"""One-shot tuning of toy denoisers, against the losses and the optimiser written out."""

import math
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from consistent_video.modules.diffusion.ddim import Prediction
from consistent_video.modules.tuning.settings import TuneSettings

from .toy import IN_8_BITS, SETTINGS, TABLE, Toy, draw_clip, finish, make_tuner

ALL = slice(0, 4)


def draw_mask() -> Tensor:
    """Weights of which some are 0 and the others differ, for the positions of the clip."""
    return torch.rand(4, 1, 5, 2, generator=torch.Generator().manual_seed(8)).sub(0.4).clamp(min=0)


def run(toy: Toy, prediction: Prediction = "eps", **changes: object) -> list[float]:
    """Tune a toy to the end with changed settings; returns the losses."""
    tuner = make_tuner(toy, SETTINGS.changed(**changes), prediction)
    finish(tuner)
    return tuner.losses["loss"]


def get_loss(
    x_0: Tensor, x: Tensor, sigma: Tensor, denoised: Tensor, prediction: Prediction, mask: Tensor | None = None
) -> Tensor:
    """The paper's loss in the variance-preserving form: both outputs solved from x_vp and x_0."""
    alpha_bar = 1 / (1 + sigma**2)
    x_vp, share, noise_share = alpha_bar.sqrt() * x, alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction == "eps":
        errors = (x_vp - share * denoised) / noise_share - (x_vp - share * x_0) / noise_share
    else:
        errors = (share * x_vp - denoised) / noise_share - (share * x_vp - x_0) / noise_share
    weights = torch.ones_like(errors) if mask is None else mask.double().repeat_interleave(3, 1)
    return (weights * errors.square()).sum() / weights.sum()


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


def take_adamw_steps(
    start: Toy, asked: list[tuple[Tensor, Tensor]], settings: SimpleNamespace, rates: list[float], mask: Tensor | None
) -> tuple[list[Tensor], list[float]]:
    """AdamW (Loshchilov and Hutter, algorithm 2) after clipping, in double precision, with min-SNR (their eq. 5).

    Returns the parameters and the losses without the weight.
    """
    x_0, (beta, beta_2), losses = draw_clip().double(), settings.betas, []
    parameters = [start.mix.detach().double(), start.shift.detach().double()]
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step, ((x, sigma), rate) in enumerate(zip(asked, rates, strict=True), start=1):
        leaves = [p.clone().requires_grad_() for p in parameters]
        x, sigma = x.double(), sigma.double()
        loss = get_loss(x_0, x, sigma, start.predict(x, sigma, *leaves), "eps", mask)
        losses.append(loss.item())
        weight = min(1.0, settings.min_snr_gamma * sigma.item() ** 2) if settings.min_snr_gamma else 1.0
        gradients = [weight * gradient for gradient in torch.autograd.grad(loss, leaves)]
        norm = sum(gradient.square().sum() for gradient in gradients) ** 0.5
        if settings.max_grad_norm:
            gradients = [gradient * min(1.0, settings.max_grad_norm / norm) for gradient in gradients]
        for i, gradient in enumerate(gradients):
            means[i] = beta * means[i] + (1 - beta) * gradient
            squares[i] = beta_2 * squares[i] + (1 - beta_2) * gradient**2
            update = means[i] / (1 - beta**step) / ((squares[i] / (1 - beta_2**step)).sqrt() + 1e-8)
            parameters[i] = parameters[i] * (1 - rate * settings.weight_decay) - rate * update
    return parameters, losses


@pytest.mark.parametrize(
    ("changes", "factors", "mask"),
    [
        ({"max_grad_norm": 0.05}, [1] * 6, None),
        ({"max_grad_norm": 1e6}, [1] * 6, None),
        ({"max_grad_norm": 0}, [1] * 6, None),
        ({"schedule": "linear", "warmup_steps": 2}, [0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4], None),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)], None),
        ({"min_snr_gamma": 0.3, "max_grad_norm": 0}, [1] * 6, None),
        ({"max_grad_norm": 0}, [1] * 6, draw_mask()),
    ],
    ids=["clipped", "hardly clipped", "not clipped", "warm-up", "cosine", "min-SNR", "mask"],
)
def test_the_steps_are_those_of_adamw(changes: dict, factors: list[float], mask: Tensor | None) -> None:
    settings = TuneSettings().changed(steps=6, learning_rate=0.03, betas=(0.8, 0.95), weight_decay=0.3)
    settings = settings.changed(**changes)
    toy = Toy()
    tuner = make_tuner(toy, settings, mask=mask)
    finish(tuner)
    named, rates = SimpleNamespace(**settings.flat()), [0.03 * factor for factor in factors]
    (mix, shift), losses = take_adamw_steps(Toy(), toy.asked, named, rates, mask)
    assert tuner.losses["loss"] == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(toy.mix.detach().double(), mix, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(toy.shift.detach().double(), shift, rtol=1e-4, atol=1e-5)


def test_the_defaults_are_those_of_ei2_and_tune_a_video() -> None:
    settings = SimpleNamespace(**TuneSettings().flat())
    assert (settings.steps, settings.learning_rate) == (500, 3e-5)
    assert (settings.betas, settings.weight_decay, settings.max_grad_norm) == ([0.9, 0.999], 1e-2, 1.0)
    assert (settings.schedule, settings.warmup_steps, settings.min_snr_gamma) == ("constant", 0, 0)
    assert (settings.optimizer, settings.frames_per_step, settings.snapshots) == ("AdamW", 0, [])


def test_min_snr_weighs_the_gradient_and_not_the_loss() -> None:
    toys, sigma, seen = (Toy(), Toy()), 0.0, []
    for toy, gamma in zip(toys, (0.0, 2.5), strict=True):
        seen += run(toy, steps=1, seed=3, min_snr_gamma=gamma, max_grad_norm=0)
        sigma = toy.asked[0][1].item()
    assert sigma**-2 > 2.5, "a noise level that is weighed"
    assert seen[0] == seen[1]
    torch.testing.assert_close(toys[1].mix.grad, toys[0].mix.grad * 2.5 * sigma**2)


def test_what_lies_outside_the_mask_has_no_influence() -> None:
    mask, clips = draw_mask(), [draw_clip(), draw_clip()]
    clips[1] = torch.where(mask == 0, draw_clip(9), clips[1])
    assert 0.2 < (mask == 0).float().mean() < 0.8
    toys = Toy(), Toy()
    tuners = [make_tuner(toy, x_0=clip, mask=mask) for toy, clip in zip(toys, clips, strict=True)]
    for tuner in tuners:
        finish(tuner)
    assert tuners[0].losses == tuners[1].losses and torch.equal(toys[0].mix, toys[1].mix)
    assert tuners[0].losses["loss"] != run(Toy())


def test_each_step_draws_one_noise_level_and_noise_of_its_own_for_each_frame() -> None:
    toy = Toy()
    run(toy, steps=300)
    sigmas = torch.stack([sigma for _, sigma in toy.asked])
    assert sigmas.shape == (300,) and toy.frames == [ALL] * 300
    counts = (sigmas.view(-1, 1) == TABLE).sum(0)
    assert counts.sum() == 300 and (counts > 0).all() and counts.max() < 25
    noise = torch.stack([(x - draw_clip()) / sigma for x, sigma in toy.asked]).flatten(2)
    assert abs(noise.mean().item()) < 0.02 and noise.std().item() == pytest.approx(1, abs=0.02)
    pairs = torch.corrcoef(torch.cat([noise[:-1].movedim(1, 0).flatten(1), noise[1:, 0].flatten()[None]]))
    assert (pairs - torch.eye(5)).abs().max() < 0.08


@pytest.mark.parametrize("window", [1, 2, 3])
def test_frames_per_step_takes_consecutive_frames_from_everywhere(window: int) -> None:
    toy = Toy()
    run(toy, steps=200, frames_per_step=window)
    starts = [frames.start for frames in toy.frames]
    assert toy.frames == [slice(start, start + window) for start in starts]
    places = 4 - window + 1
    assert set(starts) == set(range(places))
    assert all(abs(starts.count(start) / 200 - 1 / places) < 0.12 for start in set(starts))
    noise = torch.stack(
        [(x - draw_clip()[frames]) / sigma for (x, sigma), frames in zip(toy.asked, toy.frames, strict=True)]
    )
    assert noise.shape == (200, window, 3, 5, 2)
    assert abs(noise.mean().item()) < 0.02 and noise.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("window", [4, 7])
def test_a_window_as_long_as_the_clip_is_the_clip(window: int) -> None:
    toy = Toy()
    assert run(toy, frames_per_step=window) == run(Toy())
    assert toy.frames == [ALL] * 5


def test_the_mask_of_a_step_is_that_of_its_frames() -> None:
    toy, mask = Toy(), draw_mask()
    tuner = make_tuner(toy, SETTINGS.changed(steps=1, frames_per_step=2, seed=1), mask=mask)
    finish(tuner)
    (x, sigma), frames, start = toy.asked[0], toy.frames[0], Toy()
    assert frames.start > 0
    denoised = start.predict(x, sigma, start.mix, start.shift)
    expected = get_loss(draw_clip()[frames], x, sigma, denoised, "eps", mask[frames])
    assert tuner.losses["loss"] == [pytest.approx(expected.item(), rel=1e-4)]


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
    run(Toy(), frames_per_step=3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_falls(prediction: Prediction) -> None:
    losses = run(Toy(), prediction, steps=300)
    assert sum(losses[-50:]) < 0.7 * sum(losses[:50])


def test_only_what_is_learned_changes() -> None:
    toy, start = Toy(), Toy()
    finish(make_tuner(toy, learned=nn.ParameterDict({"mix": toy.mix})))
    assert torch.equal(toy.shift, start.shift) and not torch.equal(toy.mix, start.mix)


def test_steps_are_counted_as_they_are_done() -> None:
    tuner = make_tuner(Toy(), SETTINGS.changed(steps=4))
    assert [(done, tuner.done) for done in islice(tuner.steps(), 2)] == [(1, 1), (2, 2)]
    assert list(tuner.steps()) == [3, 4] and tuner.done == 4
    assert list(tuner.steps()) == []


def test_8_bits_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install bitsandbytes.*or choose AdamW"):
        make_tuner(Toy(), SETTINGS.changed(optimizer="AdamW 8-bit"))


def test_8_bits_of_bitsandbytes_are_adamw_but_for_rounding() -> None:
    start, learned = Toy(size=IN_8_BITS).shift.detach(), {}
    for optimizer in ("AdamW", "AdamW 8-bit"):
        toy = Toy(size=IN_8_BITS)
        settings = SETTINGS.changed(steps=9, optimizer=optimizer, betas=(0.7, 0.8), weight_decay=0.2)
        tuner = make_tuner(toy, settings, x_0=draw_clip(size=IN_8_BITS))
        finish(tuner)
        learned[optimizer] = toy.shift.detach() - start
    states = {key: state for key, state in tuner.state_dict().items() if ".state" in key}
    assert [state.dtype for state in states.values() if state.shape == start.shape] == 2 * [torch.uint8]
    away = (learned["AdamW 8-bit"] - learned["AdamW"]).norm() / learned["AdamW"].norm()
    assert 0 < away < 0.02
