"""The bound on DDIM's way back: unrolled by hand, exact for linear models, and above what is measured."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from consistent_video.modules.inversion.stability import Stability, error_bound, stability_text

TIMES = torch.tensor([0.0, 0.2, 0.3, 0.75, 1.0], dtype=torch.float64)  # of a flow
SIGMAS = torch.tensor([0.0, 0.3, 1.1, 4.0, 9.0], dtype=torch.float64)


def unrolled(lipschitz: list[float], apart: list[float], start: float) -> float:
    """E_0 as a sum of products."""
    s, steps = SIGMAS.tolist(), len(lipschitz)
    growth = [1 + lipschitz[u] * (s[u + 1] - s[u]) / math.sqrt(1 + s[u + 1] ** 2) for u in range(steps)]
    total = math.prod(growth) * start
    for t in range(steps):
        total += math.prod(growth[:t]) * (s[t + 1] - s[t]) * apart[t]
    return total


@pytest.mark.parametrize("start", [0.0, 0.7])
def test_the_recursion_is_the_sum_of_products(start: float) -> None:
    lipschitz, apart = [5.0, 2.0, 1.0, 0.5], [0.3, 0.1, 0.7, 0.2]
    bound = error_bound(SIGMAS, lipschitz, apart, start)
    assert bound[0] == pytest.approx(unrolled(lipschitz, apart, start)) and bound[-1] == start
    assert all(left >= right for left, right in zip(bound, bound[1:], strict=False))


def test_noise_that_does_not_depend_on_the_latent_comes_back() -> None:
    assert error_bound(SIGMAS, [0.0] * 4, [0.0] * 4) == [0.0] * 5


def walk(noise: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], x: Tensor) -> tuple[list, list]:
    """Invert and come back by hand; returns the variance-preserving latents and the distances at each level."""
    states = [x]
    for i in range(4):
        x = x + (SIGMAS[i + 1] - SIGMAS[i]) * noise(states[-1] / (1 + SIGMAS[i] ** 2).sqrt())
        states.append(x)
    apart = [0.0]
    for i in range(4, 0, -1):
        x = x - (SIGMAS[i] - SIGMAS[i - 1]) * back(x / (1 + SIGMAS[i] ** 2).sqrt())
        apart.append((x - states[i - 1]).norm().item())
    return [state / (1 + sigma**2).sqrt() for state, sigma in zip(states, SIGMAS, strict=True)], apart[::-1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("changed", [False, True])
def test_it_holds_for_maps_whose_constants_are_known(seed: int, changed: bool) -> None:
    """tanh of a matrix has the matrix's norm for Lipschitz constant; the way back has an adapter of known size."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(6, 6, generator=generator, dtype=torch.float64) / 2
    shift = torch.randn(6, generator=generator, dtype=torch.float64) * changed
    noise = lambda x: torch.tanh(matrix @ x)  # noqa: E731
    latents, measured = walk(noise, lambda x: noise(x) + shift, torch.randn(6, generator=generator).double())
    norm = torch.linalg.matrix_norm(matrix, ord=2).item()
    moved = [(b - a).norm().item() for a, b in zip(latents, latents[1:], strict=False)]
    kappa = [shift.norm().item()] * 4
    found = Stability(SIGMAS.tolist(), [norm] * 4, moved, [0.0] * 4, kappa, 0.0, measured)
    assert all(m <= b for m, b in zip(measured, found.bound, strict=True)) and measured[0] > 0
    assert (found.bound_without[0] < found.bound[0]) == changed


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_it_holds_where_noise_is_added(eta: float, scale: float) -> None:
    """By a sampler written out: DDIM (16) of Song et al. in terms of sigma."""
    generator = torch.Generator().manual_seed(7)
    matrix = scale * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    noise = lambda x: torch.tanh(matrix @ x)  # noqa: E731
    x, states, noises = torch.randn(6, generator=generator).double(), [], []
    for low, high in zip(SIGMAS, SIGMAS[1:], strict=False):
        states.append(x)
        noises.append(noise(x / (1 + low**2).sqrt()))
        x = x + (high - low) * noises[-1]
    states.append(x)
    measured, down, strayed = [0.0], [], []
    for i in range(4, 0, -1):
        high, low = SIGMAS[i].item(), SIGMAS[i - 1].item()
        up = eta * low * math.sqrt(1 - low**2 / high**2)
        level, fresh = math.sqrt(low**2 - up**2), torch.randn(6, generator=generator).double()
        x = x + (level - high) * noise(x / math.sqrt(1 + high**2)) + up * fresh
        measured.append((x - states[i - 1]).norm().item())
        down.append(level)
        strayed.append((low - level) * noises[i - 1].norm().item() + up * fresh.norm().item())
    moved = [
        (states[i + 1] / (1 + SIGMAS[i + 1] ** 2).sqrt() - states[i] / (1 + SIGMAS[i] ** 2).sqrt()).norm().item()
        for i in range(4)
    ]
    norm = torch.linalg.matrix_norm(matrix, ord=2).item()
    zero = [0.0] * 4
    given = (SIGMAS.tolist(), [norm] * 4, moved, zero, zero, 0.0, measured[::-1])
    found = Stability(*given, down=down[::-1], strayed=strayed[::-1])
    assert all(m <= b for m, b in zip(found.measured, found.bound, strict=True))
    assert found.bound[0] > Stability(*given).bound[0] and measured[-1] > 0


def test_a_model_of_one_number_meets_it_exactly() -> None:
    """eps = -L x with a small L: every step strays in the same direction and by the constant itself."""
    scale = -0.2
    latents, measured = walk(lambda x: scale * x, lambda x: scale * x, torch.tensor([2.0], dtype=torch.float64))
    moved = [(b - a).abs().item() for a, b in zip(latents, latents[1:], strict=False)]
    bound = error_bound(SIGMAS, [0.2] * 4, [0.2 * m for m in moved])
    assert measured == pytest.approx(bound)


def walk_flow(velocity: Callable[[Tensor], Tensor], x: Tensor) -> tuple[list[Tensor], list[float]]:
    """Invert and come back along a flow by hand; returns the states and the distances at each time."""
    states = [x]
    for i in range(4):
        states.append(states[-1] + (TIMES[i + 1] - TIMES[i]) * velocity(states[-1]))
    x, apart = states[-1], [0.0]
    for i in range(4, 0, -1):
        x = x - (TIMES[i] - TIMES[i - 1]) * velocity(x)
        apart.append((x - states[i - 1]).norm().item())
    return states, apart[::-1]


@pytest.mark.parametrize("seed", range(3))
def test_it_holds_along_a_flow_whose_constant_is_known(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = 2 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    states, measured = walk_flow(lambda x: torch.tanh(matrix @ x), torch.randn(6, generator=generator).double())
    norm = torch.linalg.matrix_norm(matrix, ord=2).item()
    moved = [norm * (b - a).norm().item() for a, b in pairwise(states)]
    bound = error_bound(TIMES, [norm] * 4, moved, kind="flow")
    assert all(m <= b for m, b in zip(measured, bound, strict=True)) and measured[0] > 0


def test_a_velocity_of_one_number_meets_it_exactly() -> None:
    states, measured = walk_flow(lambda x: -0.6 * x, torch.tensor([2.0], dtype=torch.float64))
    moved = [0.6 * (b - a).abs().item() for a, b in pairwise(states)]
    assert error_bound(TIMES, [0.6] * 4, moved, kind="flow") == pytest.approx(measured)
    assert error_bound(TIMES, [0.6] * 4, moved)[0] < 0.99 * measured[0], "the state itself is seen"


def test_the_report_says_whether_it_holds() -> None:
    given = {"sigmas": [0.0, 1.0, 2.0], "lipschitz": [1.0, 1.0], "moved": [1.0, 1.0], "mismatch": [0.5, 0.5]}
    good = Stability(**given, kappa=[0.0, 0.0], start=0.0, measured=[1.0, 0.5, 0.0])
    text = stability_text(good, 8)
    assert "The bound holds at every step" in text and "ours" in text and text.count("\n| ") == 3
    bad = Stability(**given, kappa=[0.0, 0.0], start=0.0, measured=[9.0, 0.5, 0.0])
    assert "The bound is exceeded" in stability_text(bad, 8)
