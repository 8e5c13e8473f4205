"""Time of a temporal module and of its parts, against a copy of what its attention reads and writes."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, get_args

import torch

from ..modules.clip_model.temporal import STAM, Norm, TemporalModule, attend_frames
from .attention import DIM, HEADS
from .baselines import naive_temporal
from .document import judge
from .performance import Job, Row, Setting, half_on_gpu, measure_jobs, read_setting
from .table import write_table
from .timing import Call, ratios, time_rounds, with_gradients, write_milliseconds, write_spread

COPY, ATTENTION = "copy of q, k, v and what is attended", "attention"
LIMITS = {ATTENTION: 1.3}
NORMS: tuple[Norm, ...] = get_args(Norm)


def make_module(case: Setting, norm: Norm = "instance centering") -> Any:
    """Return a temporal module as it starts, with a norm."""
    module = TemporalModule(DIM, HEADS, replace(STAM, norm=norm), torch.Generator().manual_seed(0))
    return module.to(case.device, half_on_gpu(case))


def make_contenders(case: Setting) -> dict[str, Call]:
    """Return the parts of a module, and the module whole."""
    rows, dtype = case.size**2, half_on_gpu(case)
    z = torch.randn(rows, case.frames, DIM, device=case.device, dtype=dtype)
    x = torch.randn(case.frames, rows, DIM, device=case.device, dtype=dtype, requires_grad=True)
    q, k, v, attended = (torch.randn_like(z) for _ in range(4))
    copies = [torch.empty_like(z) for _ in range(4)]
    sources = [q, k, v, attended]
    module, tuned = make_module(case), make_module(case).float()
    tuned.tune_spectral_norm()
    parts: dict[str, Call] = {
        COPY: lambda: [copy.copy_(source) for source, copy in zip(sources, copies, strict=True)],
        ATTENTION: partial(attend_frames, q, k, v, HEADS),
        "attention with the matrix of scores, and projections": partial(naive_temporal, module, x, case.frames),
        "module": partial(module, x, case.frames),
        "projections": lambda: (module.to_q(z), module.to_k(z), module.to_v(z), module.to_out(z)),
        **{f"norm: {norm}": partial(make_module(case, norm).normalise, z) for norm in NORMS if norm != "none"},
        "spectral norm of both matrices, a step's": lambda: (tuned.to_v.weight, tuned.to_out.weight),
    }
    parts = {name: torch.no_grad()(call) for name, call in parts.items()}
    parts["module, forward and backward"] = with_gradients(partial(module, x, case.frames), [x, *module.parameters()])
    return parts


def run_case(case: Setting) -> Row:
    """Time all parts in one run."""
    return {"seconds": time_rounds(make_contenders(case), case.rounds, torch.device(case.device))}


def measure_temporal(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = read_setting(options, cpu_size=32)
    measure_jobs("temporal", options, [Job("temporal", [setting], run_case)], partial(make_section, setting))


def make_section(setting: Setting, rows: Sequence[Row]) -> str:
    """Return the section's text."""
    (row,), body = rows, []
    for name, seconds in row["seconds"].items():
        against = ratios(row["seconds"], name, COPY)
        cells = [write_milliseconds(seconds), write_spread(against)]
        body.append([name, *cells, *judge(median(against), LIMITS.get(name))])
    return "\n\n".join(
        [
            f"{setting}; {half_on_gpu(setting)}, rounds: {setting.rounds}. STAM on the largest feature map, {DIM} "
            f"channels in {HEADS} heads: {setting.size**2} positions. The attention is over the frames of each.",
            write_table(["part", "ms", "× copy", "target", "met"], body),
        ]
    )
