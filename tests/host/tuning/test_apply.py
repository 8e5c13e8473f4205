"""A tune applied to a model: its strengths, its snapshots, LoRA beside it, and what is refused."""

from dataclasses import replace

import comfy.sd
import pytest
import torch

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, method
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.weights import Tune
from consistent_video.nodes.tune_files import ApplyTune

from ..small import UNET, Small, family_model, lively_weights, make_model, prompt, random_model, sample
from .tuned import LONG, SETTINGS, distance, lively_model, lora_of, patched, run


def test_the_tuned_model_has_what_was_learned(latent, tune) -> None:
    tuned = apply_tune(random_model(), tune)
    learned = clip_settings(tuned).temporal.tensors()
    assert learned and all(torch.equal(value.cpu(), tune.tensors[key]) for key, value in learned.items())
    weights = {key: value for key, (value, *_) in tuned.get_key_patches("diffusion_model").items()}
    for key in (key for key in tune.tensors if key.endswith(".diff")):
        ((_, (_, (added,)), *_),) = tuned.patches[f"{key.removesuffix('.diff')}.weight"]
        assert torch.equal(added, tune.tensors[key])
    assert weights
    untrained = Tune({**tune.tensors, **patched(EI2).get_additional_models()[0].model.tensors()}, tune.info)
    assert not torch.equal(sample(tuned, latent), sample(apply_tune(random_model(), untrained), latent))


def test_a_tune_keeps_the_strengths_it_was_made_with() -> None:
    weak = attach(inflate(random_model()), *method(EI2, 2, "area"), spatial_strength=0.5, temporal_strength=0.25)
    tuned = clip_settings(apply_tune(random_model(), run(weak), temporal_strength=0.5))
    assert (tuned.spatial_strength, tuned.temporal_strength) == (0.5, 0.125)


def test_strengths_of_a_tune(latent, tune) -> None:
    base = random_model()
    whole, none = apply_tune(base, tune), apply_tune(base, tune, 0.0, 0.0)
    untrained = attach(inflate(base), *method(EI2, 2, "area"), temporal_strength=0.0)
    assert torch.equal(sample(none, latent), sample(untrained, latent))
    half = apply_tune(base, tune, 0.5, 0.5)
    distance = [(sample(m, latent) - sample(none, latent)).norm() for m in (half, whole)]
    assert 0 < distance[0] < distance[1]


def test_a_tune_adds_to_a_lora_on_the_same_weights(latent, tune) -> None:
    base = random_model()
    lora = lora_of(base)
    first = apply_tune(comfy.sd.load_lora_for_models(base, None, lora, 0.5, 0.0)[0], tune)
    last = comfy.sd.load_lora_for_models(apply_tune(base, tune), None, lora, 0.5, 0.0)[0]
    torch.testing.assert_close(sample(first, latent), sample(last, latent), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(sample(first, latent), sample(apply_tune(base, tune), latent), rtol=1e-3)


def test_a_tune_of_another_structure_is_refused(tune) -> None:
    key = next(iter(tune.tensors))
    wrong = Tune({**tune.tensors, key: torch.zeros(3, 5)}, tune.info)
    with pytest.raises(ValueError, match=rf"{key} is \(3, 5\) in the tune and \(32, 32\) in the model"):
        apply_tune(random_model(), wrong)
    more = Tune({**tune.tensors, "diffusion_model.extra.diff": torch.zeros(2)}, tune.info)
    with pytest.raises(ValueError, match=r"extra.diff is \(2,\) in the tune and absent in the model"):
        apply_tune(random_model(), more)


def test_a_patch_does_not_throw_a_tune_away(tune) -> None:
    with pytest.raises(ValueError, match="before One-Shot Tune"):
        attach(apply_tune(random_model(), tune), *method(EI2, 2, "area"))


def test_the_dial_goes_from_the_untuned_model_to_the_tuned_one(latent, long) -> None:
    base = lively_model()
    untuned, tuned = sample(patched(EI2, base), latent), sample(apply_tune(base, long), latent)
    third = run(patched(EI2, base), LONG.changed(steps=2))
    ends = distance(tuned, untuned)
    assert ends > 0.02
    dialled = {at: sample(apply_tune(base, long, progress=at), latent) for at in (0, 1 / 3, 0.5, 0.8, 1)}
    assert torch.equal(dialled[1], tuned)
    assert distance(dialled[0], untuned) < 0.02 * ends
    assert distance(dialled[1 / 3], sample(apply_tune(base, third), latent)) < 0.02 * ends
    from_start = [distance(dialled[at], untuned) for at in (0, 1 / 3, 0.5, 0.8, 1)]
    to_end = [distance(dialled[at], tuned) for at in (0, 1 / 3, 0.5, 0.8, 1)]
    assert from_start == sorted(from_start) and to_end == sorted(to_end, reverse=True)


def test_the_dial_is_an_input_of_apply_tune(latent, long) -> None:
    base = lively_model()
    (dialled,) = ApplyTune.execute(base, long, 0.7, 0.4, 0.5).args
    assert torch.equal(sample(dialled, latent), sample(apply_tune(base, long.at(0.5), 0.7, 0.4), latent))
    with pytest.raises(ValueError, match="no snapshots"):
        ApplyTune.execute(base, replace(long, snapshots={}), 1.0, 1.0, 0.5)


def test_the_dial_is_at_the_end_unless_it_is_turned(latent, long) -> None:
    base, expected = lively_model(), sample(apply_tune(lively_model(), long, 0.7, 0.4), latent)
    for tune in (long, replace(long, snapshots={})):
        (applied,) = ApplyTune.execute(base, tune, 0.7, 0.4).args
        assert torch.equal(sample(applied, latent), expected)


def test_a_tune_of_another_family_is_refused(tune) -> None:
    other = {**UNET, "model_channels": 64}
    with pytest.raises(ValueError, match=r"attn1.to_q.diff is \(32, 32\) in the tune and \(64, 64\) in the model"):
        apply_tune(make_model(Small, other, lively_weights, torch.float32), tune)
    first = "input_blocks.3.1.transformer_blocks.0.attn1.to_q.diff"
    with pytest.raises(ValueError, match=rf"{first} is \(64, 64\) in the tune and \(128, 128\) in the model"):
        apply_tune(family_model("SDXL"), tune)
    sdxl = run(patched(PER_FRAME, family_model("SDXL")), SETTINGS.changed(steps=1), positive=prompt(3, 56))
    first = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.diff"
    with pytest.raises(ValueError, match=rf"{first} is absent in the tune and \(32, 32\) in the model"):
        apply_tune(random_model(), sdxl)


def test_the_same_tune_is_applied_once(long) -> None:
    tuned = apply_tune(lively_model(), long)
    for progress_ in (1.0, 0.5):
        with pytest.raises(ValueError, match="has this tune already, and applying it again would double"):
            apply_tune(tuned, long, progress=progress_)
    with pytest.raises(ValueError, match="has this tune already"):
        apply_tune(apply_tune(lively_model(), long, progress=0.5), long)


def test_a_tune_made_on_a_tuned_model_is_applied_after_it(latent, long) -> None:
    base = lively_model()
    first = apply_tune(base, long)
    second = run(first, SETTINGS.changed(seed=5))
    both = apply_tune(first, second)
    added = {key: value + long.tensors[key] * key.endswith(".diff") for key, value in second.tensors.items()}
    summed = apply_tune(base, Tune(added, {**second.info, "seed": 0}))
    assert distance(sample(both, latent), sample(summed, latent)) < 1e-4
    assert distance(sample(both, latent), sample(first, latent)) > 1e-2
    assert clip_settings(both).tunes == (long.digest(), second.digest())
