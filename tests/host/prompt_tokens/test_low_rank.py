"""Low-rank adapters that are learned beside the tokens."""

from dataclasses import replace

import comfy.sd
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_train import LoraModelLoader, SaveLoRA

from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.prompt_tokens.host.session import PromptTuning
from consistent_video.modules.tuning.host.private_copy import private_copy
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs

from ..small import SOURCE, clip_latent, sample
from .learned import PROMPT, SETTINGS, clip_model, run


def test_low_rank_adapters_are_a_lora_of_the_host(folder, monkeypatch) -> None:
    settings = SETTINGS.changed(steps=4)
    found = run(settings=settings, asked=replace(PROMPT, rank=2))
    model, latent = clip_model(), clip_latent()
    blocks = len(transformer_blocks(model.model.diffusion_model))
    assert len(found.low_rank) == 3 * 8 * blocks  # up, down and alpha of eight projections
    (loaded,) = LoraModelLoader.execute(model, found.low_rank, 1.0).args
    assert len(loaded.patches) == 8 * blocks
    plain, with_lora = sample(model, latent), sample(loaded, latent)
    assert (with_lora - plain).norm() > 1e-3 * plain.norm()
    monkeypatch.setattr("comfy_extras.nodes_train.folder_paths.get_output_directory", lambda: str(folder))
    SaveLoRA.execute(found.low_rank, "swan")
    weights = comfy.utils.load_torch_file(str(folder / "swan_00001_.safetensors"), safe_load=True)
    again, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)
    assert torch.equal(sample(again, latent), with_lora)


def test_the_low_rank_adapters_are_what_was_learned_with() -> None:
    """The loss with the LoRA as the host applies it is that of the tuning's next step."""
    whole = run(settings=SETTINGS.changed(steps=5, learning_rate=1e-2), asked=replace(PROMPT, rank=2))
    part = run(settings=SETTINGS.changed(steps=4, learning_rate=1e-2), asked=replace(PROMPT, rank=2))
    (loaded,) = LoraModelLoader.execute(clip_model(), part.low_rank, 1.0).args
    inputs = TuneInputs(SOURCE, clip_latent())
    with torch.inference_mode(False), torch.enable_grad(), private_copy(loaded) as copy:
        tuning = PromptTuning(copy, loaded, inputs, SETTINGS, PROMPT)
        with torch.no_grad():
            tuning.learned.tokens.shared.copy_(part.adapter.shared)
            tuning.learned.tokens.frame.copy_(part.adapter.frame)
        tuning.tuner.generator.set_state(part.adapter.state["generator"])
        loss = tuning.tuner.objective.evaluate(tuning.tuner.draw(), 0)[0]["loss"].item()
    assert loss == pytest.approx(whole.adapter.info["loss"][4], rel=1e-4)
    assert loss != pytest.approx(run(settings=SETTINGS.changed(steps=5)).adapter.info["loss"][4], rel=1e-4)
