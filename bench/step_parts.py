"""Where the time of a tuning step goes, by PyTorch's profiler."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.checkpoint import checkpoint

from ..modules.clip_model import chunks
from ..modules.tuning.host import checkpoints
from .timing import Call

AGAIN, OPTIMIZER, REST = "computed again", "optimiser", "rest"
KINDS = {  # of operations, by their names and those of what called them; of several the first
    "attention": r"scaled_dot_product|_attention|softmax",
    "products, convolutions": r"::(linear|addmm|mm|bmm|baddbmm|matmul)$|conv",
    "cat": r"::cat$",
    "norms": r"(group|layer)_norm",
}
PARTS = (*KINDS, OPTIMIZER, AGAIN, REST)


@contextmanager
def marking_what_is_computed_again() -> Iterator[None]:
    """Let the profiler know what is computed again of the checkpoints that are taken meanwhile."""
    marked = partial(checkpoint, context_fn=lambda: (nullcontext(), record_function(AGAIN)))
    with mock.patch.object(chunks, "checkpoint", marked), mock.patch.object(checkpoints, "checkpoint", marked):
        yield


def part_of_step(names: Sequence[str]) -> str:
    """Return the part of a step that an operation belongs to.

    Args:
        names: its own, and those of what called it from the inside out.
    """
    if AGAIN in names:
        return AGAIN
    if any(name.startswith("Optimizer.") for name in names):
        return OPTIMIZER
    found = (kind for kind, pattern in KINDS.items() if any(re.search(pattern, name) for name in names))
    return next(found, REST)


def names_of(event: Any) -> list[str]:
    """Return an event's name and those of what called it, from the inside out."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def time_parts(step: Call, device: torch.device) -> dict[str, float]:
    """Return the share of each part in the time of a step: of a GPU's kernels on one, else of the operations."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        step()
    times = dict.fromkeys(PARTS, 0.0)
    for event in profiled.events():
        if event.device_type == DeviceType.CPU:
            times[part_of_step(names_of(event))] += (
                event.self_device_time_total if on_gpu else event.self_cpu_time_total
            )
    total = sum(times.values())
    return {part: spent / total for part, spent in times.items()}
