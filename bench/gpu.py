"""All that only a GPU can tell, in the order of its worth: what is done when time is up is kept, and not done again."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ..scripts.environment import ROOT, attend, say
from .document import write_section
from .table import write_table

TESTS = "tests"
PARTS = (TESTS, "cost", "memory", "attention", "options", "windows", "tune", "temporal", "sample")
SMALL = {"size": 8, "frames": 4, "rounds": 1}  # on a CPU
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what cuBLAS needs at its start to sum in one order
GRACE = 20  # seconds that a part has to end when it is stopped
OUT_OF_TIME = "stopped, goes on when called again"


def command_of(part: str, options: argparse.Namespace) -> list[str]:
    """Return the command line of a part."""
    if part == TESTS:
        return [sys.executable, "-m", "pytest", "tests/host", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    given = ["--device", options.device, "--state", str(options.state), "--document", str(options.document)]
    if options.device == "cpu":
        given += [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "bench", part, *given]


def run_part(command: Sequence[str], seconds: float) -> tuple[str, str]:
    """Run a part for so long at most; returns how it ended, and the last line it printed."""
    settings = {**os.environ, **DETERMINISTIC}
    process = subprocess.Popen(
        command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        errors="replace",
    )  # fmt: skip
    with attend(process):
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=GRACE)
            process.kill()
            return OUT_OF_TIME, ""
    say(printed)
    last = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "")
    return ("done" if process.returncode == 0 else f"failed ({process.returncode})"), last


def load_ended(path: Path) -> dict[str, list[str]]:
    """Return how each part ended that did, by its name."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def run_parts(options: argparse.Namespace, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Run what is not done until the time is up, and keep how each part ended; yields all parts."""
    ended, began = load_ended(path), time.monotonic()
    for part in options.parts or PARTS:
        left = 60 * options.minutes - (time.monotonic() - began)
        if ended.get(part, [""])[0] != "done":
            if left <= 0:
                yield part, ["not begun", "", ""]
                continue
            say(f"--- {part}, {left:.0f} s are left")
            start = time.monotonic()
            how, last = run_part(command_of(part, options), left)
            ended[part] = [how, f"{time.monotonic() - start:.0f}", last if part == TESTS else ""]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(ended), encoding="utf-8")
        yield part, ended[part]


def measure_gpu(options: argparse.Namespace) -> int:
    """Run the parts, and write the section; returns the exit status."""
    import comfy.model_management
    import torch

    unknown = set(options.parts) - set(PARTS)
    if unknown:
        sys.exit(f"--parts {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}.")
    device = comfy.model_management.get_torch_device()
    if device.type != options.device:
        sys.exit(f"--device {options.device}: ComfyUI runs on {device.type} here.")
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU, at a small size"
    ended = dict(run_parts(options, options.state / f"gpu-{device.type}.json"))
    body = [[part, *cells] for part, cells in ended.items()]
    text = f"{chip}; PyTorch {torch.__version__}. Their figures are in the sections of their names."
    write_section(options.document, "gpu", "\n\n".join([text, write_table(["part", "", "seconds", "tests"], body)]))
    return int(any(cells[0].startswith("failed") for cells in ended.values()))
