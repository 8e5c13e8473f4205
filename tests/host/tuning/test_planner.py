"""Fit Planner: what is counted without values is what a real step holds."""

import json
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from consistent_video.modules.clip_model import chunks
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.conflicts import LAYERS
from consistent_video.modules.clip_model.host.settings import KEY, clip_settings
from consistent_video.modules.clip_model.methods import EI2, FULL, PER_FRAME, method
from consistent_video.modules.tuning.accounting import Held
from consistent_video.modules.tuning.checkpoints import Layer
from consistent_video.modules.tuning.host import learned, planner
from consistent_video.modules.tuning.host import private_copy as private_copies
from consistent_video.modules.tuning.host.checkpoints import KINDS, SKIP, run_checkpointed, weigh_layers
from consistent_video.modules.tuning.host.learned import sdpa_override, training_options
from consistent_video.modules.tuning.host.planner import GIB, list_ways, plan_tuning, sampling_peak, tuning_peak
from consistent_video.modules.tuning.host.private_copy import private_copy
from consistent_video.modules.tuning.host.training import Tuning
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs
from consistent_video.modules.tuning.settings import SHARES, TuneSettings
from consistent_video.nodes.plan import FitPlanner
from consistent_video.nodes.tune import OneShotTune

from ..small import (
    FAMILIES,
    SDXL_UNET,
    SOURCE,
    UNET,
    Small,
    clip_latent,
    lively_weights,
    make_model,
    random_weights,
    sample,
)

SETTINGS = TuneSettings().changed(steps=2, learning_rate=1e-3, precision="fp32")
SHAPE = tuple(clip_latent()["samples"].shape)
LONGER = (8, *SHAPE[1:])
NO_MIDDLE = {"transformer_depth_middle": -1}  # leaves a transformer block on the way down and one on the way up
SHALLOW = {**UNET, **NO_MIDDLE, "transformer_depth": [1, 0], "transformer_depth_output": [1, 0, 0, 0]}
SHALLOW_SDXL = {
    **SDXL_UNET,
    **NO_MIDDLE,
    "transformer_depth": [0, 1, 0],
    "transformer_depth_output": [0, 0, 1, 0, 0, 0],
}


def sdxl_model():
    unet = make_model(FAMILIES["SDXL"][0], SHALLOW_SDXL, lively_weights, torch.float32)
    return attach(inflate(unet), *method(EI2, 2))


def clip_model(name: str = EI2, r: int = 2, config: dict[str, Any] = SHALLOW):
    unet = make_model(Small, config, partial(random_weights, std=0.1), torch.float32)
    return attach(inflate(unet), *method(name, r))


@pytest.fixture(scope="module")
def model():
    return clip_model()


@cache
def count(r: int, *how: Any) -> int:
    """What a step of the model with an r is counted to take by shape, settings and precision, each counted once."""
    return tuning_peak(clip_model(r=r), *how)


def simple_peak(_model, shape: tuple[int, ...], settings: TuneSettings, _precision: str) -> int:
    """Stand in for counting, which takes its time: bytes that each rung lowers."""
    memory = settings.memory
    checkpointed = memory.checkpointing_share if memory.gradient_checkpointing else 0
    return round(GIB * shape[0] * (3 - memory.chunking - checkpointed))


@pytest.fixture
def exact(monkeypatch) -> None:
    monkeypatch.setattr(planner, "BESIDE", 0.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the CPU's tensors")
@pytest.mark.parametrize(
    ("name", "chunking", "checkpointing", "precision", "losses"),
    [
        (EI2, False, False, "fp32", {}),
        (EI2, True, False, "fp32", {}),
        (EI2, False, True, "fp32", {"consistency_weight": 1.0, "consistency_part": "all"}),
        (EI2, True, True, "bf16", {}),
        (FULL, False, False, "bf16", {}),
        (PER_FRAME, True, False, "bf16", {}),
        (PER_FRAME, False, True, "fp32", {"smoothing": "INR", "checkpointing_share": 0.5}),
    ],
)
def test_what_is_counted_is_what_a_step_holds(
    name: str, chunking: bool, checkpointing: bool, precision: str, losses: dict, exact, monkeypatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2**18)
    model = clip_model(name)
    settings = SETTINGS.changed(chunking=chunking, gradient_checkpointing=checkpointing, precision=precision, **losses)
    assert tuning_peak(model, SHAPE, settings, precision) == pytest.approx(held_peak(model, settings), rel=0.1)


def held_peak(model, settings: TuneSettings) -> int:
    """Return the bytes that real steps hold at most."""
    comfy.model_management.unload_all_models()
    with torch.inference_mode(False), torch.enable_grad(), private_copy(model) as copy:
        tuning = Tuning(copy, model, TuneInputs(SOURCE, clip_latent()), settings)
        weights = [*copy.model.diffusion_model.parameters(), *tuning.learned.parameters()]
        with Held(weights) as held:
            for _ in tuning.tuner.steps():
                pass
    return held.peak


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the CPU's tensors")
@pytest.mark.parametrize(
    ("module", "name", "instead"),
    [
        (private_copies, "forget_inputs", lambda unet: None),
        (learned, "leave_apart", lambda x, skip, options: (x, skip)),
    ],
)
def test_less_is_held_where_a_frozen_layer_needs_nothing(module, name: str, instead, monkeypatch) -> None:
    least = SETTINGS.changed(chunking=True, gradient_checkpointing=True)
    peak = held_peak(clip_model(), least)
    monkeypatch.setattr(module, name, instead)
    assert peak < held_peak(clip_model(), least)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the CPU's tensors")
def test_more_checkpointing_holds_less() -> None:
    unet = make_model(Small, {**UNET, "transformer_depth": [1, 1]}, partial(random_weights, std=0.1), torch.float32)
    model, way = attach(inflate(unet), *method(EI2, 2)), SETTINGS.changed(steps=1, chunking=True)
    ways = way, *(way.changed(gradient_checkpointing=True, checkpointing_share=share) for share in (0.5, 1.0))
    peaks = [held_peak(model, given) for given in ways]
    assert peaks[2] < 0.95 * peaks[1] and peaks[1] < 0.95 * peaks[0], peaks


class Flops(TorchDispatchMode):
    """Counts multiplications and additions."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made, kind = func(*args, **(kwargs or {})), func.overloadpacket
        if kind in flop_registry:
            self.flops += flop_registry[kind](*args, **(kwargs or {}), out_val=made)
        elif kind is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.flops += 4 * args[0].numel() * args[1].shape[-2]
        return made


@pytest.mark.parametrize(
    ("name", "chunking", "family"),
    [(EI2, False, "SD1.x"), (EI2, True, "SD1.x"), (PER_FRAME, False, "SD1.x"), (EI2, True, "SDXL")],
)
def test_layers_are_weighed_as_what_they_compute_is_counted(
    name: str, chunking: bool, family: str, monkeypatch
) -> None:
    model = clip_model(name) if family == "SD1.x" else sdxl_model()
    shape, counted, found = (6, 4, 36, 28), list[Held](), list[Layer]()

    class Watched(Held):
        def __init__(self, *args):
            super().__init__(*args)
            counted.append(self)

    def note(layer, x, emb, context, options, *_):
        before, _joined = counted[0].now, options.get(SKIP)  # which would be freed meanwhile
        with Flops() as work:
            out = run_checkpointed((), layer, x, emb, context, options)
        found.append(Layer((counted[0].now - before - out.nbytes) / out.itemsize, work.flops))
        return out

    def watched_options(*args):
        options = training_options(*args)
        options["patches"][LAYERS].insert(0, (KINDS, note))
        return options

    monkeypatch.setattr(planner, "Held", Watched)
    monkeypatch.setattr(planner, "training_options", watched_options)
    tuning_peak(model, shape, SETTINGS.changed(chunking=chunking), "fp32")
    weighed = weigh_layers(model.model.diffusion_model, shape, clip_settings(model), chunking)
    first = len(found) - len(weighed)
    assert first > 0 and not any(layer.held for layer in found[:first]), "nothing is learned before the first"
    for layer, expected in zip(weighed.values(), found[first:], strict=True):
        assert layer.flops == pytest.approx(expected.flops, rel=0.1)
        assert layer.held == pytest.approx(expected.held, rel=0.15)


def test_sampling_is_counted(model, exact) -> None:
    clip = clip_latent()
    as_on_gpu = model.clone()  # the host's kernel for CPUs takes more
    as_on_gpu.model_options["transformer_options"]["optimized_attention_override"] = sdpa_override
    sample(as_on_gpu, clip, 3.0)
    with Held(model.model.diffusion_model.parameters()) as held:
        sample(as_on_gpu, clip, 3.0)
    assert sampling_peak(model, SHAPE) == pytest.approx(held.peak, rel=0.1)


def test_more_frames_take_more_and_checkpointing_less() -> None:
    def peak(shape: tuple[int, ...] = LONGER, **changes) -> int:
        return count(2, shape, SETTINGS.changed(**changes), "fp32")

    assert peak(SHAPE) < peak()
    assert peak(gradient_checkpointing=True) < 0.65 * peak()
    assert peak(chunking=True) < 0.9 * peak()
    assert peak(optimizer="AdamW 8-bit") < peak()
    assert peak(gradient_checkpointing=True) < peak(
        gradient_checkpointing=True, consistency_weight=1.0, consistency_part="all"
    )


def test_the_first_way_that_fits_is_chosen(model, monkeypatch) -> None:
    monkeypatch.setattr(planner, "tuning_peak", lambda given, *how: simple_peak(given, *how) + (given is not model))
    clip = clip_latent(LONGER[0])
    ways = [SETTINGS, SETTINGS.changed(chunking=True)]
    ways += [ways[1].changed(gradient_checkpointing=True, checkpointing_share=share) for share in SHARES]
    ways += [ways[-1].changed(frames_per_step=frames) for frames in (4, 2)]
    peaks = [simple_peak(model, (way.memory.frames_per_step or LONGER[0], *SHAPE[1:]), way, "fp32") for way in ways]
    assert peaks == sorted(peaks, reverse=True)
    for way, peak in zip(ways, peaks, strict=True):
        unchanged, chosen, tried = plan_tuning(model, clip, SETTINGS, peak)
        assert unchanged is model and chosen == way
        assert [plan.peak for plan in tried] == [*peaks[:6], *2 * [peaks[5] + 1], *peaks[6:]][: len(tried)]
    with pytest.raises(ValueError, match="GiB are needed and budget_gib is .* Tuning 2 frames"):
        plan_tuning(model, clip, SETTINGS, peaks[-1] - 1)


@pytest.mark.parametrize(("r", "coarser"), [(1, []), (2, [4, 8]), (3, [4, 8]), (4, [8]), (8, []), (None, [])])
def test_a_larger_r_is_tried_before_frames_are_given_up(r: int | None, coarser: list[int]) -> None:
    less = SETTINGS.changed(chunking=True, gradient_checkpointing=True)
    half, tried = less.changed(frames_per_step=3), list(list_ways(SETTINGS, r, 7))
    first = [(SETTINGS, r), (SETTINGS.changed(chunking=True), r)]
    first += [(less.changed(checkpointing_share=share), r) for share in SHARES]
    assert tried == [*first, *((less, other) for other in coarser), (half, r)]
    assert list(list_ways(half, r, 7)) == [(half, r), *((half, other) for other in coarser)], "2 frames are too few"


def test_a_larger_r_is_chosen_where_it_suffices(model, monkeypatch) -> None:
    monkeypatch.setattr(planner, "tuning_peak", lambda given, *_: 100 - clip_settings(given).spatial.r)
    found, settings, tried = plan_tuning(model, clip_latent(8), SETTINGS, 96)
    assert clip_settings(found).spatial == replace(clip_settings(model).spatial, r=4)
    assert clip_settings(model).spatial.r == 2 and settings.memory.frames_per_step == 0
    assert [plan.r for plan in tried] == [2, 2, 2, 2, 2, 2, 4]
    with torch.no_grad():
        torch.testing.assert_close(
            sample(found, clip_latent(), 3.0), sample(attach(model, *method(EI2, 4)), clip_latent(), 3.0)
        )


def test_r_stays_where_a_tune_was_made_with_it(model, monkeypatch) -> None:
    monkeypatch.setattr(planner, "tuning_peak", lambda given, *_: 100 - clip_settings(given).spatial.r)
    tuned = model.clone()
    tuned.model_options["transformer_options"][KEY] = replace(clip_settings(model), tunes=("digest",))
    with pytest.raises(ValueError, match="budget_gib"):
        plan_tuning(tuned, clip_latent(8), SETTINGS, 96)


def test_more_is_put_side_by_side_with_a_smaller_r() -> None:
    """Of layers before the last one, which is never computed again."""
    shape, least = (14, *SHAPE[1:]), SETTINGS.changed(chunking=True, gradient_checkpointing=True)
    three = {**SHALLOW, "transformer_depth_output": [1, 1, 0, 0]}
    more, less = (tuning_peak(clip_model(r=r, config=three), shape, least, "fp32") for r in (2, 8))
    assert more > 1.05 * less


def test_the_node_gives_model_options_and_a_table(monkeypatch) -> None:
    monkeypatch.setattr(planner, "tuning_peak", simple_peak)
    with torch.inference_mode():  # as the host executes nodes
        model = clip_model()
        everything = FitPlanner.execute(model, clip_latent(LONGER[0]), 30.0, SETTINGS).args
    assert everything[0] == SETTINGS and "| chosen |" in everything[1] and everything[3] is model
    less = SETTINGS.changed(chunking=True, gradient_checkpointing=True)
    peak = simple_peak(model, LONGER, less, "fp32")
    planned, report, data, _ = FitPlanner.execute(model, clip_latent(LONGER[0]), 1.001 * peak / GIB, SETTINGS).args
    assert planned == less
    assert report.count("too much |") == 5 and report.count("chosen") == 1 and "| on for 50% |" in report
    told = json.loads(data)["tuning"]
    assert [(way["chunking"], way["gradient_checkpointing"], way["r"]) for way in told] == [
        (False, False, 2), (True, False, 2), *4 * [(True, True, 2)]
    ]  # fmt: skip
    assert [way["checkpointing_share"] for way in told[2:]] == [*SHARES] and told[-1]["gib"] == round(peak / GIB, 2)


def test_what_is_planned_with_a_loss_can_be_tuned_with_it(model, monkeypatch) -> None:
    """SmoothVideo's loss compares three frames; of a clip of four, half would be too few."""
    monkeypatch.setattr(OneShotTune, "hidden", SimpleNamespace(unique_id="1"))
    monkeypatch.setattr(planner, "tuning_peak", lambda _model, shape, *_: shape[0] * GIB)
    least, budget = SETTINGS.changed(chunking=True, gradient_checkpointing=True), 3.0
    assert FitPlanner.execute(model, clip_latent(4), budget, SETTINGS).args[0].memory.frames_per_step == 2
    with pytest.raises(ValueError, match="GiB are needed"):
        FitPlanner.execute(model, clip_latent(4), budget, SETTINGS, smoothing="SmoothVideo")
    with torch.inference_mode():
        planned, *_, given = FitPlanner.execute(model, clip_latent(6), budget, SETTINGS, smoothing="SmoothVideo").args
        assert planned == least.changed(frames_per_step=3)
        chosen = {"snapshots": "", "smoothing": "SmoothVideo", "options": planned}
        tune = OneShotTune.execute(given, SOURCE, clip_latent(6), 2, learning_rate=1e-3, seed=0, **chosen).args[1]
    assert len(tune.info["smoothing_loss"]) == 2 and tune.info["frames_per_step"] == 3
    assert tune.info["smoothing_weight"] == 0.2, "its paper's, as a number"


def test_other_families_are_counted() -> None:
    model = sdxl_model()
    assert tuning_peak(model, SHAPE, SETTINGS, "fp32") > sampling_peak(model, SHAPE) > 0


def test_the_model_and_the_random_numbers_stay(model) -> None:
    before, drawn = {key: value.clone() for key, value in model.model.state_dict().items()}, torch.get_rng_state()
    plan_tuning(model, clip_latent(), SETTINGS, 10 * GIB)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[key]) for key, value in model.model.state_dict().items())
