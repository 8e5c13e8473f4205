"""Time of one guided UNet call of clip models against the model that takes each frame for itself."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from statistics import median
from unittest import mock

import torch
from comfy.model_management import unload_all_models
from comfy.model_patcher import ModelPatcher

from ..modules.clip_model import chunks
from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.host.calls import feed_forward_in_chunks, run_residual
from ..modules.clip_model.host.settings import clip_settings
from ..modules.clip_model.methods import EI2, FULL, TUNE_A_VIDEO_PRESET, method
from .document import judge, write_section
from .memory_count import MIB, extra_memory
from .performance import Row, Setting, complete_rows, read_setting
from .sd15 import guided_call, load, make_model
from .table import write_table
from .timing import Call, ratios, time_rounds, write_milliseconds, write_spread
from .tune import UNBOUNDED

PER_FRAME = "per frame"
OURS = f"{EI2}, r = 4"
METHODS: Mapping[str, tuple[str, int]] = {
    OURS: (EI2, 4),
    f"{EI2}, r = 2": (EI2, 2),
    TUNE_A_VIDEO_PRESET: (TUNE_A_VIDEO_PRESET, 4),
    FULL: (FULL, 4),
}
LIMITS = {OURS: 1.15}
FULL_SIZE = 64
WHOLE, IN_CHUNKS = "all at once", "in chunks"


def layers_in_chunks(model: ModelPatcher, frames: int, size: int) -> dict[str, tuple[Call, Call]]:
    """Return calls of layers on the largest map, at once and in chunks, as guidance makes them."""
    unet, settings = model.model.diffusion_model, clip_settings(model)
    last = len(unet.output_blocks) - 1
    residual, transformer = unet.output_blocks[last]
    block, weight = transformer.transformer_blocks[0], transformer.proj_in.weight
    rows, dtype = 2 * frames, model.model.get_dtype_inference()
    x = torch.randn(rows, residual.channels, size, size, device=weight.device, dtype=dtype)
    emb = torch.randn(rows, residual.emb_channels, device=weight.device, dtype=dtype)
    z = torch.randn(rows, size * size, weight.shape[0], device=weight.device, dtype=dtype)
    assert settings.temporal is not None, "EI² has temporal modules"
    module = settings.temporal.at(("output", last), 0)

    def feed_forward() -> object:
        with feed_forward_in_chunks(block.ff, z, recompute=False):
            return block.ff(z)

    def whole(call: Call) -> object:
        with mock.patch.object(chunks, "CHUNK_BYTES", UNBOUNDED):
            return call()

    calls: dict[str, Call] = {
        "feed-forward": feed_forward,
        "residual block": partial(run_residual, residual, x, emb),
        "temporal module": lambda: module(z, frames),
    }
    return {name: (partial(whole, call), call) for name, call in calls.items()}


def measure_chunks(model: ModelPatcher, case: Setting) -> Row:
    """Return times and memory of layers at once and in chunks, at full size."""
    found, device = {}, torch.device(case.device)
    for name, pair in layers_in_chunks(model, case.frames, FULL_SIZE).items():
        calls = dict(zip((WHOLE, IN_CHUNKS), pair, strict=True))
        seconds = time_rounds(calls, case.rounds, device)
        found[name] = {"seconds": seconds, "bytes": {way: extra_memory(call, device) for way, call in calls.items()}}
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
        in_chunks = measure_chunks(models[OURS], case)
    unload_all_models()
    return {"seconds": times, "dtype": str(base.model.get_dtype_inference()), "chunks": in_chunks}


def measure_sample(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = read_setting(options, cpu_size=16)
    rows = complete_rows("sample", options, [setting], run_case)
    write_section(options.document, "sample", make_section(setting, rows[0]))


def make_section(setting: Setting, row: Row) -> str:
    """Return the section's text."""
    body = []
    for name, seconds in row["seconds"].items():
        against = ratios(row["seconds"], name, PER_FRAME)
        cells = [write_milliseconds(seconds), write_spread(against)]
        body.append([name, *cells, *judge(median(against), LIMITS.get(name))])
    parts = [
        [name, write_milliseconds(part["seconds"][IN_CHUNKS]), write_spread(ratios(part["seconds"], IN_CHUNKS, WHOLE))]
        + [f"{part['bytes'][way] / MIB:.4g}" for way in (WHOLE, IN_CHUNKS)]
        for name, part in row["chunks"].items()
    ]
    return "\n".join(
        [
            f"{setting}; {row['dtype']}, rounds: {setting.rounds}. One UNet call as classifier-free guidance makes it, "
            "two rows for each frame.",
            "",
            write_table(["model", "ms", f"× {PER_FRAME}", "target", "met"], body),
            "",
            "Layers that treat each frame, or each position, for itself work on as much at a time as makes "
            f"{chunks.CHUNK_BYTES // MIB} MiB of activations. The last of each kind, {FULL_SIZE} × {FULL_SIZE}, with "
            "what they hold at most besides their inputs:",
            "",
            write_table(["layer", "ms", "× all at once", "MiB all at once", "MiB"], parts),
        ]
    )
