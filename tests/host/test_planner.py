"""Fit Planner: what is counted without values is what a real step holds."""

import json
from dataclasses import replace
from functools import cache, partial

import comfy.model_management
import pytest
import torch

from consistent_video.modules.accounting import Held
from consistent_video.modules.host import planner
from consistent_video.modules.host.learned import sdpa_override
from consistent_video.modules.host.patch import attach, inflate
from consistent_video.modules.host.planner import GIB, plan_tuning, sampling_peak, tuning_peak
from consistent_video.modules.host.private_copy import private_copy
from consistent_video.modules.host.session import Tuning
from consistent_video.modules.host.tune_inputs import TuneInputs
from consistent_video.modules.presets import EI2, FULL, PER_FRAME, method
from consistent_video.modules.tuning import TuneSettings
from consistent_video.nodes.plan import FitPlanner

from .small import FRAMES, SOURCE, clip_latent, family_model, random_model, sample

SETTINGS = TuneSettings(steps=2, learning_rate=1e-3, precision="fp32")
SHAPE = tuple(clip_latent()["samples"].shape)


@pytest.fixture(scope="module")
def model():
    return attach(inflate(random_model()), *method(EI2, 2))


@pytest.fixture
def exact(monkeypatch) -> None:
    monkeypatch.setattr(planner, "BESIDE", 0.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the CPU's tensors")
@pytest.mark.parametrize("name", [EI2, FULL, PER_FRAME])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_counted_is_what_a_step_holds(
    name: str, checkpointing: bool, precision: str, exact, monkeypatch
) -> None:
    monkeypatch.setattr(planner, "norms_in_float32", lambda unet: None)  # which a CPU does not do
    model = attach(inflate(random_model()), *method(name, 2))
    settings = replace(SETTINGS, gradient_checkpointing=checkpointing, precision=precision)
    comfy.model_management.unload_all_models()
    with torch.inference_mode(False), torch.enable_grad(), private_copy(model) as copy:
        tuning = Tuning(copy, model, TuneInputs(SOURCE, clip_latent()), settings)
        weights = [*copy.model.diffusion_model.parameters(), *tuning.learned.parameters()]
        with Held(weights) as held:
            for _ in tuning.tuner.steps():
                pass
    found = tuning_peak(model, SHAPE, settings, precision)
    assert found == pytest.approx(held.peak, rel=0.1)


def test_sampling_is_counted(model, exact) -> None:
    clip = clip_latent()
    as_on_gpu = model.clone()  # the host's kernel for CPUs takes more
    as_on_gpu.model_options["transformer_options"]["optimized_attention_override"] = sdpa_override
    sample(as_on_gpu, clip, 3.0)
    with Held(model.model.diffusion_model.parameters()) as held:
        sample(as_on_gpu, clip, 3.0)
    assert sampling_peak(model, SHAPE) == pytest.approx(held.peak, rel=0.1)


def test_more_frames_take_more_and_checkpointing_less(model) -> None:
    def peak(frames: int = FRAMES, **changes) -> int:
        return tuning_peak(model, (frames, *SHAPE[1:]), replace(SETTINGS, **changes), "fp32")

    assert peak(2) < peak() < peak(2 * FRAMES)
    assert peak(gradient_checkpointing=True) < 0.6 * peak()
    assert peak(optimizer="AdamW 8-bit") < peak()


def test_the_first_way_that_fits_is_chosen(model, monkeypatch) -> None:
    count = cache(partial(tuning_peak, model))
    monkeypatch.setattr(planner, "tuning_peak", lambda _, *how: count(*how))
    clip = clip_latent(8)
    ways = [replace(SETTINGS), replace(SETTINGS, gradient_checkpointing=True)]
    ways += [replace(ways[1], frames_per_step=frames) for frames in (4, 2)]
    peaks = [count((way.frames_per_step or 8, *SHAPE[1:]), way, "fp32") for way in ways]
    assert peaks == sorted(peaks, reverse=True)
    for way, peak in zip(ways, peaks, strict=True):
        chosen, tried = plan_tuning(model, clip, SETTINGS, peak)
        assert chosen == way and [plan.peak for plan in tried] == peaks[: len(tried)]
    with pytest.raises(ValueError, match="GiB are needed and budget_gib is .* Tuning 2 frames"):
        plan_tuning(model, clip, SETTINGS, peaks[-1] - 1)


def test_the_node_gives_options_and_a_table(model) -> None:
    with torch.inference_mode():  # as the host executes nodes
        model = attach(inflate(random_model()), *method(EI2, 2))
        everything = FitPlanner.execute(model, clip_latent(), 0.0, SETTINGS).args
    assert everything[0] == SETTINGS and "| chosen |" in everything[1]
    peak = tuning_peak(model, SHAPE, replace(SETTINGS, gradient_checkpointing=True), "fp32")
    planned, report, data = FitPlanner.execute(model, clip_latent(), 1.001 * peak / GIB, SETTINGS).args
    assert planned.gradient_checkpointing and planned.frames_per_step == 0
    assert report.count("too much |") == 1 and report.count("chosen") == 1
    told = json.loads(data)
    assert [way["gradient_checkpointing"] for way in told["tuning"]] == [False, True]
    assert told["tuning"][1]["gib"] == round(peak / GIB, 2)


@pytest.mark.parametrize("family", ["SD2.x", "SDXL"])
def test_other_families_are_counted(family: str) -> None:
    model = attach(inflate(family_model(family)), *method(EI2, 2))
    assert tuning_peak(model, SHAPE, SETTINGS, "fp32") > sampling_peak(model, SHAPE) > 0


def test_the_model_and_the_random_numbers_stay(model) -> None:
    before, drawn = {key: value.clone() for key, value in model.model.state_dict().items()}, torch.get_rng_state()
    plan_tuning(model, clip_latent(), SETTINGS, 10 * GIB)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[key]) for key, value in model.model.state_dict().items())
