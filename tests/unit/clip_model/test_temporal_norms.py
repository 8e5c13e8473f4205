"""The norms of temporal modules: of their input, and the spectral norm of their weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consistent_video.modules.clip_model.temporal import (
    TUNE_A_VIDEO,
    Norm,
    TemporalConfig,
    instance_centering,
    spectral_normalised,
)

from .temporal import DIM, NORMS, SPECTRAL, bake, draw, get_norm, make_module, normalise_naively


def test_layer_norm_has_mean_zero_and_variance_one_over_channels_without_parameters() -> None:
    module = make_module(TUNE_A_VIDEO)
    normed = module.normalise(5 * draw(3, 4, DIM) + 2)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(normed.var(-1, correction=0), torch.ones(3, 4), rtol=1e-3, atol=0)
    names = {name for name, _ in module.named_parameters()}
    assert names == {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight", "to_out.bias"}


@given(positions=st.integers(1, 4), num_frames=st.integers(1, 6), seed=st.integers(0, 99))
def test_instance_centering_has_mean_zero_and_keeps_differences(positions: int, num_frames: int, seed: int) -> None:
    z = 3 * draw(positions, num_frames, 5, seed=seed).double() + 1
    centred = instance_centering(z)
    torch.testing.assert_close(centred.mean(1), torch.zeros(positions, 5).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(centred.diff(dim=1), z.diff(dim=1))
    shift = draw(positions, 1, 5, seed=seed + 1).double()
    torch.testing.assert_close(instance_centering(z + shift), centred)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_computed_in_float32(norm: Norm) -> None:
    module, z = make_module(TemporalConfig(norm=norm)), (200 + draw(3, 5, DIM)).bfloat16()
    exact = torch.stack([normalise_naively(norm, position.double(), module) for position in z])
    normed = module.normalise(z)
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed.double(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dim", [10, 40])
def test_spectral_norms_start_at_one(dim: int) -> None:
    module, free = make_module(dim=dim), make_module(TemporalConfig(spectral=False), dim=dim)
    for name in SPECTRAL:
        assert get_norm(getattr(module, name).weight) == pytest.approx(1, abs=1e-5)
        assert get_norm(getattr(free, name).weight) != pytest.approx(1, abs=1e-2)
    for name in ("to_q", "to_k"):
        assert torch.equal(getattr(module, name).weight, getattr(free, name).weight)
    assert not module.to_out.bias.any()


def test_the_norm_scales_up_as_well_as_down() -> None:
    weight = draw(5, 4)
    for scale in (0.01, 1.0, 30.0):
        assert get_norm(spectral_normalised(scale * weight)) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(spectral_normalised(scale * weight), spectral_normalised(weight))
    half = spectral_normalised(weight.half())
    assert half.dtype == torch.float16 and get_norm(half) == pytest.approx(1, abs=2e-3)


def test_spectral_norms_stay_near_one_while_tuning_and_are_one_afterwards() -> None:
    module, x, target = make_module(dim=24, heads=3).train(), draw(4, 3, 24), draw(4, 3, 24, seed=1)
    with torch.no_grad():
        for name in SPECTRAL:
            getattr(module, name).weight.mul_(5)
    module.tune_spectral_norm()
    before = {name: getattr(module, name).weight.detach().clone() for name in SPECTRAL}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (module(x, 4) - target).square().mean().backward()
        optimizer.step()
        for name in SPECTRAL:
            assert 1 - 1e-5 < get_norm(getattr(module, name).weight) < 1.25  # one power iteration a step lags
    raw = {name: getattr(module, name).parametrizations.weight.original.detach() for name in SPECTRAL}
    tensors = module.tensors()
    for name in SPECTRAL:
        weight = tensors[f"{name}.weight"]
        assert get_norm(weight) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(weight * get_norm(raw[name]), raw[name])
        assert (weight - before[name]).abs().max() > 1e-2
    assert set(tensors) == set(make_module().state_dict())


def test_baking_keeps_what_the_module_does() -> None:
    module, x = make_module(dim=24, heads=3).train(), draw(4, 3, 24)
    module.tune_spectral_norm()
    for _ in range(300):
        module(x, 4)
    torch.testing.assert_close(bake(module)(x, 4), module(x, 4), rtol=1e-4, atol=1e-5)


def test_tuning_spectral_norm_is_deterministic_and_leaves_the_global_generator() -> None:
    weights, modules = [], [make_module(dim=24, heads=3) for _ in range(3)]
    for module, global_seed, seed in zip(modules, (1, 2, 1), (5, 5, 6), strict=True):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        module.train().tune_spectral_norm(seed)
        weights.append(module.to_v.weight.detach())
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_tuning_spectral_norm_leaves_the_generators_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    make_module().tune_spectral_norm(seed=5)
    assert seeds == []


def test_only_layer_norm_has_parameters_of_its_own() -> None:
    projections = {f"{name}.weight" for name in ("to_q", "to_k", "to_v", "to_out")} | {"to_out.bias"}
    for norm in NORMS:
        names = {name for name, _ in make_module(TemporalConfig(norm=norm)).named_parameters()}
        assert names == projections | ({"norm.weight", "norm.bias"} if norm == "layer norm" else set())


def test_the_affine_of_layer_norm_starts_as_the_identity_and_matters() -> None:
    plain, module = (make_module(TemporalConfig(norm=n)) for n in ("layer norm without affine", "layer norm"))
    x = draw(4, 3, DIM)
    before = module(x, 4).detach()
    assert torch.equal(before, plain(x, 4))
    assert module.norm is not None
    for parameter in (module.norm.weight, module.norm.bias):
        with torch.no_grad():
            parameter[1] += 1
            assert (module(x, 4) - before).abs().max() > 1e-2
            parameter[1] -= 1
    (module(x, 4) - draw(4, 3, DIM, seed=1)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in (module.norm.weight, module.norm.bias))


def test_instance_norm_has_mean_zero_and_variance_one_over_frames() -> None:
    z = 5 * draw(3, 40, 4) + 2
    normed = make_module(TemporalConfig(norm="instance norm"), dim=4).normalise(z)
    torch.testing.assert_close(normed.mean(1), torch.zeros(3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(normed.var(1, correction=0), torch.ones(3, 4), rtol=1e-5, atol=0)


@given(num_frames=st.integers(2, 6), dim=st.integers(1, 5), seed=st.integers(0, 99))
def test_instance_centering_leaves_the_temporal_covariance(num_frames: int, dim: int, seed: int) -> None:
    z = 3 * draw(num_frames, dim, seed=seed).double() + 1
    before, after = (np.cov(frames.numpy(), rowvar=False, bias=True) for frames in (z, instance_centering(z)))
    np.testing.assert_allclose(after, before, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_output_matrix_has_no_spectral_norm(norm: Norm) -> None:
    with pytest.raises(ValueError, match="zero output matrix"):
        TemporalConfig(norm=norm, spectral=True, zero_init=True)


def test_an_unknown_norm_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="group norm"):
        TemporalConfig(norm="group norm")  # type: ignore[arg-type]
