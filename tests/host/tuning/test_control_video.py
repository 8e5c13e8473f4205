"""ControlVideo's tuning: self-attention's output projections and the temporal modules after it, and nothing else."""

from pathlib import Path

import comfy.sd
import pytest
import torch

from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import CONTROL_VIDEO_PRESET, EI2
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.weights import Tune, load_tune, save_tune

from ..small import sample
from .tuned import LONG, assert_same, assert_same_tuning, distance, lively_model, patched, run


@pytest.fixture(scope="module")
def made() -> Tune:
    return run(patched(CONTROL_VIDEO_PRESET, lively_model()), LONG)


def test_exactly_its_parameters_are_trained(made: Tune) -> None:
    blocks = transformer_blocks(lively_model().model.diffusion_model)
    outputs = {f"diffusion_model.{b.path}.attn1.to_out.0.{end}" for b in blocks for end in ("diff", "diff_b")}
    start = clip_settings(patched(CONTROL_VIDEO_PRESET, lively_model())).temporal.tensors()
    assert set(made.tensors) == outputs | set(start) and not any("middle" in key for key in start)
    assert all(made.tensors[key].abs().max() > 0 for key in outputs)
    assert all(not torch.equal(made.tensors[key], value) for key, value in start.items())
    assert made.info["preset"] == CONTROL_VIDEO_PRESET and made.info["temporal"]["follows"] == "self-attention"


def test_a_file_of_it_is_applied_and_resumed_to_the_bit(made: Tune, latent, tmp_path: Path) -> None:
    begun = run(patched(CONTROL_VIDEO_PRESET, lively_model()), LONG.changed(steps=3))
    save_tune(begun, tmp_path / "begun.safetensors", with_state=True)
    resumed = run(patched(CONTROL_VIDEO_PRESET, lively_model()), LONG, resume=load_tune(tmp_path / "begun.safetensors"))
    assert_same_tuning(resumed, made)
    base = lively_model()
    tuned = apply_tune(base, made)
    assert_same(clip_settings(tuned).temporal.tensors(), {k: v for k, v in made.tensors.items() if "attn_temp" in k})
    for key, value in made.tensors.items():
        if key.endswith((".diff", ".diff_b")):
            name = "bias" if key.endswith("_b") else "weight"
            ((_, (_, (added,)), *_),) = tuned.patches[f"{key.rpartition('.')[0]}.{name}"]
            assert torch.equal(added, value)
    loaded = comfy.sd.load_lora_for_models(base, None, made.tensors, 1.0, 0.0)[0]
    assert loaded.patches.keys() == tuned.patches.keys(), "Load LoRA reads the projections too"
    sampled, untuned = sample(tuned, latent), sample(patched(CONTROL_VIDEO_PRESET, base), latent)
    assert distance(sampled, untuned) > 1e-3
    assert torch.equal(sample(apply_tune(base, made, 0.0, 0.0), latent), untuned)


def test_what_does_not_fit_is_refused(made: Tune, tune: Tune) -> None:
    mixed = Tune(made.tensors, {**made.info, "temporal": tune.info["temporal"]})
    with pytest.raises(ValueError, match=r"attn1.to_q.diff is absent in the tune"):
        apply_tune(lively_model(), mixed)
    newer = Tune(made.tensors, {**made.info, "temporal": {**made.info["temporal"], "follows": "cross-attention"}})
    with pytest.raises(ValueError, match="info.temporal.follows is .cross-attention., not one of"):
        apply_tune(lively_model(), newer)
    with pytest.raises(ValueError, match="resume was tuned with"):
        run(patched(EI2, lively_model()), LONG, resume=made)
