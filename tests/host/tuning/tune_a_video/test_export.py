"""Tunes exported as Tune-A-Video's files: read by diffusers, imported again."""

import json
from pathlib import Path

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.methods import EI2
from consistent_video.modules.demo_model.host import load_demo_unet
from consistent_video.modules.tuning import tune_a_video as convert

from ...small import FRAMES, SD2_UNET, Small, SmallSD2, clip_latent, draw_noise, prompt, sample
from .exchange import BLOCK, TAV_UNET, assert_close, draw_tune, export, is_temporal, lora_of, read_back, small_model


@pytest.mark.parametrize(("kind", "unet"), [(Small, TAV_UNET), (SmallSD2, SD2_UNET)])
def test_what_is_exported_is_imported_again(folder, kind, unet) -> None:
    model = small_model(kind, unet)
    tune = draw_tune(model)
    again, report = read_back(model, export(model, tune), folder)
    assert_close(again, tune, rtol=0, atol=1e-6)
    for key in ("spatial", "spatial_strength", "temporal", "temporal_strength"):
        assert again.info[key] == tune.info[key]
    assert "frozen weights are those of the model" in report


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_exported_as_float16(folder, dtype) -> None:
    model = small_model(dtype=dtype)
    tune, held = draw_tune(model), model.model.state_dict()
    exported = export(model, tune)
    weights = load_file(exported / "unet" / convert.FILE)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    again, report = read_back(model, exported, folder)
    assert "frozen weights are those of the model" in report
    for key, value in tune.tensors.items():
        base = held[key.replace(".diff", ".weight")].float() if key.endswith(".diff") else 0.0
        torch.testing.assert_close(again.tensors[key], (base + value).half().float() - base, rtol=0, atol=0)


def test_the_demo_model_can_be_exported(folder) -> None:
    model = load_demo_unet()
    tune = draw_tune(model)
    assert_close(read_back(model, export(model, tune), folder)[0], tune, rtol=0, atol=1e-6)


def as_2d(config: dict) -> dict:
    """Return the configuration of the image UNet that Tune-A-Video inflates."""
    return json.loads(json.dumps(config).replace("Block3D", "Block2D").replace("UNet3D", "UNet2D"))


@pytest.mark.parametrize(("kind", "unet"), [(Small, TAV_UNET), (SmallSD2, SD2_UNET)])
def test_diffusers_reads_what_is_exported(kind, unet) -> None:
    """Its UNet, made from the exported configuration, is frame by frame the host's with the query projections."""
    model = small_model(kind, unet)
    tune = draw_tune(model)
    folder = export(model, tune) / "unet"
    theirs = UNet2DConditionModel.from_config(as_2d(json.loads((folder / "config.json").read_text()))).eval()
    weights = load_file(folder / convert.FILE)
    theirs.load_state_dict({key: value for key, value in weights.items() if not is_temporal(key)}, strict=True)
    queries = {key.replace(".diff", ".weight"): ("diff", (value,)) for key, value in tune.tensors.items()}
    tuned = model.clone()
    assert len(tuned.add_patches(queries)) == 2 * len(transformer_blocks(model.model.diffusion_model))
    ours = [call_host(patcher, prompt(5, unet["context_dim"])) for patcher in (tuned, model)]
    x, context = draw_noise(clip_latent()), prompt(5, unet["context_dim"])[0][0].expand(FRAMES, -1, -1)
    with torch.no_grad():
        expected = theirs(x, 600, context).sample
    torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-3)
    assert (ours[1] - expected).std() > 0.05 * expected.std()


@torch.no_grad()
def call_host(patcher: ModelPatcher, given: list) -> Tensor:
    """Call the UNet of a model, each frame for itself, at timestep 600."""
    patcher.patch_model()
    try:
        x = draw_noise(clip_latent())
        unet, options = patcher.model.diffusion_model, patcher.model_options["transformer_options"]
        context = given[0][0].expand(FRAMES, -1, -1).to(patcher.load_device)
        timesteps = torch.full((FRAMES,), 600, device=patcher.load_device)
        return unet(x.to(patcher.load_device), timesteps, context, transformer_options=dict(options)).cpu()
    finally:
        patcher.unpatch_model()


def test_lora_go_into_the_export() -> None:
    model, latent = small_model(), clip_latent()
    tune = draw_tune(model)
    with_lora = comfy.sd.load_lora_for_models(model, None, lora_of(model), 1.0, 0.0)[0]
    weights = load_file(export(with_lora, tune) / "unet" / convert.FILE)
    lora, held = lora_of(model), model.model.state_dict()
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    key = f"{BLOCK}.attn1.to_q"
    added = lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"]
    expected = held[f"{key}.weight"] + added + tune.tensors[f"{key}.diff"]
    torch.testing.assert_close(weights[f"{block}.attn1.to_q.weight"], expected, rtol=0, atol=1e-5)
    expected = held[f"{BLOCK}.attn2.to_k.weight"] + lora[f"{BLOCK}.attn2.to_k.diff"]
    torch.testing.assert_close(weights[f"{block}.attn2.to_k.weight"], expected, rtol=0, atol=1e-6)
    assert torch.equal(model.model.state_dict()[f"{key}.weight"], held[f"{key}.weight"])
    assert not torch.equal(sample(with_lora, latent), sample(model, latent))


def test_only_tunes_of_tune_a_video_are_exported(folder) -> None:
    model = small_model()
    with pytest.raises(ValueError, match="fine-coarse .*instance centering .*spectral norm.*preset Tune-A-Video"):
        export(model, draw_tune(model, EI2))
    assert list(folder.iterdir()) == []


def test_exports_are_numbered_and_stay_in_the_folder(folder) -> None:
    model = small_model()
    tune = draw_tune(model)
    paths = [export(model, tune, prefix).relative_to(folder) for prefix in ("swan", "swan", "clips/swan")]
    assert [str(path) for path in paths] == ["swan_00001_", "swan_00002_", "clips/swan_00001_"]
    for prefix, message in (
        ("../swan", "leads outside"),
        ("clips/", "names no file"),
        (str(folder.parent), "begins at the root"),
    ):
        with pytest.raises(ValueError, match=message):
            export(model, tune, prefix)
    assert sorted(path.name for path in folder.iterdir()) == ["clips", "swan_00001_", "swan_00002_"]


def test_a_failed_export_leaves_nothing(folder, monkeypatch) -> None:
    def write_half(_weights, path, _metadata):
        Path(path).write_bytes(b"half of it")
        raise OSError("No space left on device")

    model = small_model()
    monkeypatch.setattr(convert, "save_file", write_half)
    with pytest.raises(OSError, match="swan_00001_ could not be written .*No space left"):
        export(model, draw_tune(model))
    assert list(folder.iterdir()) == []
