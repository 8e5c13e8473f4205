"""Time and memory of a tuning step, ours and Tune-A-Video's."""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any
from unittest import mock

import torch
from comfy.model_management import unload_all_models
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..modules.clip_model import chunks
from ..modules.clip_model.attention import Attend, scaled_dot_product
from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.host.settings import KEY
from ..modules.clip_model.methods import EI2, TUNE_A_VIDEO_PRESET, method
from ..modules.tuning.host.private_copy import private_copy, reproducible
from ..modules.tuning.host.training import Tuning
from ..modules.tuning.host.tune_inputs import TuneInputs
from ..modules.tuning.losses.smoothing import Smoothing
from ..modules.tuning.settings import OptimizerName, Precision, TuneSettings
from .baselines import naive_temporal, norms_in_float32, softmax_attention
from .document import judge, write_section
from .memory_count import GIB, measured_peak
from .performance import Row, Setting, complete_rows, read_setting
from .table import write_table
from .timing import Times, balanced_order, ratios, time_calls, write_milliseconds, write_spread
from .unets import SD15, make_latent, make_model, make_prompt

ENDLESS = 10**6  # steps of a tuning, so that its state is noted at the first alone
UNBOUNDED = 2**60  # bytes
FULL_SIZE, FULL_FRAMES = 64, 8


@dataclass(frozen=True)
class Way:
    """A way to tune.

    Attributes:
        preset: the clip model's.
        smoothing, chunking, checkpointing, optimizer: of the tuning.
        kernel: as Tune-A-Video's code does it: float32 weights, temporal attention with the matrix of scores, and this
            for the other attentions; None = as we do it.
    """

    preset: str = EI2
    smoothing: Smoothing = "none"
    chunking: bool = False
    checkpointing: bool = False
    optimizer: OptimizerName = "AdamW"
    kernel: Attend | None = None


OURS, SMOOTHED, OURS_CHECKPOINTED = EI2, f"{EI2} + INR", f"{EI2}, checkpointing"
OURS_CHUNKED, OURS_LEAST = f"{EI2}, chunking", f"{EI2}, chunking and checkpointing"
CODE, CODE_DEFAULTS = "Tune-A-Video's code, plain", "Tune-A-Video's code, its defaults"
WAYS = {
    OURS: Way(),
    SMOOTHED: Way(smoothing="INR"),
    OURS_CHUNKED: Way(chunking=True),
    OURS_CHECKPOINTED: Way(checkpointing=True),
    OURS_LEAST: Way(chunking=True, checkpointing=True),
    f"{TUNE_A_VIDEO_PRESET} preset": Way(TUNE_A_VIDEO_PRESET),
    CODE: Way(TUNE_A_VIDEO_PRESET, kernel=softmax_attention),
    CODE_DEFAULTS: Way(TUNE_A_VIDEO_PRESET, checkpointing=True, kernel=scaled_dot_product),
}
COMPARED: dict[tuple[str, str], tuple[float | None, float | None]] = {  # with what: targets of time and of memory
    (OURS, CODE): (0.5, 0.6),
    (OURS_CHUNKED, CODE): (0.5, 0.6),
    (OURS_CHECKPOINTED, CODE_DEFAULTS): (0.5, 0.6),
    (OURS_LEAST, CODE_DEFAULTS): (0.5, 0.6),
    (OURS_CHUNKED, OURS): (None, None),
    (OURS_LEAST, OURS_CHECKPOINTED): (None, None),
    (f"{TUNE_A_VIDEO_PRESET} preset", CODE): (None, None),
    (SMOOTHED, OURS): (1.03, 1.03),
}


@dataclass(frozen=True)
class Case(Setting):
    """Every way to tune, turn by turn."""

    steps: int


class BareTuning(Tuning):
    """A tuning of which no one asks later what it was made on."""

    def step(self) -> None:
        """Do one step."""
        self.tuner.advance()

    def identities(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


def clip_model(base: ModelPatcher, way: Way, r: int = 4) -> ModelPatcher:
    """Return the clip model of a way."""
    return attach(inflate(base), *method(way.preset, r))


def settings_of(way: Way, precision: Precision = "auto") -> TuneSettings:
    """Return the settings of a way to tune."""
    return TuneSettings(ENDLESS).changed(
        precision=precision,
        smoothing=way.smoothing,
        chunking=way.chunking,
        gradient_checkpointing=way.checkpointing,
        optimizer=way.optimizer,
    )


@contextmanager
def tuning(
    model: ModelPatcher, way: Way, frames: int, size: int, precision: Precision = "auto", family: str = SD15
) -> Iterator[BareTuning]:
    """Yield a tuning that has done its first step, on a private copy."""
    inputs = TuneInputs(make_prompt(family), make_latent(frames, size))
    with ExitStack() as during:
        if way.kernel is not None:
            during.enter_context(mock.patch.object(chunks, "CHUNK_BYTES", UNBOUNDED))
        during.enter_context(torch.inference_mode(False))
        during.enter_context(torch.enable_grad())
        copy = during.enter_context(private_copy(model))
        during.enter_context(reproducible())
        made = BareTuning(copy, model, inputs, settings_of(way, precision))
        if way.kernel is not None:
            work_as_its_code(made, way.kernel)
        made.step()
        made.tuner.last_good = (0, {})
        made.learned.before.clear()  # held on the CPU, as what follows
        if made.bank is not None:
            made.bank.origin = None
        yield made


def work_as_its_code(made: Tuning, kernel: Attend) -> None:
    """Let a tuning of the Tune-A-Video preset compute as Tune-A-Video's code does."""

    def override(_host_kernel: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any, **__: Any) -> Tensor:
        return kernel(q, k, v, heads)

    unet = made.copy.model.diffusion_model
    unet.float()
    unet.dtype, made.copy.model.manual_cast_dtype = torch.float32, None
    if made.precision != "fp32":
        norms_in_float32(unet)
    options = made.call.options
    options["optimized_attention_override"] = override
    options[KEY] = replace(options[KEY], rebuild=False)
    assert made.learned.bank is not None, "the preset has temporal modules"
    for module in made.learned.bank.bank:
        module.forward = partial(naive_temporal, module)


def tuning_peak(device: str, way: Way, frames: int, size: int, r: int = 4, family: str = SD15) -> int:
    """Return the bytes held at most in a tuning step, the copy's weights among them; without a GPU accounted."""
    unload_all_models()
    with measured_peak(device) as peak:
        model = clip_model(make_model(peak.dtype, family=family), way, r)
        before = peak.now()
        with tuning(model, way, frames, size, "auto" if device == "cuda" else "bf16", family) as made:
            peak.begin()
            made.step()
            return peak.end() - before


def run_case(case: Case) -> Row:
    """Do a turn of every way in each round, each on a copy of its own."""
    device, base = torch.device(case.device), make_model()
    models = {name: clip_model(base, way) for name, way in WAYS.items()}
    times: Times = {name: [] for name in WAYS}
    for number in range(case.rounds):
        for name in balanced_order(list(WAYS), number):
            unload_all_models()
            with tuning(models[name], WAYS[name], case.frames, case.size) as made:
                times[name].append(time_calls(made.step, case.steps, device))
    size, frames = (case.size, case.frames) if case.device == "cuda" else (FULL_SIZE, FULL_FRAMES)
    return {
        "seconds": times,
        "precision": made.precision,
        "bytes": {name: tuning_peak(case.device, way, frames, size) for name, way in WAYS.items()},
    }


def measure_tune(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = read_setting(options, cpu_size=16, cpu_frames=4)
    case = Case(**asdict(setting), steps=5 if setting.device == "cuda" else 1)
    rows = complete_rows("tune", options, [case], run_case)
    write_section(options.document, "tune", make_section(setting, rows[0]))


def compare_ways(row: Row) -> Iterator[list[str]]:
    """Yield the lines of one way against another."""
    for (name, reference), (of_time, of_memory) in COMPARED.items():
        if {name, reference} <= row["bytes"].keys():
            seconds = ratios(row["seconds"], name, reference)
            memory = row["bytes"][name] / row["bytes"][reference]
            times = [write_spread(seconds), *judge(median(seconds), of_time)]
            yield [name, reference, *times, f"{memory:.3g}", *judge(memory, of_memory)]


def make_section(setting: Setting, row: Row) -> str:
    """Return the section's text."""
    accounted = f"accounted at {FULL_FRAMES} frames of {FULL_SIZE} × {FULL_SIZE} latents in bfloat16"
    memory = "measured" if setting.device == "cuda" else accounted
    ways = [
        [name, write_milliseconds(seconds), f"{row['bytes'][name] / GIB:.3g}"]
        for name, seconds in row["seconds"].items()
    ]
    headings = ["way", "against", "× time", "target", "met", "× memory", "target", "met"]
    return "\n\n".join(
        [
            f"{setting}; {row['precision']}, rounds: {setting.rounds}. An optimiser's step on the whole clip, r = 4; "
            f"memory {memory}, the UNet's weights among it.",
            write_table(["way", "ms", "GiB"], ways),
            write_table(headings, list(compare_ways(row))),
            f"- *{CODE}*: sparse-causal attention, cross-attention and temporal attention with the whole matrix of "
            "scores, the frozen weights in float32.\n"
            f"- *{CODE_DEFAULTS}*: with gradient checkpointing and xformers, for which SDPA stands in; its temporal "
            "attention keeps the matrix of scores.",
        ]
    )
