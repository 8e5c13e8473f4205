"""Inverted clips in ComfyUI's own samplers: refused where more noise, or another level of it, would spoil the clip."""

import gc
from collections.abc import Callable
from typing import Any

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_extras.nodes_custom_sampler import (
    DisableNoise,
    Guider_Basic,
    RandomNoise,
    SamplerCustom,
    SamplerCustomAdvanced,
)

from consistent_video.modules.clip_model.host.attach import inflate
from consistent_video.modules.files.host import INVERSIONS
from consistent_video.modules.inversion.host.foreign import inversions_in
from consistent_video.modules.inversion.host.invert import INVERSION
from consistent_video.nodes.inversion import LoadInversion, SaveInversion
from consistent_video.nodes.sample import SmoothSampler
from nodes import KSampler, KSamplerAdvanced, LatentFromBatch, SetLatentNoiseMask

from ..edits import STEPS, away, edit, invert
from ..small import EDIT, EMPTY, clip_latent, in_windows, random_model

Latent = dict[str, Any]
EULER = comfy.samplers.sampler_object("euler")
SIGMAS = torch.tensor([3.0, 1.0, 0.0])


def ksampler(model, latent: Latent, denoise: float = 1.0) -> Latent:
    return KSampler().sample(model, 1, STEPS, 4.0, "euler", "normal", EDIT, EMPTY, latent, denoise)[0]


def ksampler_advanced(model, latent: Latent, add_noise: str = "enable", scheduler: str = "ddim_uniform") -> Latent:
    given = 1, STEPS, 4.0, "euler", scheduler, EDIT, EMPTY, latent, 0, 10000, "disable"
    return KSamplerAdvanced().sample(model, add_noise, *given)[0]


def custom(model, latent: Latent, add_noise: bool = True, sigmas=SIGMAS) -> Latent:
    return SamplerCustom.execute(model, add_noise, 1, 4.0, EDIT, EMPTY, EULER, sigmas, latent).args[0]


def advanced(model, latent: Latent, noise=None) -> Latent:
    guider = Guider_Basic(model)
    guider.set_conds(EDIT)
    noise = noise or RandomNoise.execute(1).args[0]
    return SamplerCustomAdvanced.execute(noise, guider, EULER, SIGMAS, latent).args[0]


SAMPLERS: dict[str, Callable[[Any, Latent], Latent]] = {
    "KSampler": ksampler,
    "KSampler of a part": lambda *given: ksampler(*given, denoise=0.5),
    "KSampler (Advanced)": ksampler_advanced,
    "SamplerCustom": custom,
    "SamplerCustomAdvanced": advanced,
}


WAYS: dict[str, Callable[[Latent], Latent]] = {  # that an inversion may take to a sampler
    "as it is": lambda inversion: inversion,
    "without what it says": lambda inversion: {"samples": inversion["samples"]},
    "in half precision": lambda inversion: {**inversion, "samples": inversion["samples"].half()},
    "cut": lambda inversion: LatentFromBatch().frombatch(inversion, 1, 2)[0],
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_on_an_inverted_clip_is_refused(sampler: str, model, plain) -> None:
    with pytest.raises(ValueError, match=r"is an inverted clip.* adds more.*Smooth Sample.*DisableNoise"):
        SAMPLERS[sampler](model, plain)


@pytest.mark.parametrize("way", WAYS)
def test_an_inverted_clip_is_recognised_whichever_way_it_came(way: str, model, plain) -> None:
    with pytest.raises(ValueError, match="is an inverted clip"):
        ksampler(model, WAYS[way](plain))


@pytest.mark.parametrize("prepare", [inflate, lambda model: in_windows(inflate(model), 3)], ids=["bare", "windows"])
def test_every_clip_model_refuses(prepare, plain) -> None:
    with pytest.raises(ValueError, match="is an inverted clip"):
        ksampler(prepare(random_model()), plain)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_other_latents_are_sampled_as_by_the_image_model(sampler: str, latent, plain) -> None:
    """Also where they carry the record of an inversion, as what is sampled from one does."""
    sample, image_model = SAMPLERS[sampler], random_model()
    for given in (latent, {**plain, "samples": clip_latent(4, seed=9)["samples"]}):
        assert away(sample(inflate(image_model), given)["samples"], sample(image_model, given)["samples"]) < 1e-6


def test_an_edit_from_comfyuis_sampler_may_be_refined(model, plain) -> None:
    guider = Guider_Basic(model)
    guider.set_conds(EDIT)
    (noise,) = DisableNoise.execute().args
    edited = SamplerCustomAdvanced.execute(noise, guider, *SmoothSampler.execute(plain).args, plain).args[0]
    assert INVERSION in edited and ksampler(model, edited, denoise=0.4)["samples"].isfinite().all()


def test_without_added_noise_comfyuis_samplers_edit_as_smooth_sample(model, latent) -> None:
    inversion = invert(model, latent, set_alpha_to_one=True)
    expected = edit(model, inversion)
    sigmas = SmoothSampler.execute(inversion).args[1]
    assert away(ksampler_advanced(model, inversion, "disable")["samples"], expected) < 1e-4
    assert away(custom(model, inversion, False, sigmas)["samples"], expected) < 1e-4


def test_another_noise_level_than_the_inversions_is_refused(model, plain) -> None:
    level = rf"{plain[INVERSION].sigmas[0]:.4f}"
    with pytest.raises(ValueError, match=rf"noise of sigma {level}.* starts at sigma 14\.6146\. Use Smooth Sample"):
        ksampler_advanced(model, plain, "disable", "normal")
    with pytest.raises(ValueError, match=rf"noise of sigma {level}.* starts at sigma 3\.0000"):
        custom(model, plain, False)
    with pytest.raises(ValueError, match=r"starts at sigma 3\.0000"):
        advanced(model, plain, DisableNoise.execute().args[0])


def test_a_mask_on_an_inverted_clip_is_refused(model, plain) -> None:
    masked = SetLatentNoiseMask().set_mask(plain, torch.ones(1, 64, 48))[0]
    with pytest.raises(ValueError, match="has a noise mask"):
        ksampler_advanced(model, masked, "disable")


def test_an_inversion_is_known_as_long_as_it_is_there_and_again_when_it_is_loaded(
    model, latent, tmp_path, monkeypatch
) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, INVERSIONS, ([str(tmp_path)], {".safetensors"}))
    inversion = invert(model, latent, steps=3)
    SaveInversion.execute(inversion, "swan")
    samples = inversion["samples"].clone()
    assert inversions_in(samples) == [inversion[INVERSION]]
    del inversion
    gc.collect()
    assert not inversions_in(samples)
    (loaded, _) = LoadInversion.execute("swan_00001_.safetensors").args
    assert inversions_in(samples) == [loaded[INVERSION]]
