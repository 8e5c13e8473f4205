"""EI²'s Table 1: time and memory of tuning, inversion and edit at its size, compared with the published figures."""

import argparse
import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from comfy.model_management import unload_all_models
from comfy.model_patcher import ModelPatcher

from ..modules.clip_model.methods import EI2, FULL, TUNE_A_VIDEO_PRESET
from ..modules.inversion.host.invert import invert_clip
from ..modules.inversion.inversion import InversionSettings
from ..modules.sampling.host import SampleSettings, sample_clip
from .memory_count import GIB, OUT_OF_MEMORY, Peak, if_it_fits
from .performance import Job, Row, Setting, measure_jobs, read_setting
from .table import write_table
from .timing import time_calls
from .tune import CODE, CODE_DEFAULTS, WAYS, Way, clip_model, tuning
from .unets import make_latent, make_model, make_prompt

FULL_ATTENTION = "full attention"
COMPARED = {
    EI2: Way(),
    TUNE_A_VIDEO_PRESET: Way(TUNE_A_VIDEO_PRESET),
    CODE: WAYS[CODE],
    CODE_DEFAULTS: WAYS[CODE_DEFAULTS],
    FULL_ATTENTION: Way(FULL),
}
WHOLE = (EI2, TUNE_A_VIDEO_PRESET)  # tuned for longer
STEPS, DDIM_STEPS, CFG = 500, 50, 7.5  # of the papers


@dataclass(frozen=True)
class Published:
    """A row of EI²'s Table 1, of a V100 with 8 frames of 512 x 512: minutes and GiB, as far as it names them."""

    tuning_minutes: float  # with the inversion
    tuning_gib: float
    edit_minutes: float | None = None
    edit_gib: float | None = None


PUBLISHED = {
    EI2: Published(12.5, 11.0, 0.5, 5.3),
    TUNE_A_VIDEO_PRESET: Published(11.0, 9.6, 0.5, 5.3),
    FULL_ATTENTION: Published(45, 32),
}


@dataclass(frozen=True)
class Case(Setting):
    """A way to edit, of which so many steps of each kind are done; inversion and edit where they are not 0."""

    way: str
    steps: int
    ddim_steps: int


def list_cases(setting: Setting) -> list[Case]:
    """Return the cases, what is asked most first."""
    on_gpu = setting.device == "cuda"
    few, many, ddim = (20, 100, DDIM_STEPS) if on_gpu else (1, 2, 2)
    return [
        Case(**asdict(setting), way=name, steps=many if name in WHOLE else few, ddim_steps=0 if way.kernel else ddim)
        for name, way in COMPARED.items()
    ]


def peak_after(case: Case, peak: Peak) -> int | None:
    """Return the most bytes that a GPU held; None without one."""
    return peak.end() if case.device == "cuda" else None


def run_case(case: Case) -> Row:
    """Tune, invert and edit for the case's steps; seconds are of one step each, None where the memory is too little."""
    unload_all_models()
    gc.collect()
    way, peak = COMPARED[case.way], Peak(None)
    model = clip_model(make_model(), way)
    row = if_it_fits(partial(tune_clip, case, model, way, peak)) or {"tuning": None}
    if case.ddim_steps:
        row |= if_it_fits(partial(edit_clip, case, model, peak)) or {"inversion": None, "edit": None}
    return row


def tune_clip(case: Case, model: ModelPatcher, way: Way, peak: Peak) -> Row:
    """Tune; the first step is not counted."""
    with tuning(model, way, case.frames, case.size) as made:
        if case.device == "cuda":
            peak.begin()
        seconds = time_calls(made.step, case.steps, torch.device(case.device))
        return {"tuning": seconds, "tuning_bytes": peak_after(case, peak), "precision": made.precision}


def edit_clip(case: Case, model: ModelPatcher, peak: Peak) -> Row:
    """Invert and sample; the first time is not counted, for the model is loaded then."""
    device, prompt, latent = torch.device(case.device), make_prompt(), make_latent(case.frames, case.size)
    settings = InversionSettings(case.ddim_steps, 0.0, "none", denoise=1.0)
    with torch.inference_mode():
        invert_clip(model, prompt, prompt, latent, replace(settings, steps=1))
        if case.device == "cuda":
            peak.begin()
        found = {}
        row: Row = {
            "inversion": time_calls(
                lambda: found.update(invert_clip(model, prompt, prompt, latent, settings)), 1, device
            )
        }
        edit = partial(sample_clip, model, prompt, prompt, found, SampleSettings(CFG))
        row["edit"], row["edit_bytes"] = time_calls(edit, 1, device), peak_after(case, peak)
    return {key: value / case.ddim_steps if key in ("inversion", "edit") else value for key, value in row.items()}


def measure_cost(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = read_setting(options, cpu_size=16, cpu_frames=4)
    measure_jobs("cost", options, [Job("cost", list_cases(setting), run_case)], partial(make_section, setting))


def minutes(seconds: float | None) -> str:
    """Return seconds in minutes; None is what did not fit."""
    return OUT_OF_MEMORY if seconds is None else f"{seconds / 60:.3g}"


def gib(held: int | None) -> str:
    """Return bytes in GiB; None is what is not measured."""
    return "" if held is None else f"{held / GIB:.3g}"


def our_cells(row: Row) -> list[str]:
    """Return minutes and GiB of the tuning with its inversion, and of the edit, as far as they are measured."""
    tuned, inverted = row["tuning"], row.get("inversion", 0.0)
    whole = None if tuned is None or inverted is None else STEPS * tuned + DDIM_STEPS * inverted
    edited = row.get("edit", 0.0)
    edit = minutes(edited and DDIM_STEPS * edited) if "edit" in row else ""
    return [minutes(whole), gib(row.get("tuning_bytes")), edit, gib(row.get("edit_bytes"))]


def make_section(setting: Setting, rows: Sequence[Row]) -> str:
    """Return the section's text."""
    reference, body = next((row["tuning"] for row in rows if row["way"] == EI2), None), []
    for row in rows:
        known = PUBLISHED.get(row["way"])
        its = asdict(known) if known else {}
        pairs = zip(our_cells(row), ("tuning_minutes", "tuning_gib", "edit_minutes", "edit_gib"), strict=True)
        compared = [cell for mine, key in pairs for cell in (mine, *published(its, key))]
        relative = f"{row['tuning'] / reference:.3g}" if row["tuning"] and reference else ""
        body.append([row["way"], str(row["steps"]), relative, *compared])
    headings = [f"{what}, {unit}" for what in ("tuning", "edit") for unit in ("min", "GiB")]
    precision = next((f"; {row['precision']}" for row in rows if row["tuning"]), "")
    return "\n\n".join(
        [
            f"{setting}{precision}. Minutes of {STEPS} tuning steps and {DDIM_STEPS} inversion steps (of "
            "Tune-A-Video's code of the tuning steps alone), and of an edit in "
            f"{DDIM_STEPS} guided steps, from the seconds of a step; *steps*: of a tuning, that were done. GiB: the "
            "most that a GPU held, the UNet's weights among it. Published: EI²'s Table 1, on a V100, 8 frames of "
            "512 × 512.",
            write_table(
                ["way", "steps", f"× {EI2} a step", *(cell for name in headings for cell in (name, "published"))], body
            ),
        ]
    )


def published(its: Mapping[str, float | None], key: str) -> list[str]:
    """Return the cell of a published figure, empty where there is none."""
    value = its.get(key)
    return ["" if value is None else f"{value:g}"]
