"""Time and memory of a tuning step, ours and Tune-A-Video's."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from statistics import median
from typing import Any
from unittest import mock

import torch
from comfy.model_management import unload_all_models
from comfy.model_patcher import ModelPatcher

from ..modules.clip_model import chunks
from ..modules.clip_model.attention import Attend, scaled_dot_product
from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.methods import EI2, TUNE_A_VIDEO_PRESET, method
from ..modules.tuning.host.private_copy import private_copy, reproducible
from ..modules.tuning.host.training import Tuning
from ..modules.tuning.host.tune_inputs import TuneInputs
from ..modules.tuning.losses.smoothing import Smoothing
from ..modules.tuning.settings import OptimizerName, Precision, TuneSettings
from .baselines import softmax_attention
from .document import judge
from .memory_count import OUT_OF_MEMORY, if_it_fits, measured_peak, write_gib
from .performance import Job, Row, Setting, measure_jobs, read_setting
from .previews import PreviewCase, tell_previews, time_previews
from .step_parts import AGAIN, PARTS, marking_what_is_computed_again, time_parts
from .table import write_table
from .timing import (
    Times,
    Turns,
    balanced_order,
    in_common,
    ratios,
    read_turns,
    time_calls,
    write_milliseconds,
    write_spread,
)
from .tune_a_video import work_as_its_code
from .unets import SD15, make_latent, make_model, make_prompt

ENDLESS = 10**6  # steps of a tuning, so that its state is noted at the first alone
UNBOUNDED = 2**60  # bytes
FULL_SIZE, FULL_FRAMES = 64, 8


@dataclass(frozen=True)
class Way:
    """A way to tune.

    Attributes:
        preset: the clip model's.
        smoothing, chunking, optimizer: of the tuning.
        checkpointing: share of checkpointing, 0 = off.
        kernel: as Tune-A-Video's code does it: float32 weights, temporal attention with the matrix of scores, and this
            for the other attentions; None = as we do it.
    """

    preset: str = EI2
    smoothing: Smoothing = "none"
    chunking: bool = False
    checkpointing: float = 0.0
    optimizer: OptimizerName = "AdamW"
    kernel: Attend | None = None


OURS, SMOOTHED, OURS_CHECKPOINTED = EI2, f"{EI2} + INR", f"{EI2}, checkpointing"
OURS_CHUNKED, OURS_LEAST = f"{EI2}, chunking", f"{EI2}, chunking and checkpointing"
OURS_HALF = f"{EI2}, chunking and half the checkpointing"
CODE, CODE_DEFAULTS = "Tune-A-Video's code, plain", "Tune-A-Video's code, its defaults"
WAYS = {
    OURS: Way(),
    SMOOTHED: Way(smoothing="INR"),
    OURS_CHUNKED: Way(chunking=True),
    OURS_HALF: Way(chunking=True, checkpointing=0.5),
    OURS_CHECKPOINTED: Way(checkpointing=1.0),
    OURS_LEAST: Way(chunking=True, checkpointing=1.0),
    f"{TUNE_A_VIDEO_PRESET} preset": Way(TUNE_A_VIDEO_PRESET),
    CODE: Way(TUNE_A_VIDEO_PRESET, kernel=softmax_attention),
    CODE_DEFAULTS: Way(TUNE_A_VIDEO_PRESET, checkpointing=1.0, kernel=scaled_dot_product),
}
PROFILED = (OURS, OURS_LEAST, f"{TUNE_A_VIDEO_PRESET} preset")
LARGER: dict[str, Any] = {"size": 32, "frames": 8, "rounds": 2}  # measured on a CPU as well, unless a size is given
COMPARED: dict[tuple[str, str], tuple[float | None, float | None]] = {  # with what: targets of time and of memory
    (OURS, CODE): (1.0, 0.6),
    (OURS_CHUNKED, CODE): (1.0, 0.6),
    (OURS_HALF, CODE_DEFAULTS): (1.05, None),
    (OURS_CHECKPOINTED, CODE_DEFAULTS): (1.05, 0.6),
    (OURS_LEAST, CODE_DEFAULTS): (1.05, 0.6),
    (OURS_CHUNKED, OURS): (None, None),
    (OURS_LEAST, OURS_CHECKPOINTED): (None, None),
    (f"{TUNE_A_VIDEO_PRESET} preset", CODE): (None, None),
    (SMOOTHED, OURS): (1.03, 1.03),
}


@dataclass(frozen=True)
class Turn(Setting):
    """The turn of a way in a round."""

    way: str
    round_number: int
    steps: int


@dataclass(frozen=True)
class PeakCase:
    """What a way holds at most."""

    device: str
    chip: str
    torch: str
    size: int
    frames: int
    way: str


@dataclass(frozen=True)
class PartsCase(Setting):
    """Where the time of a way's step goes."""

    way: str


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
        gradient_checkpointing=way.checkpointing > 0,
        checkpointing_share=way.checkpointing or 1.0,
        optimizer=way.optimizer,
    )


@contextmanager
def tuning(
    model: ModelPatcher, way: Way, frames: int, size: int, precision: Precision = "auto", family: str = SD15
) -> Iterator[BareTuning]:
    """Yield a tuning that has done its first step, on a private copy; of what it would save nothing is left."""
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
        made.tuner.last_good = (0, {})  # with a GPU in main memory, as what follows
        made.learned.start.clear()
        made.learned.before.clear()
        if made.bank is not None:
            made.bank.origin = None
        yield made


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


def time_turn(model_of: Callable[[str], ModelPatcher], turn: Turn) -> Row:
    """Do a turn on a copy of its own; seconds are None where the memory of the GPU does not suffice."""
    unload_all_models()

    def run() -> Row:
        with tuning(model_of(turn.way), WAYS[turn.way], turn.frames, turn.size) as made:
            seconds = time_calls(made.step, turn.steps, torch.device(turn.device))
            return {"seconds": seconds, "precision": made.precision}

    return if_it_fits(run) or {"seconds": None}


def run_peak(case: PeakCase) -> Row:
    """Tell what a way holds; bytes are None where the memory of the GPU does not suffice."""
    return {"bytes": if_it_fits(partial(tuning_peak, case.device, WAYS[case.way], case.frames, case.size))}


def profile_case(case: PartsCase) -> Row:
    """Tell where the time of a step goes; the two before it are not profiled."""
    unload_all_models()

    def run() -> dict[str, float]:
        model = clip_model(make_model(), WAYS[case.way])
        with marking_what_is_computed_again(), tuning(model, WAYS[case.way], case.frames, case.size) as made:
            made.step()
            return time_parts(made.step, torch.device(case.device))

    return {"parts": if_it_fits(run)}


def run_previews(case: PreviewCase) -> Row:
    """Time steps of a tuning and previews of its edit; seconds are None where the memory does not suffice."""
    unload_all_models()

    def run() -> Times:
        with tuning(clip_model(make_model(), WAYS[OURS]), WAYS[OURS], case.frames, case.size) as made:
            return time_previews(made, case)

    return {"seconds": if_it_fits(run)}


def measure_tune(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    settings = [read_setting(options, cpu_size=16, cpu_frames=4)]
    on_gpu = settings[0].device == "cuda"
    if not (on_gpu or options.size or options.frames or options.rounds):
        settings.append(replace(settings[0], **LARGER))
    where = settings[0].device, settings[0].chip, settings[0].torch
    shape = (settings[0].size, settings[0].frames) if on_gpu else (FULL_SIZE, FULL_FRAMES)
    turns = [
        Turn(**asdict(setting), way=name, round_number=number, steps=5 if on_gpu else 1)
        for setting in settings
        for number in range(setting.rounds)
        for name in balanced_order(list(WAYS), number)
    ]
    base = cache(make_model)
    model_of = cache(lambda name: clip_model(base(), WAYS[name]))
    jobs = [
        Job("tune-peaks", [PeakCase(*where, *shape, name) for name in WAYS], run_peak),
        Job("tune", turns, partial(time_turn, model_of)),
        Job("tune-previews", [PreviewCase(**asdict(settings[0]))], run_previews),
        Job(
            "tune-parts", [PartsCase(**asdict(settings[-1]), way=way) for way in PROFILED if way in WAYS], profile_case
        ),
    ]
    measure_jobs("tune", options, jobs, partial(make_section, settings))


def way_lines(rows: Sequence[Row], held: Mapping[str, int | None]) -> Iterator[list[str]]:
    """Yield the lines of each way, as far as it is measured."""
    turns, tried = read_turns(rows, "way"), {row["way"] for row in rows}
    for name in (name for name in WAYS if name in tried or name in held):
        without = OUT_OF_MEMORY if name in tried else ""
        seconds = write_milliseconds(list(turns[name].values())) if name in turns else without
        yield [name, seconds, write_gib(held[name]) if name in held else ""]


def compare_ways(turns: Turns, held: Mapping[str, int | None]) -> Iterator[list[str]]:
    """Yield the lines of one way against another, as far as both are measured."""
    for (name, reference), (of_time, of_memory) in COMPARED.items():
        both, mine, its = in_common(turns, name, reference), held.get(name), held.get(reference)
        seconds, memory = ratios(both, name, reference) if both else [], mine / its if mine and its else None
        if seconds or memory:
            yield [
                name,
                reference,
                *([write_spread(seconds), *judge(median(seconds), of_time)] if seconds else [""] * 3),
                *([f"{memory:.3g}", *judge(memory, of_memory)] if memory else [""] * 3),
            ]


def make_section(
    settings: Sequence[Setting],
    peaks: Sequence[Row],
    turns: Sequence[Row],
    previews: Sequence[Row],
    parts: Sequence[Row],
) -> str:
    """Return the section's text, from the turns at each setting and the parts of a step at the last one."""
    accounted = f"accounted at {FULL_FRAMES} frames of {FULL_SIZE} × {FULL_SIZE} latents in bfloat16"
    memory = "measured" if settings[0].device == "cuda" else accounted
    headings = ["way", "against", "× time", "target", "met", "× memory", "target", "met"]
    written = [f"An optimiser's step on the whole clip, r = 4; memory {memory}, the UNet's weights among it."]
    held = {row["way"]: row["bytes"] for row in peaks}
    for setting in settings:
        rows = [row for row in turns if row.items() >= asdict(setting).items()]
        precision = next((f"{row['precision']}, " for row in rows if row["seconds"]), "")
        written += [
            f"{setting}; {precision}rounds: {setting.rounds}:",
            write_table(["way", "ms", "GiB"], list(way_lines(rows, held))),
            write_table(headings, list(compare_ways(read_turns(rows, "way"), held))),
        ]
    shares = [
        [row["way"], *([OUT_OF_MEMORY] if row["parts"] is None else [f"{row['parts'][part]:.0%}" for part in PARTS])]
        for row in parts
    ]
    return "\n\n".join(
        [
            *written,
            tell_previews(settings[0], previews),
            f"Where the time of a step goes, by PyTorch's profiler, {settings[-1].frames} frames of "
            f"{settings[-1].size} × {settings[-1].size} latents. *{AGAIN.capitalize()}*: everything that checkpointing "
            "and chunking compute a second time.",
            write_table(["way", *PARTS], shares),
            f"- *{CODE}*: sparse-causal attention, cross-attention and temporal attention with the whole matrix of "
            "scores, the frozen weights in float32.\n"
            f"- *{CODE_DEFAULTS}*: with gradient checkpointing and xformers, for which SDPA stands in; its temporal "
            "attention keeps the matrix of scores.\n"
            f"- *{OURS_HALF}*: the layers that save the most memory per operation are recomputed, until half of what "
            "checkpointing can save is saved.",
        ]
    )
