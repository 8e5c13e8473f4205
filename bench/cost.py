"""EI²'s Table 1: time and memory of tuning, inversion and edit at its size, beside the published figures."""

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
from .document import write_section
from .memory_count import GIB, Peak
from .performance import Row, Setting, complete_rows, read_setting
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
    """Tune, invert and edit for the case's steps; seconds are of one step each."""
    device, way, peak = torch.device(case.device), COMPARED[case.way], Peak(None)
    unload_all_models()
    gc.collect()
    model = clip_model(make_model(), way)
    with tuning(model, way, case.frames, case.size) as made:
        if case.device == "cuda":
            peak.begin()
        row: Row = {"tuning": time_calls(made.step, case.steps, device), "tuning_bytes": peak_after(case, peak)}
        row["precision"] = made.precision
    del made
    return row | (edit_clip(case, model, peak) if case.ddim_steps else {})


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
    write_section(
        options.document, "cost", make_section(setting, complete_rows("cost", options, list_cases(setting), run_case))
    )


def minutes(seconds: float | None) -> str:
    """Return seconds in minutes."""
    return "" if seconds is None else f"{seconds / 60:.3g}"


def gib(held: int | None) -> str:
    """Return bytes in GiB."""
    return "" if held is None else f"{held / GIB:.3g}"


def make_section(setting: Setting, rows: Sequence[Row]) -> str:
    """Return the section's text."""
    first, body = rows[0], []
    for row in rows:
        known = PUBLISHED.get(row["way"])
        its = asdict(known) if known else {}
        inverting = DDIM_STEPS * row["inversion"] if "inversion" in row else None
        tuning_time = STEPS * row["tuning"] + (inverting or 0.0)
        edit = DDIM_STEPS * row["edit"] if "edit" in row else None
        own = [minutes(tuning_time), gib(row["tuning_bytes"]), minutes(edit), gib(row.get("edit_bytes"))]
        pairs = zip(own, ("tuning_minutes", "tuning_gib", "edit_minutes", "edit_gib"), strict=True)
        compared = [cell for mine, key in pairs for cell in (mine, *published(its, key))]
        body.append([row["way"], str(row["steps"]), f"{row['tuning'] / first['tuning']:.3g}", *compared])
    headings = [f"{what}, {unit}" for what in ("tuning", "edit") for unit in ("min", "GiB")]
    return "\n\n".join(
        [
            f"{setting}; {rows[0]['precision']}. Minutes of {STEPS} tuning steps and {DDIM_STEPS} inversion steps, and "
            f"of an edit in {DDIM_STEPS} guided steps, from the seconds of a step; *steps*: of a tuning, that were "
            "done. GiB: the most that a GPU held, the UNet's weights among it. Published: EI²'s Table 1, on a V100, 8 "
            "frames of 512 × 512.",
            write_table(
                ["way", "steps", f"× {EI2} a step", *(cell for name in headings for cell in (name, "published"))], body
            ),
        ]
    )


def published(its: Mapping[str, float | None], key: str) -> list[str]:
    """Return the cell of a published figure, empty where there is none."""
    value = its.get(key)
    return ["" if value is None else f"{value:g}"]
