"""The covariate shift, against means and covariances taken position by position."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consistent_video.modules.clip_model.temporal import TemporalConfig, TemporalModule
from consistent_video.modules.judging.covariate_shift import (
    Shift,
    average_shift,
    covariance_norm,
    covariate_shift,
    mean_norm,
    mean_shift,
    position_norms,
    shift_table,
    worst_shift,
)

N, F, D = 5, 4, 7
seeds = st.integers(0, 99)
factors = st.floats(0.1, 4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def measure(before: Tensor, after: Tensor) -> Shift:
    return covariate_shift(position_norms(before, after))


def spectral_norm_of_covariance(z: Tensor) -> float:
    """Return the largest singular value of the d x d covariance over frames of one position, shape (f, d)."""
    covariance = torch.from_numpy(np.cov(z.double().numpy(), rowvar=False, bias=True))
    return torch.linalg.matrix_norm(covariance, ord=2).item()


def length(vector: Tensor) -> float:
    return float(sum(x * x for x in vector.double().tolist())) ** 0.5


@given(num_frames=st.integers(2, 9), dim=st.integers(2, 9), seed=seeds)
def test_norms_of_each_position(num_frames: int, dim: int, seed: int) -> None:
    before, after = draw(2, N, num_frames, dim, seed=seed) + 3
    found = position_norms(before, after)
    assert found.shape == (4, N)
    for n in range(N):
        means = [sum(z[n, i] for i in range(num_frames)) / num_frames for z in (before, after)]
        assert mean_shift(before, after)[n].item() == pytest.approx(length(means[1] - means[0]), rel=1e-4)
        assert mean_norm(before)[n].item() == pytest.approx(length(means[0]), rel=1e-4)
        assert covariance_norm(after)[n].item() == pytest.approx(spectral_norm_of_covariance(after[n]), rel=1e-4)
    parts = (mean_shift(before, after), mean_norm(before), covariance_norm(after), covariance_norm(before))
    assert all(map(torch.equal, found, parts))


@given(seed=seeds)
def test_the_shift_is_of_means_over_positions(seed: int) -> None:
    before, after = draw(2, N, F, D, seed=seed) * torch.arange(1, N + 1)[:, None, None]
    shift = measure(before, after)
    moved = [length((after[n] - before[n]).mean(0)) for n in range(N)]
    means = [length(before[n].mean(0)) for n in range(N)]
    spread = [[spectral_norm_of_covariance(z[n]) for n in range(N)] for z in (before, after)]
    assert shift.mean_shift == pytest.approx(sum(moved) / sum(means), rel=1e-4)
    assert shift.covariance_ratio == pytest.approx(sum(spread[1]) / sum(spread[0]), rel=1e-4)


def test_a_module_that_does_nothing() -> None:
    z = draw(N, F, D)
    assert measure(z, z) == Shift(0, 1)


@given(seed=seeds)
def test_a_constant_moves_the_mean_by_its_norm_alone(seed: int) -> None:
    z, b = draw(N, F, D, seed=seed), draw(D, seed=seed + 1)
    torch.testing.assert_close(mean_shift(z, z + b), b.norm().expand(N), rtol=1e-4, atol=1e-5)
    shift = measure(z, z + b)
    assert shift.mean_shift == pytest.approx((b.norm() / z.mean(1).norm(dim=-1).mean()).item(), rel=1e-4)
    assert shift.covariance_ratio == pytest.approx(1, rel=1e-4)


@given(seed=seeds, s=factors)
def test_scaled_deviations_change_the_covariance_by_the_square(seed: int, s: float) -> None:
    z = draw(N, F, D, seed=seed)
    mean = z.mean(1, keepdim=True)
    shift = measure(z, mean + s * (z - mean))
    assert shift.covariance_ratio == pytest.approx(s**2, rel=1e-4)
    assert shift.mean_shift == pytest.approx(0, abs=1e-5)


@given(seed=seeds, s=factors)
def test_scaled_features_shift_by_the_factor(seed: int, s: float) -> None:
    """Whatever the sizes of the positions: numerator and denominator are averaged alike."""
    z = draw(N, F, D, seed=seed) * torch.arange(1, N + 1)[:, None, None]
    shift = measure(z, s * z)
    assert shift.mean_shift == pytest.approx(abs(s - 1), rel=1e-4, abs=1e-6)
    assert shift.covariance_ratio == pytest.approx(s**2, rel=1e-4)


@given(seed=seeds)
def test_the_order_of_frames_and_of_positions_does_not_count(seed: int) -> None:
    before, after = draw(2, N, F, D, seed=seed)
    frames, positions = draw(F, seed=seed).argsort(), draw(N, seed=seed).argsort()
    other = measure(before[positions][:, frames], after[positions][:, frames])
    assert other.mean_shift == pytest.approx(measure(before, after).mean_shift, rel=1e-4)
    assert other.covariance_ratio == pytest.approx(measure(before, after).covariance_ratio, rel=1e-4)


def test_half_precision_is_measured_in_float32() -> None:
    before, after = draw(2, N, F, D).half() * 100
    assert position_norms(before, after).dtype == torch.float32
    assert measure(before, after) == measure(before.float(), after.float())


def test_a_position_that_stands_still_does_not_count_for_the_ratio() -> None:
    before, after = draw(2, N, F, D)
    before[0], after[0] = before[0].mean(0), after[0].mean(0)
    moving = measure(before[1:], after[1:]).covariance_ratio
    assert measure(before, after).covariance_ratio == pytest.approx(moving, rel=1e-4)


@pytest.mark.parametrize(
    "before", [draw(N, 1, D), draw(N, 1, D).expand(N, F, D), draw(N, 1, D) * torch.tensor([1.0, -1.0])[:, None]]
)
def test_what_cannot_be_compared_with_is_refused(before: Tensor) -> None:
    before = before.round()  # so that means are exact
    with pytest.raises(ValueError, match="two frames or more that differ"):
        measure(before, before + 1)


@pytest.mark.parametrize("spread", [0.05, 0.2])
def test_layer_norm_shifts_and_instance_centering_does_not(spread: float) -> None:
    """EI²'s claim, on features whose common mean is large beside what changes from frame to frame."""
    z = draw(30, 1, 16) + spread * draw(30, F, 16, seed=1)
    shifts = {}
    for norm in ("layer norm without affine", "instance centering"):
        module = TemporalModule(16, 4, TemporalConfig(norm), torch.Generator().manual_seed(2))
        with torch.no_grad():
            module.to_q.weight.mul_(6)
            module.to_k.weight.mul_(6)
            shifts[norm] = measure(z, z + module.branch(z)).mean_shift
    assert shifts["layer norm without affine"] > 0.2
    assert shifts["layer norm without affine"] > 5 * shifts["instance centering"]


SHIFTS = {"first": Shift(0.25, 1.5), "second.block": Shift(0.125, 0.5), "third": Shift(0.0, 1.0)}


def test_mean_and_worst_of_the_blocks() -> None:
    assert average_shift(list(SHIFTS.values())) == Shift(0.125, 1.0)
    assert worst_shift(list(SHIFTS.values())) == Shift(0.25, 0.5)
    assert worst_shift([Shift(0.1, 1.9), Shift(0.2, 0.6)]) == Shift(0.2, 1.9)
    assert worst_shift([Shift(0.1, 9.0), Shift(0.2, 0.0)]) == Shift(0.2, 0.0)
    assert worst_shift([Shift(0.1, 0.9)]) == average_shift([Shift(0.1, 0.9)]) == Shift(0.1, 0.9)


def test_the_table_has_a_row_for_each_block_then_mean_and_worst() -> None:
    lines = shift_table(SHIFTS).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["block", "mean shift", "covariance ratio"]
    assert all(cell.strip(":-") == "" for cell in cells[1]) and [cell[-1] for cell in cells[1]] == ["-", ":", ":"]
    assert cells[2:] == [
        ["first", "0.2500", "1.500"],
        ["second.block", "0.1250", "0.5000"],
        ["third", "0.000", "1.000"],
        ["mean", "0.1250", "1.000"],
        ["worst", "0.2500", "0.5000"],
    ]
    assert len({len(line) for line in lines}) == 1
