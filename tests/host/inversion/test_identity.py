"""Models are told apart by what they hold, in this process and in another."""

import os
import subprocess
import sys

import comfy.lora
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from consistent_video.modules.clip_model.host import identity as parts
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, method
from consistent_video.modules.inversion.host.identity import model_digest
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.scripts.environment import ROOT

from ..edits import FRAMES, edit, invert, patched
from ..small import SmallV, random_model


def changed_weight(model: ModelPatcher) -> ModelPatcher:
    """Return a model of which one weight is another."""
    weight = model.model.diffusion_model.middle_block[1].proj_in.weight
    weight.data = weight.data * 1.01
    return model


def with_lora(model: ModelPatcher, strength: float, seed: int = 0) -> ModelPatcher:
    generator = torch.Generator().manual_seed(seed)
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_k"
    lora = {
        f"{key}.lora_up.weight": torch.randn(64, 3, generator=generator),
        f"{key}.lora_down.weight": torch.randn(3, 64, generator=generator),
    }
    patches = comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model.model, {}))
    clone = model.clone()
    assert len(clone.add_patches(patches, strength)) == 1
    return clone


def test_models_are_told_apart_by_what_they_hold(tune) -> None:
    models = {
        "EI²": patched(),
        "r": patched(r=4),
        "per frame": patched(preset=PER_FRAME),
        "norm": patched(norm="none"),
        "strength": attach(inflate(random_model()), *method(EI2, 2, "area"), spatial_strength=0.5),
        "percents": attach(inflate(random_model()), *method(EI2, 2, "area"), percents=(0.0, 0.5)),
        "frames": attach(inflate(random_model(), FRAMES), *method(EI2, 2, "area")),
        "v-prediction": patched(SmallV),
        "weights": changed_weight(patched()),
        "tuned": apply_tune(random_model(), tune),
        "half tuned": apply_tune(random_model(), tune, 0.5),
        "less tuned": apply_tune(random_model(), tune, 1.0, 0.5),
        "LoRA": with_lora(patched(), 1.0),
        "weak LoRA": with_lora(patched(), 0.5),
        "other LoRA": with_lora(patched(), 1.0, seed=1),
    }
    digests = {name: model_digest(model) for name, model in models.items()}
    assert len(set(digests.values())) == len(models), digests
    assert model_digest(patched()) == model_digest(models["EI²"].clone()) == digests["EI²"]
    assert model_digest(apply_tune(random_model(), tune)) == digests["tuned"]
    assert model_digest(with_lora(patched(), 0.5)) == digests["weak LoRA"]


def test_a_model_is_the_same_while_the_host_holds_its_patches_in_the_weights(tune, latent) -> None:
    base = random_model()
    tuned, patched_base = apply_tune(base, tune), inflate(base)
    before = model_digest(tuned), model_digest(patched_base)
    invert(tuned, latent)
    assert (model_digest(tuned), model_digest(patched_base)) == before
    invert(with_lora(tuned, 1.0), latent)
    assert (model_digest(tuned), model_digest(patched_base)) == before


OTHER_PROCESS = """
import importlib.util, runpy, sys
root, base = sys.argv[1:]
runpy.run_path(f"{root}/scripts/environment.py")["register_pack"]()
from pathlib import Path
from consistent_video.scripts.in_process import use_host
use_host(Path(base))
spec = importlib.util.spec_from_file_location("small", f"{root}/tests/host/small.py")
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)
from consistent_video.modules.inversion.host.identity import model_digest
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, method
model = attach(inflate(small.random_model()), *method(EI2, 2, "area"))
print(model_digest(model))
"""


def test_another_process_finds_the_same_digest(model, tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(ROOT), str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "77"}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == model_digest(model)


def test_an_inversion_of_another_model_is_told(model, plain, caplog) -> None:
    controlled = model.clone()
    controlled.set_model_attn2_patch(lambda q, k, v, options: (q, k, v))
    for same in (model, controlled):
        edit(same, plain)
    assert "another model" not in caplog.text
    edit(with_lora(model, 0.5), plain)
    assert "The inversion was made with another model, tune or patch" in caplog.text


def test_an_image_model_is_told_to_be_inflated() -> None:
    with pytest.raises(ValueError, match="Inflate UNet"):
        model_digest(random_model())


def test_the_digest_looks_at_some_of_a_weight() -> None:
    (said,) = parts.flatten(torch.arange(24000.0).reshape(20, 1200))
    shape, values = said.split(b") ", 1)
    assert shape == b"(20, 1200" and parts.SAMPLED <= len(values) / 4 < 2 * parts.SAMPLED
