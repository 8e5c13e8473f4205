"""Memory of sampling and tuning over frames, r and resolution."""

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from unittest import mock

import torch
from comfy.model_management import unload_all_models
from comfy.model_patcher import ModelPatcher
from matplotlib.figure import Figure

from ..modules.clip_model.methods import EI2, PER_FRAME
from ..modules.tuning.host import planner
from ..modules.tuning.host.private_copy import choose_precision
from ..scripts.environment import ROOT
from ..scripts.regions import write_region
from .document import judge
from .memory_count import GIB, if_it_fits, measured_peak, write_gib
from .performance import Job, Row, Setting, measure_jobs, read_setting
from .table import write_table
from .tune import (
    CODE,
    CODE_DEFAULTS,
    OURS,
    OURS_CHECKPOINTED,
    OURS_CHUNKED,
    OURS_LEAST,
    WAYS,
    Way,
    clip_model,
    settings_of,
    tuning_peak,
)
from .unets import SD15, SDXL, guided_call, load, make_model

PUBLISHED = ROOT / "docs" / "performance.md"  # whose figures the README shows as well
SAMPLING = "sampling"
SAMPLING_PER_FRAME = "sampling, per frame"
CURVES = {
    SAMPLING: "sampling",
    OURS: "tuning",
    OURS_CHUNKED: "tuning, chunking",
    OURS_CHECKPOINTED: "tuning, checkpointing",
    OURS_LEAST: "tuning, both",
}
OURS_8_BIT = f"{OURS_LEAST}, AdamW 8-bit"
TUNED = {**WAYS, OURS_8_BIT: replace(WAYS[OURS_LEAST], optimizer="AdamW 8-bit")}
PLANNED = {**CURVES, OURS_8_BIT: "tuning, both, AdamW 8-bit"}  # what Fit Planner predicts, too
FRAMES, RS = (4, 8, 16, 24, 32, 64), (1, 2, 4, 8)
MOST_FRAMES = 128  # on a GPU
SHOWN = (8, 16, 24, 32)
LARGE_FRAMES, LARGE_SIZES = (8, 16, 24), (1.5, 2.0)  # of SDXL: 768 and 1024 pixels squared
LARGE_WAYS = (SAMPLING, OURS_LEAST, OURS_8_BIT)
SIZES = (0.5, 0.75, 1.0, 1.5)  # of the size given
USUAL_FRAMES, USUAL_R, USUAL_SIZE = 8, 4, 64
MORE_FRAMES = 24  # for r, of which little is seen with few
LIMITS = {  # GiB, at 64 squared with r = 4
    (way, frames): limit for way in (OURS_CHECKPOINTED, OURS_LEAST) for frames, limit in ((8, 8.0), (24, 12.0))
}
SHORT = (  # what, frames, part of the size given, r, family: what tells the most of Fit Planner
    (SAMPLING, 8, 1.0, 4, SD15),
    (SAMPLING, 64, 1.0, 4, SD15),
    (SAMPLING, 24, 1.0, 1, SD15),
    (OURS, 8, 1.0, 4, SD15),
    (OURS, 8, 1.5, 4, SD15),
    (OURS_CHUNKED, 24, 1.0, 8, SD15),
    (OURS_CHECKPOINTED, 8, 1.0, 4, SD15),
    (OURS_CHECKPOINTED, 24, 1.0, 4, SD15),
    (OURS_LEAST, 8, 1.0, 4, SD15),
    (OURS_LEAST, 24, 1.0, 4, SD15),
    (SAMPLING, 8, 2.0, 4, SDXL),
    (OURS_8_BIT, 8, 1.5, 4, SDXL),
)
CLOSE = 0.1  # how near Fit Planner is to be


@dataclass(frozen=True)
class Case:
    """Something done once: sampling or a way to tune."""

    device: str
    chip: str
    torch: str
    what: str
    frames: int
    size: int
    r: int
    family: str = SD15


def list_cases(setting: Setting) -> list[Case]:
    """Return the cases of all curves, each once, and those that they are held against."""
    usual, more = (min(frames, setting.frames) for frames in (USUAL_FRAMES, MORE_FRAMES))
    frames_of_curve = (*FRAMES, MOST_FRAMES) if setting.device == "cuda" else FRAMES
    shapes = [(n, setting.size, USUAL_R) for n in frames_of_curve if n <= setting.frames]
    shapes += [(more, setting.size, r) for r in RS]
    shapes += [(usual, round(part * setting.size), USUAL_R) for part in SIZES]
    wanted = [(what, *shape, SD15) for shape in shapes for what in CURVES]
    wanted += [(what, usual, setting.size, USUAL_R, SD15) for what in (SAMPLING_PER_FRAME, CODE, CODE_DEFAULTS)]
    wanted += [
        (what, frames, round(part * setting.size), USUAL_R, SDXL)
        for what in LARGE_WAYS
        for frames in (LARGE_FRAMES[:1] if what == OURS_8_BIT else LARGE_FRAMES)  # which saves the same with more
        if frames <= setting.frames
        for part in LARGE_SIZES
    ]
    return make_cases(setting, wanted)


def list_short(setting: Setting) -> list[Case]:
    """Return the few cases of SHORT, in the size and with the most frames of a setting."""
    wanted = [
        (what, min(frames, setting.frames), round(part * setting.size), r, family)
        for what, frames, part, r, family in SHORT
    ]
    return make_cases(setting, wanted)


def make_cases(setting: Setting, wanted: Iterable[tuple[str, int, int, int, str]]) -> list[Case]:
    """Return the case of each what, frames, size, r and family, once."""
    return [Case(setting.device, setting.chip, setting.torch, *one) for one in dict.fromkeys(wanted)]


def sampling_peak(case: Case) -> int:
    """Return the bytes held at most in a guided UNet call, the weights among them."""
    unload_all_models()
    with torch.no_grad(), measured_peak(case.device) as peak:
        preset = EI2 if case.what == SAMPLING else PER_FRAME
        model = clip_model(make_model(peak.dtype, family=case.family), Way(preset), case.r)
        load([model])
        call = guided_call(model, case.frames, case.size, case.family)
        peak.begin()
        call()
        return peak.end()


@lru_cache(1)
def planned_model(dtype: torch.dtype | None, r: int, family: str) -> ModelPatcher:
    """Return the clip model whose memory Fit Planner is asked for."""
    return clip_model(make_model(dtype, family=family, filled=False), Way(), r)


def planned_peak(case: Case) -> int | None:
    """Return what Fit Planner says; without a GPU less what it adds for one's libraries. None = not its case."""
    if case.what not in PLANNED:
        return None
    on_gpu, shape = case.device == "cuda", (case.frames, 4, case.size, case.size)
    model = planned_model(None if on_gpu else torch.bfloat16, case.r, case.family)
    with mock.patch.object(planner, "BESIDE", planner.BESIDE if on_gpu else 0.0):
        if case.what == SAMPLING:
            return planner.sampling_peak(model, shape)
        precision = choose_precision("auto", model, model.load_device) if on_gpu else "bf16"
        return planner.tuning_peak(model, shape, settings_of(TUNED[case.what]), precision)


def run_case(case: Case) -> Row:
    """Do it once; bytes are None where the memory of the GPU does not suffice."""
    if case.what in TUNED:
        given = TUNED[case.what], case.frames, case.size, case.r, case.family
        hold = partial(tuning_peak, case.device, *given)
    else:
        hold = partial(sampling_peak, case)
    return {"planned": planned_peak(case), "bytes": if_it_fits(hold)}


def measure_memory(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, draw the plot and write the section; in short without plot and README."""
    setting = read_setting(options, cpu_size=USUAL_SIZE, cpu_frames=FRAMES[-1], gpu_frames=MOST_FRAMES)
    cases = list_short(setting) if options.short else list_cases(setting)
    plot = None if options.short else options.document.with_name(f"{options.document.stem}_memory.png")

    def draw_and_tell(rows: Sequence[Row]) -> str:
        if plot is not None:
            save_plot(rows, setting, plot)
        return make_section(setting, rows, plot)

    (rows,) = measure_jobs("memory", options, [Job("memory", cases, run_case)], draw_and_tell)
    if options.document == PUBLISHED and not options.short:
        write_region("memory", make_brief(setting, rows))


def make_lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield the lines of the table, what belongs together one after another."""
    rows = sorted(rows, key=lambda row: (row["family"], row["size"], row["r"], row["frames"]))
    kinds = sorted({row["what"] for row in rows}, key=[SAMPLING, SAMPLING_PER_FRAME, *TUNED].index)
    for what in kinds:
        for row in (row for row in rows if row["what"] == what):
            gib = math.inf if row["bytes"] is None else row["bytes"] / GIB
            frames, *shape = clip = [row[key] for key in ("frames", "size", "r")]
            is_usual = [row["family"], *shape] == [SD15, USUAL_SIZE, USUAL_R]
            limit = LIMITS.get((what, frames)) if is_usual else None
            yield [row["family"], PLANNED.get(what, what), *map(str, clip), write_gib(row["bytes"]), *judge(gib, limit)]


def make_planner_lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield how Fit Planner's figures relate to those held, a line for each curve."""
    for what, name in PLANNED.items():
        found = [row["planned"] / row["bytes"] for row in rows if row["what"] == what and row["bytes"] is not None]
        if found:
            is_close = max(abs(ratio - 1) for ratio in found) <= CLOSE
            spread = f"{min(found):.3g} to {max(found):.3g}"
            yield [name, str(len(found)), spread, f"{1 - CLOSE:g} to {1 + CLOSE:g}", "yes" if is_close else "no"]


def curve(rows: Sequence[Row], setting: Setting, what: str, along: str) -> list[tuple[int, float]]:
    """Return the points of a curve along "frames", "r" or "size", the others at their usual values."""
    frames = min(MORE_FRAMES if along == "r" else USUAL_FRAMES, setting.frames)
    usual = {"frames": frames, "r": USUAL_R, "size": setting.size}
    chosen = [row for row in rows if (row["family"], row["what"]) == (SD15, what) and row["bytes"] is not None]
    points = {
        row[along]: row["bytes"] / GIB
        for row in chosen
        if all(row[key] == value for key, value in usual.items() if key != along)
    }
    return sorted(points.items())


def make_brief(setting: Setting, rows: Sequence[Row]) -> str:
    """Return the table that the README shows: GiB over frames at the usual size and r."""
    lines = []
    for what, name in reversed(CURVES.items()):
        points = dict(curve(rows, setting, what, "frames"))
        lines.append([name, *(f"{points[n]:.3g}" if n in points else "" for n in SHOWN)])
    how = "measured" if setting.device == "cuda" else "counted from the tensors"
    frames = [f"{n} frames" for n in SHOWN]
    return write_table([f"GiB, {8 * setting.size} × {8 * setting.size}, {EI2}, r = {USUAL_R}, {how}", *frames], lines)


def save_plot(rows: Sequence[Row], setting: Setting, path: Path) -> None:
    """Plot memory over frames, r and size."""
    figure = Figure(figsize=(11, 3.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, along in zip(panels, ("frames", "r", "size"), strict=True):
        for what, name in CURVES.items():
            points = curve(rows, setting, what, along)
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", markersize=3, label=name)
        axes.set(xlabel="size of the latent" if along == "size" else along, ylabel="GiB", ylim=(0, None))
    panels[0].legend()
    figure.savefig(path)


def make_section(setting: Setting, rows: Sequence[Row], plot: Path | None) -> str:
    """Return the section's text."""
    where = f"{setting.chip}; PyTorch {setting.torch}"
    how = f"Measured on {where}" if setting.device == "cuda" else f"Accounted in bfloat16, not measured; {where}"
    return "\n\n".join(
        [
            f"{how}. The most that is held at a time, the UNet's weights among it: in a guided UNet call, and in a "
            f"tuning step. {EI2}, unless said otherwise.",
            f"![Memory over frames, r and size]({plot.name})" if plot else "The few cases of `--short`.",
            write_table(["model", "what", "frames", "latent", "r", "GiB", "target", "met"], list(make_lines(rows))),
            "What Fit Planner says, as a part of what was held"
            + (":" if setting.device == "cuda" else "; here without what it adds for a GPU's libraries:"),
            write_table(["what", "cases", "× held", "target", "met"], list(make_planner_lines(rows))),
        ]
    )
