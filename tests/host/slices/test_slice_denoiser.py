"""Slice Denoiser in the host: what it blends, in the inversion and in the edit, and what it does not go with."""

from math import sqrt

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from consistent_video.modules.inversion.host.identity import model_digest
from consistent_video.modules.inversion.host.invert import INVERSION
from consistent_video.modules.judging.host.inspect import inspect_model
from consistent_video.modules.slices import host
from consistent_video.modules.slices.host import slices_of
from consistent_video.modules.tuning.host.private_copy import check_tunable
from consistent_video.nodes.slices import SliceDenoiser

from ..edits import away, edit, invert, patched, small_latent
from ..small import EDIT, EMPTY, SOURCE, family_model, in_windows

WEIGHT = 0.3


@pytest.fixture(scope="module")
def latent() -> dict[str, Tensor]:
    return small_latent()


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    return patched(preset="Tune-A-Video", base=family_model("SD1.x"))


def sliced(model: ModelPatcher, weight: float = WEIGHT, axes: str = "both", blend: str = "mean") -> ModelPatcher:
    return SliceDenoiser.execute(model, EMPTY, weight=weight, axes=axes, blend=blend).args[0]


def noise_of(model: ModelPatcher, x: Tensor, positive: list, cfg: float = 1.0) -> Tensor:
    """Return what one evaluation of a model takes away from pictures at a noise level."""

    def evaluate(denoise, x, sigmas, extra_args=None, **_) -> Tensor:
        return x - denoise(x, sigmas[:1].expand(len(x)), **extra_args)

    given = (comfy.samplers.KSAMPLER(evaluate), torch.tensor([5.0, 2.0]), positive, SOURCE, x)
    return comfy.sample.sample_custom(model, torch.zeros_like(x), cfg, *given, disable_pbar=True, seed=0)


def test_guided_frames_are_blended_with_slices_under_the_empty_prompt_as_pictures(model, latent) -> None:
    x, image_model = 5 * latent["samples"], family_model("SD1.x")
    by_frames = noise_of(model, x, EDIT, cfg=3.0)
    columns = torch.stack([x[..., i] for i in range(x.shape[3])])  # w f c h
    rows = torch.stack([x[..., i, :] for i in range(x.shape[2])])  # h f c w
    by_columns, by_rows = (noise_of(image_model, lines.transpose(1, 2), EMPTY) for lines in (columns, rows))
    by_slices = by_columns.permute(2, 1, 3, 0) + by_rows.permute(2, 1, 0, 3)
    mean = (1 - WEIGHT) * by_frames + WEIGHT * 0.5 * by_slices
    roots = sqrt(1 - WEIGHT) * by_frames + sqrt(WEIGHT * 0.5) * by_slices
    for blend, expected in (("mean", mean), ("square roots", roots)):
        assert away(noise_of(sliced(model, blend=blend), x, EDIT, cfg=3.0), expected) < 1e-4
        assert away(by_frames, expected) > 0.05


def test_without_weight_nothing_is_attached(model, latent) -> None:
    once = sliced(model)
    assert slices_of(once).settings.weight == WEIGHT and slices_of(model) is None
    assert slices_of(sliced(once, 0.6)).settings.weight == 0.6
    without = sliced(once, 0.0)
    assert slices_of(without) is None and model_digest(without) == model_digest(model) != model_digest(once)
    assert torch.equal(noise_of(without, latent["samples"], EDIT), noise_of(model, latent["samples"], EDIT))


def test_the_inversion_and_the_way_back_see_the_same_slices(model, latent) -> None:
    with_slices = sliced(model, blend="square roots")
    found = invert(with_slices, latent, steps=2, method="edit-friendly DDPM")
    assert found[INVERSION].model == model_digest(with_slices)
    back = [edit(either, found, 1.0, SOURCE) for either in (with_slices, model)]
    assert away(back[0], latent["samples"]) < 2e-3 < 0.02 < away(back[1], latent["samples"])


def test_windows_have_slices_of_their_own_frames(latent, monkeypatch) -> None:
    model, seen = patched(base=family_model("SD1.x")), []

    def note(predict, x: Tensor, frames: int, *how) -> Tensor:
        seen.append((len(x), frames))
        return x

    monkeypatch.setattr(host, "predict_slices", note)
    noise_of(in_windows(sliced(model), 3), latent["samples"], EDIT, cfg=3.0)
    assert seen == [(3, 3)] * 2  # frames 0 to 2 and 1 to 3; not where the memory of fine-coarse attention is filled


def test_a_model_with_slices_is_inspected_and_not_tuned(model) -> None:
    with_slices = sliced(model)
    text, data = inspect_model(with_slices)
    assert data["slices"] == {"weight": WEIGHT, "axes": "both", "blend": "mean"} and not data["others"]
    assert "**Slice Denoiser**: weight 0.3, slices both, blend mean." in text
    with pytest.raises(ValueError, match="^model carries SliceDenoiser .*would have no effect here. Remove that node"):
        check_tunable(with_slices)


def test_what_has_no_slices_is_refused(model, latent) -> None:
    with pytest.raises(ValueError, match="Inflate UNet"):
        sliced(family_model("SD1.x"))
    with pytest.raises(ValueError, match="^empty carries mask, which would have no effect"):
        SliceDenoiser.execute(model, [[EMPTY[0][0], {"mask": torch.ones(1, 8, 8)}]], weight=0.2)
    with pytest.raises(ValueError, match="^weight is 2.0. Give a number from 0 to 1."):
        sliced(model, 2.0)
    with pytest.raises(ValueError, match="one frame, which has no slices"):
        noise_of(sliced(model), latent["samples"][:1], EDIT)
