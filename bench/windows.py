"""Long clips in the host's context windows: whether the joints of the windows show, and memory over frames."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from unittest import mock

import torch
from comfy.context_windows import IndexListContextHandler, get_matching_context_schedule, get_matching_fuse_method
from comfy.model_management import unload_all_models
from comfy.model_patcher import ModelPatcher
from comfy.samplers import sampler_object

from ..modules.clip_model.host import windows
from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.methods import EI2, method
from ..modules.diffusion.ddim import ddim_trajectory
from ..modules.diffusion.host.run import run_sampler
from ..modules.inversion.host.invert import invert_clip
from ..modules.inversion.inversion import Inversion, InversionSettings, Relation
from ..modules.judging.scorecard import seam_score, warp_error
from ..modules.sampling.host import SampleSettings, sample_clip
from ..modules.tuning.host.learned import sdpa_override
from .document import judge
from .memory_count import MIB, extra_memory, measured_peak, without_values
from .performance import Job, Row, Setting, measure_jobs, read_setting
from .table import write_table
from .tasks import Truth, draw_task
from .unets import load, make_latent, make_model, make_prompt
from .world import SIZE, World

FRAMES, CUT, STEPS, CFG, CFG_END = 24, (8, 2), 8, 3.0, 0.5
DEMO_MEMORY, MEMORY, KINDS = "memory of the demo model", "memory", ("colour", "shape")
WHOLE, SEEING, BLIND = "no windows", "windows with the memory", "windows without it"
SEAM, CONSTANT = 1.1, 1.05
WINDOW, OVERLAP = 16, 4
LONG = {DEMO_MEMORY: (SIZE, (64, 128, 256)), MEMORY: (64, (64, 256))}  # sizes of the latent, and numbers of frames
SIGMAS = (5.0, 0.0)
KEPT, KEPT_CLIPS, KEPT_STEPS = "kept of a clip", ((SIZE, 256), (64, 256)), 20  # sizes of the latent, numbers of frames


@dataclass(frozen=True)
class Case(Setting):
    """One measurement: the seams of a kind of edit, memory of one of the models, or what is kept of a clip."""

    what: str


def in_windows(model: ModelPatcher, length: int, overlap: int) -> ModelPatcher:
    """Return a model that is shown so many frames at a time."""
    model, schedule = model.clone(), get_matching_context_schedule("standard_static")
    handler = IndexListContextHandler(
        schedule, get_matching_fuse_method("pyramid"), length, overlap, causal_window_fix=False
    )
    model.model_options["context_handler"] = handler
    return model


def seams_of(kind: str, frames: int) -> dict[str, tuple[float | None, float]]:
    """Return seam score and warp error of an edit of a drawn clip, by how the model is shown it."""
    task, world = draw_task(kind, 0, held_out=True), World()
    task = replace(task, source=replace(task.source, frames=frames), wanted=replace(task.wanted, frames=frames))
    truth, (before, after) = Truth(task), (world.prompt(words) for words in task.prompts)
    whole = attach(inflate(world.model), *method(EI2), temporal_strength=0.0)
    cut = in_windows(whole, *CUT)
    handler = cut.model_options["context_handler"]
    joints = handler.context_schedule.func(frames, handler, cut.model_options)

    def edit(model: ModelPatcher) -> tuple[float | None, float]:
        settings = InversionSettings(STEPS, 0.0, "none", denoise=1.0)  # where windows may differ the most
        given = model, before, before, world.encode(truth.source.frames), settings
        sampled = sample_clip(model, after, before, invert_clip(*given), SampleSettings(CFG, cfg_end=CFG_END))[0]
        found = world.decode(sampled).clamp(0, 1)
        return seam_score(found, truth.motion, joints), 1000 * warp_error(found, truth.motion)

    with mock.patch.object(windows, "make_memory", lambda *_: None):
        blind = edit(cut)
    return {WHOLE: edit(whole), SEEING: edit(cut), BLIND: blind}


def step_in_windows(model: ModelPatcher, frames: int, size: int, prompt: list) -> None:
    """Sample a clip by one step, in windows, with PyTorch's attention."""
    model = in_windows(model, WINDOW, OVERLAP)
    model.model_options["transformer_options"]["optimized_attention_override"] = sdpa_override
    given = sampler_object("euler"), torch.tensor(SIGMAS), CFG, prompt, prompt
    run_sampler(model, make_latent(frames, size)["samples"], *given)


def demo_peak(device: str, frames: int, size: int) -> int:
    """Return the bytes held at most by a step of the demo model, beyond the model's."""
    world = World()
    model, prompt = attach(inflate(world.model), *method(EI2)), world.prompt("")
    with torch.no_grad():
        load([model])
        return extra_memory(lambda: step_in_windows(model, frames, size, prompt), torch.device(device))


def windowed_peak(device: str, frames: int, size: int) -> int:
    """Return the bytes held at most by a step of SD1.5's UNet, beyond the model's."""
    with torch.no_grad(), measured_peak(device) as peak:
        model = attach(inflate(make_model(peak.dtype)), *method(EI2))
        load([model])
        peak.begin()
        held = peak.now()
        step_in_windows(model, frames, size, make_prompt())
        found = peak.end() - held
    unload_all_models()
    return found


def kept_of_clip(frames: int, size: int) -> Row:
    """Count the bytes of main memory that an inverted clip holds, and with its states as sampling needs them."""
    with without_values() as held:
        clip = torch.zeros(2, frames, 4, size, size)
        relation = Relation(InversionSettings(KEPT_STEPS, 0.0, "none"), torch.ones(KEPT_STEPS + 1))
        for step in range(KEPT_STEPS):
            relation(step, clip[0], clip[1])
        noises = torch.stack(relation.noises)
        del relation
        record = Inversion(torch.ones(KEPT_STEPS + 1), noises, clip[0], clip[1], InversionSettings(), "")
        kept, held.peak = held.now, held.now
        ddim_trajectory(record.source, record.noises, record.sigmas)
        return {"kept": kept, "bytes": held.peak}


def run_case(case: Case) -> Row:
    """Measure seams or memory."""
    if case.what == KEPT:
        return kept_of_clip(case.frames, case.size)
    if case.what in LONG:
        peak = demo_peak if case.what == DEMO_MEMORY else windowed_peak
        return {"bytes": peak(case.device, case.frames, case.size)}
    return {"seams": seams_of(case.what, case.frames)}


def measure_windows(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = replace(read_setting(options, SIZE, FRAMES, FRAMES), size=SIZE)
    cases = [Case(**asdict(setting), what=kind) for kind in KINDS]
    for what, (size, lengths) in LONG.items():
        cases += [Case(**{**asdict(setting), "frames": n, "size": size}, what=what) for n in lengths]
    cases += [Case(**{**asdict(setting), "frames": n, "size": size}, what=KEPT) for size, n in KEPT_CLIPS]
    measure_jobs("windows", options, [Job("windows", cases, run_case)], partial(make_section, setting))


def seam_lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield the lines of seams, over the clips that were edited."""
    seams = [row["seams"] for row in rows if "seams" in row]
    for name in (WHOLE, SEEING, BLIND) if seams else ():
        scores, errors = zip(*(of_clip[name] for of_clip in seams), strict=True)
        mean = fmean(scores)
        spread = f"{mean:.3g} ({min(scores):.3g} to {max(scores):.3g})"
        yield [name, spread, *judge(mean, SEAM if name == SEEING else None), f"{fmean(errors):.3g}"]


def memory_lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield the lines of memory over frames, each against the fewest of its model."""
    fewest: dict[str, Row] = {}
    for row in rows:
        first = fewest.setdefault(row["what"], row)
        name, latent = ("the demo model" if row["what"] == DEMO_MEMORY else "SD1.5"), 4 * 4 * row["size"] ** 2
        more, growth = row["frames"] - first["frames"], row["bytes"] / first["bytes"]
        added = f"{(row['bytes'] - first['bytes']) / more / latent:.3g}" if more else ""
        cells = [f"{name}, {8 * row['size']}²", str(row["frames"]), f"{row['bytes'] / MIB:.4g}", f"{growth:.3g}"]
        yield [*cells, *judge(growth, CONSTANT), added]


def make_section(setting: Setting, rows: Sequence[Row]) -> str:
    """Return the section's text."""
    held = [row for row in rows if row["what"] in LONG]
    kept = []
    for row in (row for row in rows if row["what"] == KEPT):
        clip = f"{8 * row['size']}²", str(row["frames"]), f"{row['kept'] / MIB:.4g}", f"{row['bytes'] / MIB:.4g}"
        kept.append([*clip, f"{row['bytes'] / row['frames'] / KEPT_STEPS / 1024:.3g}"])
    how = "measured" if setting.device == "cuda" else "accounted, not measured"
    return "\n\n".join(
        [
            f"{setting}. Seams: the demo model, untuned, with EI²'s attention and without the noise relation; edits of "
            f"{', '.join(KINDS)} of drawn clips, {STEPS} steps from the highest noise level, windows of {CUT[0]} "
            f"frames that overlap by {CUT[1]}. A seam score is the warp error at the joints of the windows over that "
            "elsewhere, along the motion that is known; mean over the clips and, in brackets, least and most.",
            write_table(["", "seam score", "target", "met", "warp error × 1000"], list(seam_lines(rows))),
            f"Memory: EI², r = 4, a guided step in windows of {WINDOW} frames that overlap by {OVERLAP}: held at most "
            f"beyond the model, {how}. *Latents a frame*: what each further frame adds, in latents of a frame; the "
            "sampler itself holds some of the whole clip.",
            write_table(
                ["", "frames", "MiB", "× fewest", "target", "met", "latents a frame"], list(memory_lines(held))
            ),
            "",
            f"Main memory, accounted: what an inversion in {KEPT_STEPS} steps leaves of a clip, the noise of each step "
            "in half precision, and with the states that Smooth Sample makes of it. It is read a step at a time and "
            "does not take the GPU's memory.",
            "",
            write_table(["clip", "frames", "inversion, MiB", "in sampling, MiB", "KiB a frame and step"], kept),
        ]
    )
