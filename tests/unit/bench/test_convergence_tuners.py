"""Each tuning of the benchmark's recipes differs from the papers' in the one thing that its name says."""

import math

import pytest
import torch
from torch import Tensor

from consistent_video.bench.convergence_tuners import Averaged, ByMuon, EvenLevels, OppositeNoise, WalkedLevels
from consistent_video.modules.diffusion.schedule import ddim_sigmas, matched_denoise
from consistent_video.modules.tuning.objective import Clip, Draw
from consistent_video.modules.tuning.tuner import Tuner

from ..tuning.toy import SETTINGS, TABLE, Toy, draw_clip, finish, spoil, take

FINE = torch.logspace(-1.5, 1.1, 1000)
SIZE = 5, 7


def make(tuner: type[Tuner], toy: Toy, table: Tensor = TABLE, **changes: object) -> Tuner:
    """Return a tuning of a toy."""
    return tuner(toy.denoise, toy, Clip(draw_clip(size=SIZE), table, "eps"), SETTINGS.changed(**changes))


def walk(tuner: type[Tuner], **changes: object) -> tuple[list[int], Tensor]:
    """Tune a toy to the end; returns the timesteps that it was asked at, and the noises, (steps, f, c, h, w)."""
    toy, x_0 = Toy(), draw_clip(size=SIZE)
    finish(make(tuner, toy, FINE, **changes))
    levels = [int((FINE - sigma).abs().argmin()) for _, sigma in toy.asked]
    return levels, torch.stack(
        [(x - x_0[taken]) / sigma for (x, sigma), taken in zip(toy.asked, toy.frames, strict=True)]
    )


def discrepancy(levels: list[int]) -> float:
    """Return how many levels, at most, any interval from 0 on has too many or too few (n times star discrepancy)."""
    points, n = sorted((level + 0.5) / len(FINE) for level in levels), len(levels)
    return max(max(i + 1 - n * point, n * point - i) for i, point in enumerate(points))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_even_levels_are_even_at_every_time(seed: int) -> None:
    even, noises = walk(EvenLevels, steps=40, seed=seed)
    drawn, papers = walk(Tuner, steps=40, seed=seed)
    assert max(discrepancy(even[:n]) for n in range(1, 41)) < 2.5
    assert max(discrepancy(drawn[:n]) for n in range(1, 41)) > 4, "independent ones are not"
    torch.testing.assert_close(noises, papers, rtol=0, atol=1e-3)


def test_where_even_levels_begin_is_drawn_by_the_seed() -> None:
    firsts = [walk(EvenLevels, steps=1, seed=seed)[0][0] for seed in (0, 0, 1, 2, 3)]
    assert firsts[0] == firsts[1] and len(set(firsts)) == 4


def test_walked_levels_are_those_below_the_start_of_an_edit_and_all_of_them() -> None:
    tuner = make(WalkedLevels, Toy(), FINE)
    levels = [int(tuner.draw().t) for _ in range(2000)]
    start = FINE[-1] * math.sqrt(SIZE[0] * SIZE[1]) / 64
    assert FINE[max(levels) - 1] < start, "none but the first at the start's sigma or above"
    denoise = matched_denoise(FINE, *SIZE)
    span = round(denoise * len(FINE))
    assert FINE[max(levels)] <= ddim_sigmas(FINE, span - 1, denoise)[0]
    counts = torch.histc(torch.tensor(levels).float(), 10, 0, span) / 200
    assert counts.sub(1).abs().max() < 0.3, "as many in each tenth"


def test_walked_levels_leave_the_noise_as_it_is() -> None:
    walked, noises = walk(WalkedLevels, steps=8)
    drawn, papers = walk(Tuner, steps=8)
    assert walked != drawn
    torch.testing.assert_close(noises, papers, rtol=0, atol=1e-3)


def test_every_second_step_has_the_opposite_noise_at_the_same_level() -> None:
    levels, noises = walk(OppositeNoise, steps=6, frames_per_step=2)
    torch.testing.assert_close(noises[1::2], -noises[::2], rtol=0, atol=1e-3)
    assert levels[1::2] == levels[::2] and len(set(levels)) == 3
    assert (noises[0] - noises[2]).abs().max() > 1, "each pair has its own"


def test_opposite_steps_have_the_same_frames() -> None:
    toy = Toy()
    finish(make(OppositeNoise, toy, steps=8, frames_per_step=2))
    assert toy.frames[1::2] == toy.frames[::2] and len(set(map(str, toy.frames))) > 1


def test_the_average_is_that_of_the_papers_weights_by_its_closed_form() -> None:
    """With the decay k / (9 + k) the weights after j of n steps count C(8 + j, 8) / C(9 + n, 9)."""
    toy, averaged = Toy(), Toy()
    papers, tuner = make(Tuner, toy), make(Averaged, averaged)
    walked = [toy.mix.detach().clone()]
    for n in range(1, 5):
        take(papers, 1)
        take(tuner, 1)
        walked.append(toy.mix.detach().clone())
        expected = sum(math.comb(8 + j, 8) / math.comb(9 + n, 9) * weight for j, weight in enumerate(walked))
        torch.testing.assert_close(averaged.mix.detach(), expected, rtol=1e-5, atol=1e-6)
        assert (averaged.mix - toy.mix).abs().max() > 1e-4
    assert tuner.losses == papers.losses, "what is averaged is taken along as the paper's"


def test_a_step_that_fails_leaves_the_average() -> None:
    toy = Toy()
    failing = spoil(toy, 3, lambda denoised: denoised * math.nan)
    tuner = Averaged(failing, toy, Clip(draw_clip(), TABLE, "eps"), SETTINGS)
    take(tuner, 2)
    average, walking = toy.mix.detach().clone(), tuner.walking[0].clone()
    with pytest.raises(FloatingPointError):
        take(tuner, 1)
    assert torch.equal(toy.mix, average) and torch.equal(tuner.walking[0], walking) and not average.equal(walking)


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")


def gradient(toy: Toy, drawn: Draw) -> Tensor:
    """Return the gradient by the matrix of the mean squared error of the predicted noise, in double precision."""
    x_0, eps, sigma = draw_clip(size=SIZE).double(), drawn.eps.double(), TABLE[drawn.t].double()
    mix, x = toy.mix.detach().double().requires_grad_(), x_0 + sigma * eps
    predicted = (x - toy.predict(x, sigma, mix, toy.shift.detach().double())) / sigma
    return torch.autograd.grad((predicted - eps).square().mean(), mix)[0].float()


@needs_muon
def test_muon_goes_along_the_nearest_orthogonal_matrix_as_far_as_adamw_does() -> None:
    toy, start, rate, decay = Toy(), Toy(), 1e-2, 0.5
    take(make(ByMuon, toy, weight_decay=decay), 1)
    step = ((1 - rate * decay) * start.mix - toy.mix).detach() / (0.2 * rate * math.sqrt(3))
    u, _, v = torch.linalg.svd(gradient(start, make(Tuner, start).draw()))
    assert 0.5 < torch.linalg.svdvals(step).min() and torch.linalg.svdvals(step).max() < 1.5
    assert torch.cosine_similarity(step.flatten(), (u @ v).flatten(), dim=0) > 0.95


@needs_muon
def test_muon_leaves_what_is_not_a_matrix_to_adamw() -> None:
    toy, other = Toy(), Toy()
    take(make(ByMuon, toy), 1)
    take(make(Tuner, other), 1)
    assert torch.equal(toy.shift, other.shift) and not torch.equal(toy.shift, Toy().shift)
    assert not torch.equal(toy.mix, other.mix)


@needs_muon
def test_muons_steps_have_their_own_gradients_and_learning_rates() -> None:
    toy, before = Toy(), Toy()
    tuner, papers = make(ByMuon, toy, schedule="linear", max_grad_norm=0.0), make(Tuner, before)
    take(tuner, 1)
    before.load_state_dict(toy.state_dict())
    take(tuner, 1)
    second = [papers.draw() for _ in range(2)][1]
    torch.testing.assert_close(toy.mix.grad, gradient(before, second), rtol=1e-4, atol=1e-6)
    assert [group["lr"] for group in tuner.updates.optimizer.param_groups] == 2 * [pytest.approx(0.8 * 1e-2)]
