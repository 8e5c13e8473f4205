"""Tunings that go on where another ended, and the snapshots on the way."""

from dataclasses import replace

import pytest
import torch

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, FULL, TUNE_A_VIDEO_PRESET, method
from consistent_video.modules.tuning.host import session
from consistent_video.modules.tuning.weights import load_tune, save_tune

from ..small import SmallV, clip_latent, family_model, prompt, random_model
from .tuned import LONG, assert_same, assert_same_tuning, lively_model, patched, run


@pytest.mark.parametrize("name", [EI2, TUNE_A_VIDEO_PRESET, FULL])
def test_a_tuning_goes_on_to_the_bit(name: str, tmp_path) -> None:
    changes = {"frames_per_step": 3, "gradient_checkpointing": True} if name == FULL else {}
    whole = run(patched(name), LONG.changed(**changes))
    begun = run(patched(name), LONG.changed(steps=3, snapshots=(1, 2), **changes))
    save_tune(begun, tmp_path / "tune.safetensors", with_state=True)
    with torch.inference_mode():
        begun = load_tune(tmp_path / "tune.safetensors")
    resumed = run(patched(name), LONG.changed(**changes), resume=begun)
    assert_same_tuning(resumed, whole)
    assert begun.info["loss"] == whole.info["loss"][:3] and set(whole.snapshots) == {0, 1, 2, 4}


def test_what_cannot_be_resumed_is_refused(long) -> None:
    with pytest.raises(ValueError, match="resume has no state of its tuning. Save it with with_state on"):
        run(patched(EI2), LONG, resume=replace(long, state={}))
    with pytest.raises(ValueError, match="resume was tuned with spatial = .*fine-coarse.* here it is .*sparse-causal"):
        run(patched(TUNE_A_VIDEO_PRESET), LONG, resume=long)
    own_norm = attach(inflate(random_model()), *method(EI2, 2, "area", norm="none"))
    with pytest.raises(ValueError, match="resume was tuned with temporal = .*centering.* here it is .*'none'"):
        run(own_norm, LONG, resume=long)
    with pytest.raises(ValueError, match="resume was tuned with prediction = eps, and here it is v"):
        run(patched(EI2, random_model(SmallV)), LONG, resume=long)
    with pytest.raises(ValueError, match="resume has 6 steps done and steps is 6, .*Set steps higher"):
        run(patched(EI2, lively_model()), LONG, resume=long)
    with pytest.raises(ValueError, match="resume was begun on another model"):
        run(patched(EI2), LONG.changed(steps=7), resume=long)
    with pytest.raises(ValueError, match="resume was begun on another model"):
        run(patched(EI2, family_model("SDXL")), LONG.changed(steps=7), resume=long, positive=prompt(3, 56))


def test_going_on_with_something_else_is_told(long, caplog) -> None:
    again = run(patched(EI2, lively_model()), LONG.changed(steps=7), resume=long)
    assert len(again.info["loss"]) == 7 and "resume" not in caplog.text
    run(patched(EI2, lively_model()), LONG.changed(steps=7), resume=long, latent=clip_latent(4, seed=20))
    told = [record.getMessage() for record in caplog.records if record.name == session.__name__]
    assert told == ["The tuning to resume was begun with other clip_hash, frames; going on with those given."]
    caplog.clear()
    weaker = attach(inflate(lively_model()), *method(EI2, 2, "area"), spatial_strength=0.5)
    run(weaker, LONG.changed(steps=7, min_snr_gamma=5.0), resume=long)
    assert "begun with other min_snr_gamma, spatial_strength;" in caplog.text
    caplog.clear()
    older = replace(long, info={key: value for key, value in long.info.items() if key != "recipe"})
    for begun in (long, older):
        run(patched(EI2, lively_model()), LONG.changed(steps=7, recipe="fast"), resume=begun)
        assert "begun with other recipe;" in caplog.text
        caplog.clear()


def test_a_tuning_goes_on_with_its_own_optimizer(long) -> None:
    other = replace(long, info={**long.info, "optimizer": "AdamW 8-bit"})
    with pytest.raises(ValueError, match="resume was tuned with optimizer = AdamW 8-bit, and here it is AdamW."):
        run(patched(EI2, lively_model()), LONG.changed(steps=7), resume=other)


@pytest.mark.parametrize("step", [1, 4])
def test_a_snapshot_is_what_a_shorter_tuning_learns(long, step: int) -> None:
    assert long.snapshots.keys() == {0, 1, 2, 4}
    shorter = run(patched(EI2, lively_model()), LONG.changed(steps=step, snapshots=()))
    assert shorter.snapshots == {}
    assert_same(long.snapshots[step], {key: value.half() for key, value in shorter.tensors.items()})


def test_the_snapshot_before_the_first_step_is_the_temporal_modules(long) -> None:
    start = patched(EI2).get_additional_models()[0].model.tensors()
    found = long.snapshots[0]
    assert found.keys() == start.keys() and all(value.dtype == torch.float16 for value in found.values())
    for key, value in start.items():
        torch.testing.assert_close(found[key].float(), value, rtol=1e-3, atol=1e-4)
