"""Time of one guided UNet call of clip models against the model that takes each frame for itself; long clips."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from statistics import median

import torch
from comfy.context_windows import IndexListContextHandler, get_matching_context_schedule, get_matching_fuse_method
from comfy.model_management import unload_all_models
from comfy.model_patcher import ModelPatcher
from comfy.samplers import sampler_object

from ..modules.host.learned import sdpa_override
from ..modules.host.patch import attach, inflate
from ..modules.host.run import run_sampler
from ..modules.presets import EI2, FULL, TUNE_A_VIDEO_PRESET, method
from .document import judge
from .memory_count import MIB, measured_peak
from .performance import Row, Setting, complete_rows, finish, read_setting
from .sd15 import guided_call, load, make_latent, make_model, make_prompt
from .table import write_table
from .timing import ratios, time_rounds, write_milliseconds, write_spread

PER_FRAME = "per frame"
OURS = f"{EI2}, r = 4"
METHODS: Mapping[str, tuple[str, int]] = {
    OURS: (EI2, 4),
    f"{EI2}, r = 2": (EI2, 2),
    TUNE_A_VIDEO_PRESET: (TUNE_A_VIDEO_PRESET, 4),
    FULL: (FULL, 4),
}
LIMITS = {OURS: 1.15}
CFG, SIGMAS = 7.5, (5.0, 0.0)
FULL_SIZE = 64
LONG, WINDOW, OVERLAP, CONSTANT = (32, 64, 128), 16, 4, 1.05


def windowed_peak(device: str, frames: int, size: int) -> int:
    """Return the bytes held at most, beyond the model's, by a sampling step of a clip in the host's windows."""
    with torch.no_grad(), measured_peak(device) as peak:
        model = attach(inflate(make_model(peak.dtype)), *method(EI2))
        load([model])
        peak.begin()
        held = peak.now()
        model.model_options["context_handler"] = IndexListContextHandler(
            get_matching_context_schedule("standard_static"), get_matching_fuse_method("pyramid"), WINDOW, OVERLAP
        )
        model.model_options["transformer_options"]["optimized_attention_override"] = sdpa_override
        given = sampler_object("euler"), torch.tensor(SIGMAS), CFG, make_prompt(), make_prompt()
        run_sampler(model, make_latent(frames, size)["samples"], *given)
        found = peak.end() - held
    unload_all_models()
    return found


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
    size = case.size if case.device == "cuda" else FULL_SIZE
    return {
        "seconds": times,
        "dtype": str(base.model.get_dtype_inference()),
        "long": {str(n): windowed_peak(case.device, n, size) for n in LONG},
    }


def measure_sample(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = read_setting(options, cpu_size=16)
    rows = complete_rows("sample", options, [setting], run_case)
    finish("sample", options, rows, make_section(setting, rows[0]))


def make_section(setting: Setting, row: Row) -> str:
    """Return the section's text."""
    body = []
    for name, seconds in row["seconds"].items():
        against = ratios(row["seconds"], name, PER_FRAME)
        cells = [write_milliseconds(seconds), write_spread(against)]
        body.append([name, *cells, *judge(median(against), LIMITS.get(name))])
    first = row["long"][str(LONG[0])]
    long = [
        [str(n), f"{row['long'][str(n)] / MIB:.4g}", f"{row['long'][str(n)] / first:.3g}"]
        + judge(row["long"][str(n)] / first, CONSTANT)
        for n in LONG
    ]
    size = setting.size if setting.device == "cuda" else FULL_SIZE
    how = "measured" if setting.device == "cuda" else "accounted, not measured"
    return "\n".join(
        [
            f"{setting}; {row['dtype']}, rounds: {setting.rounds}. One UNet call as classifier-free guidance makes it, "
            "two rows for each frame.",
            "",
            write_table(["model", "ms", f"× {PER_FRAME}", "target", "met"], body),
            "",
            f"Long clips, {OURS}, in the host's context windows of {WINDOW} frames that overlap by {OVERLAP}, {size} × "
            f"{size}: held at most beyond the model, {how}.",
            "",
            write_table(["frames", "MiB", f"× {LONG[0]} frames", "target", "met"], long),
        ]
    )
