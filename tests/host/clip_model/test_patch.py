"""Clip models in the host: what connects the frames, and what is refused."""

from collections.abc import Callable
from types import SimpleNamespace

import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_tomesd import TomePatchModel

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.host.settings import KEY
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, PRESETS, TUNE_A_VIDEO_PRESET, method

from ..small import EDIT, EMPTY, FRAMES, HEIGHT, UNET, WIDTH, clip_latent, prompt, sample
from .patched import CROSS_FRAME, patched


@pytest.fixture(scope="module")
def base(model, latent):
    return sample(model, latent)


def rearrange_by_hypertile(model: ModelPatcher) -> ModelPatcher:
    return HyperTile.execute(model, tile_size=32, swap_size=2, max_depth=0, scale_depth=False)[0]


def rearrange_by_token_merging(model: ModelPatcher) -> ModelPatcher:
    return TomePatchModel.execute(model, ratio=0.3)[0]


def change_first_frame(latent: dict) -> dict:
    samples = latent["samples"].clone()
    samples[0] += 5
    return {"samples": samples}


@pytest.mark.parametrize("num_frames", [0, 1, FRAMES])
def test_inflation_alone_changes_nothing(model, latent, base, num_frames) -> None:
    assert torch.equal(sample(inflate(model, num_frames), latent), base)


def test_per_frame_preset_changes_nothing(model, latent, base) -> None:
    assert torch.equal(sample(patched(model, PER_FRAME), latent), base)


@pytest.mark.parametrize("name", CROSS_FRAME)
def test_strength_zero_changes_nothing(model, latent, base, name) -> None:
    assert torch.equal(sample(patched(model, name, spatial_strength=0.0, temporal_strength=0.0), latent), base)


@pytest.mark.parametrize("name", CROSS_FRAME)
@pytest.mark.parametrize("off", ["spatial_strength", "temporal_strength"])
def test_each_part_connects_the_frames(model, latent, name, off) -> None:
    connected = patched(model, name, **{off: 0.0})
    apart = (sample(connected, change_first_frame(latent)) - sample(connected, latent)).abs().amax(dim=(1, 2, 3))
    if name == TUNE_A_VIDEO_PRESET and off == "spatial_strength":
        assert (apart[1:] == 0).all()  # an untrained zero-initialised branch adds its bias alone
    else:
        assert (apart[1:] > 0).all()


def test_without_connection_frames_are_apart(model, latent) -> None:
    alone = inflate(model)
    changed = sample(alone, change_first_frame(latent))
    torch.testing.assert_close(changed[1:], sample(alone, latent)[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CROSS_FRAME)
def test_the_input_model_is_never_altered(model, latent, base, name) -> None:
    sample(patched(model, name), latent)
    assert KEY not in model.model_options["transformer_options"]
    assert torch.equal(sample(model, latent), base)


def test_a_second_patch_takes_the_place_of_the_first(model, latent, base) -> None:
    first = patched(model, EI2)
    second = attach(first, *method(TUNE_A_VIDEO_PRESET, 2, "area"))
    assert torch.equal(sample(second, latent), sample(patched(model, TUNE_A_VIDEO_PRESET), latent))
    assert torch.equal(sample(attach(first, None, None), latent), base)


def test_half_strength_lies_between(model, latent, base) -> None:
    whole = sample(patched(model, TUNE_A_VIDEO_PRESET, temporal_strength=0.0), latent)
    half = sample(patched(model, TUNE_A_VIDEO_PRESET, temporal_strength=0.0, spatial_strength=0.5), latent)
    assert 0 < (half - base).norm() < (whole - base).norm()


def test_half_temporal_strength_lies_between(model, latent, base) -> None:
    whole = sample(patched(model, TUNE_A_VIDEO_PRESET, spatial_strength=0.0), latent)
    half = sample(patched(model, TUNE_A_VIDEO_PRESET, spatial_strength=0.0, temporal_strength=0.5), latent)
    assert 0 < (half - base).norm() < (whole - base).norm()


def test_clips_in_one_batch_do_not_see_each_other(model) -> None:
    first, second = clip_latent(3, seed=7)["samples"], clip_latent(3, seed=8)["samples"]
    clip_model = attach(inflate(model, 3), *method(EI2, 2, "area"))
    both = sample(clip_model, {"samples": torch.cat([first, second])})
    other = sample(clip_model, {"samples": torch.cat([first, first])})
    torch.testing.assert_close(both[:3], other[:3], rtol=1e-4, atol=1e-4)


def test_joined_and_split_conditionings_agree(model, latent, monkeypatch) -> None:
    clip_model = patched(model, EI2)
    calls = []
    apply_model = type(model.model).apply_model

    def counted(self, x, *args, **kwargs):
        calls.append(len(x))
        return apply_model(self, x, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "apply_model", counted)
    joined = sample(clip_model, latent)
    assert set(calls) == {2 * FRAMES}
    calls.clear()
    monkeypatch.setattr(type(model.model), "memory_required", lambda *args, **kwargs: float("inf"))
    split = sample(clip_model, latent)
    assert set(calls) == {FRAMES}
    torch.testing.assert_close(split, joined, rtol=1e-4, atol=1e-4)


def test_prompts_of_unequal_length_work(model, latent) -> None:
    longer = [[torch.cat([EDIT[0][0], prompt(9)[0][0], EMPTY[0][0]], dim=1)[:, :16], {}]]
    assert sample(patched(model, EI2), latent, positive=longer).isfinite().all()


def test_a_batch_that_is_no_whole_number_of_clips_is_refused(model, latent) -> None:
    with pytest.raises(ValueError, match=rf"{FRAMES} frames.*num_frames = 3"):
        sample(inflate(model, 3), latent)


def test_an_image_model_is_refused_by_the_patch(model) -> None:
    with pytest.raises(ValueError, match="Inflate UNet"):
        attach(model, *method(EI2, 4, "area"))


def test_models_of_other_kinds_are_refused_by_name() -> None:
    flux = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(2, 3)))
    with pytest.raises(ValueError, match="Linear.*Stable Diffusion 1.x"):
        inflate(flux)
    no_blocks = {"transformer_depth": [0, 0], "transformer_depth_output": [0] * 4, "transformer_depth_middle": -1}
    plain = comfy.supported_models.SD15({**UNET, **no_blocks})
    plain.set_inference_dtype(torch.float32, None)
    unet = SimpleNamespace(model=plain.get_model({}, ""))
    with pytest.raises(ValueError, match="UNetModel.*SpatialTransformer"):
        inflate(unet)
    inpainting = comfy.supported_models.SD15({**UNET, "in_channels": 9})
    inpainting.set_inference_dtype(torch.float32, None)
    with pytest.raises(ValueError, match="9 input channels"):
        inflate(SimpleNamespace(model=inpainting.get_model({}, "")))


def test_tokens_rearranged_by_another_patch_are_refused(model, latent) -> None:
    clip_model = patched(model, EI2)
    clip_model.set_model_attn1_patch(lambda n, context, value, _options: (n[:, ::2], n[:, ::2], n[:, ::2]))
    with pytest.raises(ValueError, match="HyperTile"):
        sample(clip_model, latent)


@pytest.mark.parametrize("rearrange", [rearrange_by_hypertile, rearrange_by_token_merging])
def test_the_hosts_own_rearranging_nodes_are_refused_wherever_they_are_connected(
    model, latent, base, rearrange: Callable[[ModelPatcher], ModelPatcher]
) -> None:
    torch.manual_seed(0)  # both draw from the global generator
    assert not torch.equal(sample(rearrange(model), latent), base)
    for clip_model in (rearrange(patched(model, EI2)), patched(rearrange(model), EI2)):
        with pytest.raises(ValueError, match=rf"of {HEIGHT} x {WIDTH}.*HyperTile, Token Merging"):
            sample(clip_model, latent)


def test_lora_chains_before_and_after(model, latent) -> None:
    blocks = transformer_blocks(model.model.diffusion_model)
    generator = torch.Generator().manual_seed(10)
    lora = {}
    for block in blocks:
        key = f"diffusion_model.{block.path}.attn1.to_v"
        lora[f"{key}.lora_up.weight"] = torch.randn(block.dim, 2, generator=generator)
        lora[f"{key}.lora_down.weight"] = torch.randn(2, block.dim, generator=generator)
    before = patched(comfy.sd.load_lora_for_models(model, None, lora, 0.5, 0.0)[0], EI2)
    after = comfy.sd.load_lora_for_models(patched(model, EI2), None, lora, 0.5, 0.0)[0]
    out = sample(before, latent)
    assert torch.equal(out, sample(after, latent))
    assert not torch.equal(out, sample(patched(model, EI2), latent))


@pytest.mark.parametrize("name", PRESETS)
def test_one_frame_works(model, name) -> None:
    assert sample(patched(model, name), clip_latent(1)).isfinite().all()
