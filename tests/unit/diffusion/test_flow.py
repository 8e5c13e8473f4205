"""Flows: Euler's steps both ways against naive loops and closed forms, and the levels that a walk visits."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.diffusion.ddim import InversionOptions, SamplingOptions, sample_ddim
from consistent_video.modules.diffusion.ddim import sample_ddim_inversion as invert
from consistent_video.modules.diffusion.midpoint import sample_midpoint
from consistent_video.modules.diffusion.path import PATHS
from consistent_video.modules.diffusion.schedule import flow_sigmas, matched_flow_denoise

from .denoisers import draw

SIGMAS = torch.tensor([0.9, 0.55, 0.3, 0.0], dtype=torch.float64)
FLOW, X = PATHS["flow"], draw(2, 3, 5, 4, seed=1)


def velocity(x: Tensor, t: Tensor | float) -> Tensor:
    """A nonlinear velocity field."""
    return torch.tanh(x + 0.7 * t) - 0.5 * x


def growth(x: Tensor, t: Tensor | float) -> Tensor:
    """A field in which states grow by e to the time."""
    return x


def denoiser(field):
    """Return a flow model by its velocity: x_0 = x - t v, as ComfyUI's CONST has it."""
    return lambda x, sigma: x - sigma.view(-1, 1, 1, 1) * field(x, sigma.view(-1, 1, 1, 1))


def options(**given) -> InversionOptions:
    return InversionOptions(prediction="flow", **given)


def test_sampling_is_a_naive_euler_loop() -> None:
    x = X
    for t, s in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
        x = x + (s - t) * velocity(x, t)
    torch.testing.assert_close(sample_ddim(denoiser(velocity), X, SIGMAS), x)


@pytest.mark.parametrize("label", ["next", "current"])
def test_inversion_is_a_naive_euler_loop(label: str) -> None:
    up, x = SIGMAS.flip(0), X
    for t, s in zip(up[:-1], up[1:], strict=True):
        x = x + (s - t) * velocity(x, t if label == "current" and t > 0 else s)
    torch.testing.assert_close(invert(denoiser(velocity), X, up, options=options(label=label)), x)


def test_refined_inversion_is_undone_by_sampling() -> None:
    errors = []
    for refinements in (0, 2, 40):
        noise = invert(denoiser(velocity), X, SIGMAS.flip(0), options=options(refinements=refinements))
        errors.append((sample_ddim(denoiser(velocity), noise, SIGMAS) - X).abs().max().item())
    assert errors[0] > 10 * errors[1] > 1e3 * errors[2]
    assert errors[2] < 1e-9


def test_a_field_of_constant_velocity_is_inverted_exactly() -> None:
    drift = draw(2, 3, 5, 4, seed=2)
    there = invert(denoiser(lambda x, t: drift), X, SIGMAS.flip(0), options=options())
    torch.testing.assert_close(there, X + 0.9 * drift)
    torch.testing.assert_close(sample_ddim(denoiser(lambda x, t: drift), there, SIGMAS), X)


@pytest.mark.parametrize(("steps", "solver", "bound"), [(40, "DDIM", 0.03), (40, "midpoint", 3e-4)])
def test_inversion_approaches_the_closed_form_of_a_linear_field(steps: int, solver: str, bound: float) -> None:
    up = torch.linspace(0, 0.8, steps + 1, dtype=torch.float64)
    if solver == "midpoint":
        there = sample_midpoint(denoiser(growth), X, up, options=SamplingOptions(prediction="flow"))
    else:
        there = invert(denoiser(growth), X, up, options=options())
    exact = X * torch.tensor(0.8, dtype=torch.float64).exp()
    assert 0.01 * bound < ((there - exact).norm() / exact.norm()).item() < bound


def test_midpoint_is_of_second_order_in_a_flow() -> None:
    errors, exact = [], X * torch.tensor(0.8, dtype=torch.float64).exp()
    for steps in (20, 40):
        up = torch.linspace(0, 0.8, steps + 1, dtype=torch.float64)
        there = sample_midpoint(denoiser(growth), X, up, options=SamplingOptions(prediction="flow"))
        errors.append((there - exact).norm())
    assert 3.3 < errors[0] / errors[1] < 5


def test_velocity_and_noise_of_a_state_imply_each_other() -> None:
    t, noise = torch.tensor(0.4, dtype=torch.float64), draw(2, 3, 5, 4, seed=3)
    x, v = FLOW.state(X, noise, t), noise - X
    torch.testing.assert_close(x, 0.6 * X + 0.4 * noise)
    torch.testing.assert_close(FLOW.implied_noise(x, X, t), noise)
    torch.testing.assert_close(FLOW.to_noise(x, v, t), noise)
    torch.testing.assert_close(FLOW.to_direction(x, noise, t), v)


def test_levels_fall_from_the_end_of_the_table_to_zero() -> None:
    table = torch.arange(1, 1001) / 1000
    torch.testing.assert_close(flow_sigmas(table, 4), torch.tensor([1, 0.75, 0.5, 0.25, 0]))
    torch.testing.assert_close(flow_sigmas(table, 3, 0.6), torch.tensor([0.6, 0.4, 0.2, 0]))
    for steps, denoise in ((1001, 1.0), (601, 0.6), (0, 1.0)):
        with pytest.raises(ValueError, match="steps must be between 1 and"):
            flow_sigmas(table, steps, denoise)
    shifted = 1.32 * table / (1 + (1.32 - 1) * table)
    assert shifted[-1] > 1 == flow_sigmas(shifted, 4)[0], "rounding does not lead beyond noise"


def test_auto_denoise_leaves_what_stable_diffusion_leaves() -> None:
    table = torch.arange(1, 1001) / 1000
    for side in (8, 64, 128):
        t = float(table[round(1000 * matched_flow_denoise(table, side, side)) - 1])
        against = 14.6146 * side / 64
        assert t <= against / (1 + against) < t + 1e-3
