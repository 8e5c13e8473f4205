"""What the performance benchmarks share: where they run, and rows that are kept."""

import argparse
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import comfy.model_management
import torch

from ..scripts.environment import say
from .document import TITLES, write_section
from .table import add_row, drop_rows, load_rows

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where, at which size of the latent's sides and in how many rounds something is measured."""

    device: str
    chip: str
    threads: int
    torch: str
    size: int
    frames: int
    rounds: int

    def __str__(self) -> str:
        where = self.chip if self.device == "cuda" else f"{self.chip}, threads: {self.threads}"
        return f"{where}; PyTorch {self.torch}; {self.frames} frames of {self.size} × {self.size} latents"


def read_chip(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else read_processor()


def read_processor() -> str:
    """Return the processor's model, as far as it says."""
    information = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", information.read_text(), re.M) if information.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def read_setting(options: argparse.Namespace, cpu_size: int, cpu_frames: int = 8, gpu_frames: int = 8) -> Setting:
    """Return the setting of the options, with defaults by device."""
    device = comfy.model_management.get_torch_device()
    if options.device not in ("auto", device.type):
        raise ValueError(f"--device {options.device}: ComfyUI runs on {device.type} here.")
    on_gpu = device.type == "cuda"
    return Setting(
        device.type,
        read_chip(device),
        torch.get_num_threads(),
        torch.__version__,
        options.size or (64 if on_gpu else cpu_size),
        options.frames or (gpu_frames if on_gpu else cpu_frames),
        options.rounds or (10 if on_gpu else 4),
    )


def half_on_gpu(setting: Setting) -> torch.dtype:
    """Return the dtype that attention is measured in."""
    return torch.float16 if setting.device == "cuda" else torch.float32


COMMON = {field.name for field in fields(Setting)} - {"frames", "size"}  # of all cases of a run


@dataclass(frozen=True)
class Job:
    """Cases of one kind, and how one is measured; their rows are kept under a name."""

    name: str
    cases: Sequence[Any]
    run: Callable[[Any], Row]


def measure_jobs(
    command: str, options: argparse.Namespace, jobs: Sequence[Job], make_section: Callable[..., str]
) -> list[list[Row]]:
    """Measure the cases whose rows are not on disk, or all with --again; the section is written after each.

    Args:
        make_section: takes the rows that there are of each job, in the order of its cases.

    Returns:
        The rows of each job.
    """
    paths = [options.state / f"performance-{job.name}.jsonl" for job in jobs]
    if options.again:
        for job, path in zip(jobs, paths, strict=True):
            drop_rows(path, job.cases)
    done = [load_rows(path, type(job.cases[0])) for job, path in zip(jobs, paths, strict=True)]

    def write() -> list[list[Row]]:
        rows = [[found[case] for case in job.cases if case in found] for job, found in zip(jobs, done, strict=True)]
        there, wanted = sum(map(len, rows)), sum(len(job.cases) for job in jobs)
        mark = f"Incomplete: {there} of {wanted} cases. " if there < wanted else ""
        write_section(options.document, command, mark + make_section(*rows))
        return rows

    for job, path, found in zip(jobs, paths, done, strict=True):
        for number, case in enumerate(job.cases, start=1):
            if case not in found:
                found[case] = {**asdict(case), **job.run(case)}
                add_row(path, found[case])
                write()
            own = {key: value for key, value in asdict(case).items() if key not in COMMON}
            say(f"{number:4} of {len(job.cases)}  {', '.join(f'{key} {value}' for key, value in own.items())}")
    rows = write()
    say(f"Wrote {TITLES[command]} of {options.document}")
    return rows
