"""Time of one guided UNet call of clip models against the model that takes each frame for itself."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median

import torch
from comfy.model_management import unload_all_models
from comfy.model_patcher import ModelPatcher

from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.methods import EI2, FULL, TUNE_A_VIDEO_PRESET, method
from .document import judge
from .performance import Job, Row, Setting, measure_jobs, read_setting
from .table import write_table
from .timing import ratios, time_rounds, write_milliseconds, write_spread
from .unets import guided_call, load, make_model

PER_FRAME = "per frame"
OURS = f"{EI2}, r = 4"
METHODS: Mapping[str, tuple[str, int]] = {
    OURS: (EI2, 4),
    f"{EI2}, r = 2": (EI2, 2),
    TUNE_A_VIDEO_PRESET: (TUNE_A_VIDEO_PRESET, 4),
    FULL: (FULL, 4),
}
LIMITS = {OURS: 1.15}


def run_case(case: Setting) -> Row:
    """Time one call of every model in one run."""
    base = inflate(make_model())
    models: dict[str, ModelPatcher] = {PER_FRAME: base}
    models |= {name: attach(base, *method(preset, r)) for name, (preset, r) in METHODS.items()}
    with torch.inference_mode():
        load(list(models.values()))
        calls = {name: guided_call(model, case.frames, case.size) for name, model in models.items()}
        times = time_rounds(calls, case.rounds, torch.device(case.device))
    unload_all_models()
    return {"seconds": times, "dtype": str(base.model.get_dtype_inference())}


def measure_sample(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = read_setting(options, cpu_size=16)
    measure_jobs("sample", options, [Job("sample", [setting], run_case)], partial(make_section, setting))


def make_section(setting: Setting, rows: Sequence[Row]) -> str:
    """Return the section's text."""
    (row,), body = rows, []
    for name, seconds in row["seconds"].items():
        against = ratios(row["seconds"], name, PER_FRAME)
        cells = [write_milliseconds(seconds), write_spread(against)]
        body.append([name, *cells, *judge(median(against), LIMITS.get(name))])
    return "\n\n".join(
        [
            f"{setting}; {row['dtype']}, rounds: {setting.rounds}. One UNet call as classifier-free guidance makes it, "
            "two rows for each frame.",
            write_table(["model", "ms", f"× {PER_FRAME}", "target", "met"], body),
        ]
    )
