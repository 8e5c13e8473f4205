"""Losses that smooth from frame to frame, against loops over the frames, the temporal DCT and finite differences."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dct, idct
from torch import Tensor

from consistent_video.modules.tuning.losses.diffusion import diffusion_loss
from consistent_video.modules.tuning.losses.smoothing import (
    Coupling,
    inr_loss,
    interframe_losses,
    noise_of_change,
    smooth_video_loss,
)

COUPLINGS: tuple[Coupling, ...] = get_args(Coupling)
couplings = st.sampled_from(COUPLINGS)
lengths, seeds = st.integers(2, 6), st.integers(0, 99)


def draw(num_frames: int, seed: int = 0) -> Tensor:
    """Frames that take gradients."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_frames, 3, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)


def gradient(loss: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss(frames), frames)
    return found


def neighbours(num_frames: int, coupling: Coupling) -> tuple[dict[int, int], dict[int, int]]:
    """What stands for the neighbour of each frame, 1 ... N, on the way from the last to the first and back."""
    backward = {n: n + 1 for n in range(num_frames - 1, 0, -1)}
    forward = {n: n - 1 for n in range(2, num_frames + 1)}
    if coupling == "cumulative":
        return dict.fromkeys(backward, num_frames), dict.fromkeys(forward, 1)
    return backward, forward


def by_loops(residual: Tensor, pairs: dict[int, int], is_detached: bool) -> tuple[float, Tensor]:
    """Return the mean square of the differences of pairs of frames and its gradient, element by element."""
    d = {n: frame.flatten().tolist() for n, frame in enumerate(residual.detach(), start=1)}
    size, loss = len(d[1]), 0.0
    slopes = {n: [0.0] * size for n in d}
    for n, other in pairs.items():
        for i in range(size):
            apart = d[n][i] - d[other][i]
            loss += apart**2 / (len(pairs) * size)
            slopes[n][i] += 2 * apart / (len(pairs) * size)
            if not is_detached:
                slopes[other][i] -= 2 * apart / (len(pairs) * size)
    return loss, torch.tensor(list(slopes.values()), dtype=residual.dtype).reshape(residual.shape)


@given(num_frames=lengths, coupling=couplings, seed=seeds)
def test_the_losses_and_their_gradients_are_those_of_loops_over_the_frames(
    num_frames: int, coupling: Coupling, seed: int
) -> None:
    residual = draw(num_frames, seed)
    for which, pairs in enumerate(neighbours(num_frames, coupling)):
        loss, slope = by_loops(residual, pairs, coupling == "detached neighbour")
        assert interframe_losses(residual, coupling)[which].item() == pytest.approx(loss)
        found = gradient(lambda d, i=which: interframe_losses(d, coupling)[i], residual)
        torch.testing.assert_close(found, slope)


@pytest.mark.parametrize("coupling", ["pairwise", "cumulative"])
@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_gradients_are_finite_differences(coupling: Coupling, num_frames: int) -> None:
    assert torch.autograd.gradcheck(lambda d: interframe_losses(d, coupling), draw(num_frames))
    assert torch.autograd.gradcheck(lambda d: inr_loss(d, 0.3, 0.9, coupling), draw(num_frames))
    assert torch.autograd.gradcheck(smooth_video_loss, draw(num_frames))


def test_detached_gradients_are_finite_differences_with_the_neighbour_held() -> None:
    residual = draw(4)
    held = residual.detach().clone()
    backward, forward = held.clone(), held.clone()
    backward[:-1], forward[1:] = held[1:], held[:-1]

    def against(stand_in: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda d: (d - stand_in).square().sum() / held[1:].numel()

    for which, stand_in in enumerate((backward, forward)):
        assert torch.autograd.gradcheck(against(stand_in), residual)
        found = gradient(lambda d, i=which: interframe_losses(d, "detached neighbour")[i], residual)
        torch.testing.assert_close(found, gradient(against(stand_in), residual))


@given(num_frames=lengths, coupling=couplings, seed=seeds)
def test_a_residual_that_is_equal_in_all_frames_costs_nothing(num_frames: int, coupling: Coupling, seed: int) -> None:
    residual = draw(1, seed).detach().repeat(num_frames, 1, 1, 1).requires_grad_()
    assert inr_loss(residual, coupling=coupling).item() == 0
    assert not gradient(lambda d: inr_loss(d, coupling=coupling), residual).any()
    changed = residual.detach().clone()
    changed[num_frames // 2] += 0.1
    assert inr_loss(changed, coupling=coupling).item() > 1e-3


@given(num_frames=lengths, coupling=couplings, seed=seeds)
def test_time_reversal_swaps_the_two_losses(num_frames: int, coupling: Coupling, seed: int) -> None:
    residual = draw(num_frames, seed)
    turned = residual.detach().flip(0).requires_grad_()
    for which in (0, 1):
        loss, other = interframe_losses(residual, coupling)[which], interframe_losses(turned, coupling)[1 - which]
        torch.testing.assert_close(loss, other)
        there = gradient(lambda d, i=which: interframe_losses(d, coupling)[i], residual)
        back = gradient(lambda d, i=which: interframe_losses(d, coupling)[1 - i], turned)
        torch.testing.assert_close(there, back.flip(0))


@pytest.mark.parametrize("coupling", ["detached neighbour", "cumulative"])
def test_the_two_losses_are_different_corrections(coupling: Coupling) -> None:
    residual = draw(4)
    there, back = (gradient(lambda d, i=which: interframe_losses(d, coupling)[i], residual) for which in (0, 1))
    assert (there - back).norm() > 0.5 * there.norm()


def test_detached_the_frame_that_each_way_begins_with_is_not_corrected() -> None:
    residual = draw(4)
    there, back = (
        gradient(lambda d, i=which: interframe_losses(d, "detached neighbour")[i], residual) for which in (0, 1)
    )
    assert not there[-1].any() and not back[0].any()
    assert all(frame.any() for frame in [*there[:-1], *back[1:]])


@given(num_frames=lengths, seed=seeds)
def test_pairwise_the_two_losses_are_one(num_frames: int, seed: int) -> None:
    residual = draw(num_frames, seed)
    backward, forward = interframe_losses(residual, "pairwise")
    assert torch.equal(backward, forward)
    there, back = (gradient(lambda d, i=which: interframe_losses(d)[i], residual) for which in (0, 1))
    assert torch.equal(there, back)


@given(num_frames=lengths, weight=st.floats(0.1, 2), seed=seeds)
def test_detached_at_equal_weights_has_half_the_gradient_of_pairwise(num_frames: int, weight: float, seed: int) -> None:
    residual = draw(num_frames, seed)
    detached, pairwise = (
        gradient(lambda d, how=coupling: inr_loss(d, weight, weight, how), residual)
        for coupling in ("detached neighbour", "pairwise")
    )
    torch.testing.assert_close(2 * detached, pairwise)
    torch.testing.assert_close(inr_loss(residual, coupling="detached neighbour"), inr_loss(residual))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_each_loss_has_its_weight(coupling: Coupling) -> None:
    residual = draw(4)
    backward, forward = interframe_losses(residual, coupling)
    assert inr_loss(residual, 0.3, 0.9, coupling).item() == pytest.approx(0.3 * backward.item() + 0.9 * forward.item())
    assert inr_loss(residual).item() == pytest.approx(interframe_losses(residual)[0].item())


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_frame_costs_nothing_and_its_gradient_is_zero(coupling: Coupling, dtype: torch.dtype) -> None:
    residual = draw(1).detach().to(dtype).requires_grad_()
    for loss in (*interframe_losses(residual, coupling), inr_loss(residual, coupling=coupling)):
        assert loss.shape == () and loss.item() == 0
        assert torch.equal(torch.autograd.grad(loss, residual, retain_graph=True)[0], torch.zeros_like(residual))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_two_frames_have_one_difference(coupling: Coupling) -> None:
    residual = draw(2)
    expected = (residual[0] - residual[1]).square().mean()
    for loss in (*interframe_losses(residual, coupling), inr_loss(residual, coupling=coupling)):
        torch.testing.assert_close(loss, expected)


def total(residual: Tensor, weight: float) -> Tensor:
    """Diffusion loss and smoothing loss of INR Smooth, as the residual alone says it."""
    return diffusion_loss(residual, torch.zeros_like(residual)).double() + weight * inr_loss(residual)


@pytest.mark.parametrize("num_frames", [2, 3, 5, 8])
@pytest.mark.parametrize("weight", [0.2, 2.0])
def test_the_total_weighs_the_modes_of_the_temporal_dct(num_frames: int, weight: float) -> None:
    k = torch.arange(num_frames, dtype=torch.float64)
    factors = 1 + weight * num_frames / (num_frames - 1) * (2 - 2 * torch.cos(torch.pi * k / num_frames))
    residual = draw(num_frames).detach()
    modes = torch.from_numpy(dct(residual.numpy(), type=2, norm="ortho", axis=0))
    expected = (factors.view(-1, 1, 1, 1) * modes.square()).sum() / residual.numel()
    torch.testing.assert_close(total(residual, weight), expected, rtol=1e-6, atol=0)
    for mode, factor in enumerate(factors.tolist()):
        alone = torch.zeros_like(modes)
        alone[mode] = modes[mode]
        frames = torch.from_numpy(idct(alone.numpy(), type=2, norm="ortho", axis=0))
        assert (total(frames, weight) / frames.square().mean()).item() == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_the_true_noise_stays_optimal(coupling: Coupling, num_frames: int) -> None:
    eps = draw(num_frames, 1).detach()
    predicted = eps.clone().requires_grad_()
    loss = diffusion_loss(predicted, eps).double() + 2 * inr_loss(eps - predicted, coupling=coupling)
    assert loss.item() == 0 and not torch.autograd.grad(loss, predicted)[0].any()


def smooth_video_by_loops(eps: Tensor) -> float:
    """SmoothVideo's mean over n = 2 ... N-1 and the elements."""
    frames = [frame.flatten().tolist() for frame in eps]
    values = [
        abs(2 * here - before - after)
        for n in range(1, len(frames) - 1)
        for before, here, after in zip(frames[n - 1], frames[n], frames[n + 1], strict=True)
    ]
    return sum(values) / len(values)


@given(num_frames=st.integers(3, 7), seed=seeds)
def test_smooth_videos_loss_is_that_of_a_loop(num_frames: int, seed: int) -> None:
    eps = draw(num_frames, seed)
    assert smooth_video_loss(eps).item() == pytest.approx(smooth_video_by_loops(eps))


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_what_smooth_video_takes_off_is_its_codes_share_of_the_noisy_latents(t: int) -> None:
    """C of its code on diffusers' schedule; at the first timestep its index t - 1 is that of the last."""
    abars = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod.double()
    latents, sigmas = draw(4).detach(), ((1 - abars) / abars).sqrt()
    c = abars[t].sqrt() / (abars[t].sqrt() * (1 - abars[t - 1]).sqrt() - abars[t - 1].sqrt() * (1 - abars[t]).sqrt())
    found = noise_of_change(latents / abars[t].sqrt(), sigmas[t], sigmas[t - 1])
    torch.testing.assert_close(found.double(), latents * c / 1000, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_frames", [1, 2])
def test_smooth_video_needs_three_frames(num_frames: int) -> None:
    eps = draw(num_frames)
    assert smooth_video_loss(eps).item() == 0
    assert torch.equal(gradient(smooth_video_loss, eps), torch.zeros_like(eps))


def test_smooth_video_wants_even_changes_even_of_the_true_noise() -> None:
    even = draw(1).detach() + torch.linspace(-1, 2, 6, dtype=torch.float64).view(-1, 1, 1, 1) * draw(1, 1).detach()
    assert smooth_video_loss(even).item() == pytest.approx(0, abs=1e-12)
    eps = draw(6)  # independent noises: 2a - b - c has the standard deviation sqrt(6)
    assert smooth_video_loss(eps).item() == pytest.approx((6 * 2 / torch.pi) ** 0.5, rel=0.15)
    assert gradient(smooth_video_loss, eps).abs().max() > 0


@pytest.mark.parametrize("loss", [inr_loss, smooth_video_loss])
def test_what_is_smoothed_stays_as_it_is(loss: Callable[..., Any]) -> None:
    frames = draw(4).detach()
    before = frames.clone()
    loss(frames)
    assert torch.equal(frames, before)
