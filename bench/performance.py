"""What the performance benchmarks share: where they run, and rows that are kept."""

import argparse
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management
import torch

from ..scripts.environment import say
from .table import add_row, load_rows

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
        torch.cuda.get_device_name(device) if on_gpu else read_processor(),
        torch.get_num_threads(),
        torch.__version__,
        options.size or (64 if on_gpu else cpu_size),
        options.frames or (gpu_frames if on_gpu else cpu_frames),
        options.rounds or (10 if on_gpu else 4),
    )


def half_on_gpu(setting: Setting) -> torch.dtype:
    """Return the dtype that attention is measured in."""
    return torch.float16 if setting.device == "cuda" else torch.float32


CaseType = TypeVar("CaseType")
COMMON = {field.name for field in fields(Setting)} - {"frames", "size"}  # of all cases of a run


def complete_rows(
    command: str, options: argparse.Namespace, cases: Sequence[CaseType], run_case: Callable[[CaseType], Row]
) -> list[Row]:
    """Return the row of every case; those on disk are not measured again, except with --again."""
    path = options.state / f"performance-{command}.jsonl"
    done = load_rows(path, type(cases[0]))
    if options.again:
        done = {}
    for number, case in enumerate(cases, start=1):
        if case not in done:
            done[case] = {**asdict(case), **run_case(case)}  # type: ignore[call-overload]
            add_row(path, done[case])
        own = {key: value for key, value in asdict(case).items() if key not in COMMON}  # type: ignore[call-overload]
        say(f"{number:4} of {len(cases)}  {', '.join(f'{key} {value}' for key, value in own.items())}")
    return [done[case] for case in cases]
