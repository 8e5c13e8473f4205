"""Inversions of a flow: the relation restated for velocities, the record, its file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from consistent_video.modules.inversion.file import load_inversion, save_inversion
from consistent_video.modules.inversion.inversion import Inversion, InversionSettings, Relation, check_flow

STEPS, SHAPE = 3, (4, 2, 5, 3)
SIGMAS = torch.tensor([0.8, 0.5, 0.2, 0.0])
SETTINGS = InversionSettings(STEPS, gamma=0.5, denoise=0.8, set_alpha_to_one=True)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def related(v: Tensor, u: Tensor, gamma: float) -> Tensor:
    """The relation of velocities, frame by frame: u - v is equal in neighbours."""
    rows = []
    for n in range(len(v)):
        near = [m for m in (n - 1, n + 1) if 0 <= m < len(v)]
        predicted = torch.stack([v[m] + u[n] - u[m] for m in near]).mean(dim=0)
        rows.append((1 - gamma) * v[n] + gamma * predicted)
    return torch.stack(rows)


def make() -> Inversion:
    noises = draw(STEPS, *SHAPE).half()
    return Inversion(SIGMAS, noises, draw(*SHAPE, seed=1), draw(*SHAPE, seed=2), SETTINGS, "digest", "flow")


def test_noise_relation_is_that_of_velocities() -> None:
    x, clean, v = (draw(*SHAPE, seed=seed) for seed in (1, 2, 3))
    t, relation = SIGMAS[0], Relation(SETTINGS, SIGMAS.flip(0), "flow")
    u = (x - clean) / t
    expected = x + t * (1 - t) * (related(v, u, 0.5) - v)
    torch.testing.assert_close(relation.start_of_sampling(x, clean, v, t), expected, atol=1e-5, rtol=1e-4)
    from_clean = Relation(replace(SETTINGS, start="clean latent"), SIGMAS.flip(0), "flow")
    noise = x + (1 - t) * related(v, u, 0.5)
    torch.testing.assert_close(
        from_clean.start_of_sampling(x, clean, v, t), (1 - t) * clean + t * noise, atol=1e-5, rtol=1e-4
    )


def test_every_step_goes_along_the_related_velocity() -> None:
    relation = Relation(replace(SETTINGS, start="every step"), SIGMAS.flip(0), "flow")
    clean, x, v = (draw(*SHAPE, seed=seed) for seed in (1, 2, 3))
    assert relation(0, clean, v) is v
    expected = related(v, (x - clean) / 0.2, 0.5)
    torch.testing.assert_close(relation(1, x, v), expected, atol=1e-5, rtol=1e-4)


def test_gamma_0_changes_nothing() -> None:
    x, clean, v = (draw(*SHAPE, seed=seed) for seed in (1, 2, 3))
    relation = Relation(replace(SETTINGS, gamma=0.0), SIGMAS.flip(0), "flow")
    assert relation.start_of_sampling(x, clean, v, SIGMAS[0]).equal(x)


def test_relation_at_noise_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="gamma 0.5 has no effect at denoise 1"):
        check_flow(replace(SETTINGS, denoise=1.0), torch.tensor(1.0), 4)
    check_flow(SETTINGS, torch.tensor(1.0), 1)
    for settings in (replace(SETTINGS, gamma=0.0), replace(SETTINGS, noise="Gaussian")):
        check_flow(settings, torch.tensor(1.0), 4)
    with pytest.raises(ValueError, match="noise Gaussian does not combine with start every step"):
        check_flow(replace(SETTINGS, noise="Gaussian", start="every step"), torch.tensor(0.5), 4)


def test_record_keeps_its_kind_in_a_file_and_older_files_are_of_noise(tmp_path: Path) -> None:
    for inversion in (make(), replace(make(), kind="noise")):
        save_inversion(inversion, tmp_path / "a.safetensors")
        assert load_inversion(tmp_path / "a.safetensors").kind == inversion.kind
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    info = json.loads(metadata["info"])
    assert info.pop("kind") == "noise"
    save_file(tensors, tmp_path / "older.safetensors", {**metadata, "info": json.dumps(info)})
    assert load_inversion(tmp_path / "older.safetensors").kind == "noise"
    with pytest.raises(ValueError, match="not a flow's"):
        replace(make(), sigmas=torch.tensor([3.0, 2.0, 1.0, 0.0]))


def test_models_of_the_other_path_are_refused() -> None:
    make().check_levels(torch.arange(1, 11) / 10, "flow")
    with pytest.raises(ValueError, match="that samples by flow matching, and model samples without it"):
        make().check_levels(torch.arange(1, 11) / 10, "noise")
    with pytest.raises(ValueError, match="that samples without it, and model samples by flow matching"):
        replace(make(), kind="noise").check_levels(torch.arange(1, 11) / 10, "flow")
