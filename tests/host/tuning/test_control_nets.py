"""A tuning whose source prompt carries ControlNets: they steer it as they steer sampling, and stay as they are."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from torch import Tensor

from consistent_video.modules.clip_model.methods import EI2, TUNE_A_VIDEO_PRESET
from consistent_video.modules.tuning.host import training
from consistent_video.modules.tuning.host.preview import PreviewSettings
from consistent_video.modules.tuning.weights import Tune

from ..small import EMPTY, FRAMES, HEIGHT, SOURCE, WIDTH, control_net
from .tuned import (
    SETTINGS,
    assert_gone,
    assert_same,
    distance,
    interrupt_after,
    lively_model,
    patched,
    run,
    watch_copies,
)

SHORT = SETTINGS.changed(steps=2)
HINTS = torch.rand(FRAMES, 3, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(12))


def steered(hints: Tensor = HINTS, percents: tuple[float, float] = (0.0, 1.0), strength: float = 0.7) -> list:
    """Return the source prompt with two ControlNets, of which the first has one hint for all frames."""
    with torch.inference_mode():  # as nodes load them
        first = control_net().set_cond_hint(HINTS[:1], 0.4, percents)
        last = control_net().set_cond_hint(hints, strength, percents).set_previous_controlnet(first)
    return [[SOURCE[0][0], {"control": last, "control_apply_to_uncond": False}]]


@pytest.fixture(scope="module")
def plain() -> Tune:
    return run(patched(EI2, lively_model()), SHORT)


@torch.inference_mode()
def predicted_by_the_host(x: Tensor, sigma: float, positive: list) -> Tensor:
    """Return what the host's sampler predicts at a state and noise level."""
    found, start = [], torch.zeros(len(x), 4, HEIGHT, WIDTH)

    def sampler(model, noise, sigmas, extra_args=None, **_):
        found.append(model(x, torch.full((len(x),), sigma), **extra_args))
        return noise

    comfy.sample.sample_custom(
        patched(TUNE_A_VIDEO_PRESET, lively_model()), start, 1.0, comfy.samplers.KSAMPLER(sampler),
        torch.tensor([sigma, 0.0]), positive, EMPTY, start, disable_pbar=True, seed=0,
    )  # fmt: skip
    return found[0]


@pytest.mark.parametrize("frames", [0, 2])
def test_the_prediction_is_that_of_the_hosts_sampler(frames: int, monkeypatch) -> None:
    calls, denoise = [], training.Tuning.denoise

    def noted(self, x, sigma, taken):
        calls.append((x, sigma.item(), taken, denoise(self, x, sigma, taken)))
        return calls[-1][-1]

    monkeypatch.setattr(training.Tuning, "denoise", noted)
    settings = SHORT.changed(steps=1, frames_per_step=frames, seed=5)
    run(patched(TUNE_A_VIDEO_PRESET, lively_model()), settings, positive=steered())
    x, sigma, taken, predicted = calls[0]
    assert len(x) == (frames or FRAMES) and (taken.start > 0) == bool(frames)
    expected = predicted_by_the_host(x, sigma, steered(HINTS[taken]))
    assert distance(predicted, expected) < 1e-5
    assert distance(predicted_by_the_host(x, sigma, SOURCE), expected) > 1e-2
    if frames:
        assert distance(predicted_by_the_host(x, sigma, steered(HINTS[:frames])), expected) > 1e-4


def test_a_steered_tune_is_another_and_nothing_else_changes(plain: Tune, monkeypatch) -> None:
    copies, base, positive = watch_copies(monkeypatch), lively_model(), steered()
    control = positive[0][1]["control"]
    before = [{key: value.clone() for key, value in module.state_dict().items()}
              for module in (base.model, control.control_model)]  # fmt: skip
    tune = run(patched(EI2, base), SHORT, positive=positive)
    assert tune.tensors.keys() == plain.tensors.keys()
    assert any(distance(tune.tensors[key], value) > 1e-2 for key, value in plain.tensors.items())
    for module, kept in zip((base.model, control.control_model), before, strict=True):
        assert_same(module.state_dict(), kept)
        assert all(weight.grad is None for weight in module.parameters())
    assert_gone(copies)
    assert control.cond_hint is None and control.cond_hint_original is HINTS and control.model_sampling_current is None
    noted = [(of["kind"], of["strength"], of["percents"]) for of in tune.info["control"]]
    assert noted == [("ControlNet", 0.7, [0.0, 1.0]), ("ControlNet", 0.4, [0.0, 1.0])] and plain.info["control"] == []
    checkpointed = run(patched(EI2, base), SHORT.changed(gradient_checkpointing=True), positive=positive)
    assert all(distance(checkpointed.tensors[key], value) < 1e-3 for key, value in tune.tensors.items())


def test_outside_of_its_percents_a_controlnet_does_not_act(plain: Tune) -> None:
    tune = run(patched(EI2, lively_model()), SHORT, positive=steered(percents=(1.0, 1.0)))
    assert_same(tune.tensors, plain.tensors)


def test_an_interrupt_leaves_no_controlnet_loaded(shown, monkeypatch) -> None:
    interrupt_after(2, monkeypatch)
    positive, preview = steered(), PreviewSettings(steered(), EMPTY, every=1, steps=2)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(patched(EI2, lively_model()), SETTINGS, positive=positive, preview=preview)
    assert shown[-1][-1] is not None, "a preview was drawn"
    assert not comfy.model_management.current_loaded_models
    assert all(of[0][1]["control"].timestep_range is None for of in (positive, preview.positive))


def test_hints_for_other_frames_and_other_packs_controlnets_are_refused() -> None:
    with pytest.raises(ValueError, match="ControlNet has 3 hints and the clip 5 frames"):
        run(patched(EI2), SHORT, positive=steered(HINTS[:3]))
    positive = steered()
    positive[0][1]["control"].sub_idxs = None
    with pytest.raises(ValueError, match="ControlNet of Advanced-ControlNet"):
        run(patched(EI2), SHORT, positive=positive)
    assert not comfy.model_management.current_loaded_models
