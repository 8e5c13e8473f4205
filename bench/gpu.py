"""What only a GPU can tell, the most useful parts first: what is done when time is up is kept, and not done again."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread

import comfy.model_management
import torch

from ..scripts.environment import ROOT, attend, say
from .document import write_section
from .performance import read_chip
from .table import write_table

TESTS = "tests"
PARTS = (TESTS, "cost", "memory", "attention", "options", "windows", "tune", "temporal", "sample")
MORE = {"memory": ["--short"]}  # arguments of a part
SMALL = {"size": 8, "frames": 4, "rounds": 1}  # on a CPU
SETTINGS = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what cuBLAS needs at its start to sum in one order
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
}
STARTED = 60  # seconds after which a part has dropped the rows that it is to measure again
GRACE = 20  # seconds that a part has to end when it is stopped
KEPT_LINES = 40  # of what a part printed last
DONE, OUT_OF_TIME, NOT_BEGUN, AGAIN = "done", "stopped, goes on when called again", "not begun", "to be done again"


@dataclass(frozen=True)
class Ended:
    """How a part ended: in a word, after so many seconds, and what it printed last."""

    how: str
    seconds: float = 0.0
    tail: Sequence[str] = ()

    @property
    def failed(self) -> bool:
        """Whether it ended by itself, and not well."""
        return self.how.startswith("failed")

    def cells(self, part: str) -> list[str]:
        """Return the cells of the table: the last line is of what the part's own section does not tell."""
        last = self.tail[-1].replace(f"{ROOT}{os.sep}", "").replace("|", "\\|") if self.tail else ""
        return [part, self.how, f"{self.seconds:.0f}", last if part == TESTS or self.failed else ""]


def command_of(part: str, options: argparse.Namespace, again: bool = False) -> list[str]:
    """Return the command line of a part."""
    if part == TESTS:
        return [sys.executable, "-m", "pytest", "tests/host", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    given = ["--device", options.device, "--state", str(options.state), "--document", str(options.document)]
    given += MORE.get(part, [])
    if again:
        given.append("--again")
    if options.device == "cpu":
        given += [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "bench", part, *given]


def run_part(command: Sequence[str], seconds: float) -> Ended:
    """Run a part for so long at most, and show what it prints."""
    began, tail = time.monotonic(), deque[str](maxlen=KEPT_LINES)
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **SETTINGS}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace",
    )  # fmt: skip

    def show() -> None:
        for line in process.stdout or ():
            say(line.rstrip("\n"))
            tail.extend([line.strip()] if line.strip() else [])

    reader = Thread(target=show, daemon=True)  # what a part leaves behind may hold its output open
    with attend(process):
        reader.start()
        try:
            status = process.wait(seconds)
            how = f"failed ({status})" if status else DONE
        except subprocess.TimeoutExpired:
            how = OUT_OF_TIME
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            process.kill()
    reader.join(GRACE)
    return Ended(how, time.monotonic() - began, list(tail))


def state_path(options: argparse.Namespace, device: torch.device) -> Path:
    """Return where it is kept how the parts ended on this chip with this PyTorch."""
    key = re.sub(r"[^\w.]+", "-", f"{read_chip(device)} {torch.__version__}")
    return options.state / f"gpu-{key}.json"


def load_ended(path: Path) -> dict[str, Ended]:
    """Return how each part ended that did, by its name."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {part: Ended(**its) for part, its in known.items()}


def save_ended(path: Path, ended: Mapping[str, Ended]) -> None:
    """Keep how the parts ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({part: asdict(its) for part, its in ended.items()}), encoding="utf-8")


def measure_gpu(options: argparse.Namespace) -> int:
    """Run what is not done until the time is up, and write the section after each part; returns the exit status."""
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        sys.exit(f"--parts {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}.")
    device = comfy.model_management.get_torch_device()
    if device.type != options.device:
        sys.exit(f"--device {options.device}: ComfyUI runs on {device.type} here.")
    parts, path, began = options.parts or PARTS, state_path(options, device), time.monotonic()
    ended = load_ended(path)
    if options.again:
        ended |= dict.fromkeys(parts, Ended(AGAIN))
        save_ended(path, ended)
    for part in parts:
        left = 60 * options.minutes - (time.monotonic() - began)
        before = ended.get(part, Ended(NOT_BEGUN))
        if before.how != DONE and left > 0:
            say(f"--- {part}, {left:.0f} s are left")
            save_ended(path, ended | {part: Ended(OUT_OF_TIME)})  # as it is where this process is killed
            ended[part] = run_part(command_of(part, options, before.how == AGAIN), left)
            if before.how == AGAIN and ended[part].how != DONE and ended[part].seconds < STARTED:
                ended[part] = before  # it may not have dropped its old rows
            save_ended(path, ended)
        write_section(options.document, "gpu", make_section(device, ended))
    say(f"Wrote {options.document}")
    return int(any(ended[part].failed for part in parts if part in ended))


def make_section(device: torch.device, ended: Mapping[str, Ended]) -> str:
    """Return the section's text."""
    where = read_chip(device) if device.type == "cuda" else f"{read_chip(device)}, at a small size"
    body = [ended.get(part, Ended(NOT_BEGUN)).cells(part) for part in PARTS]
    text = f"{where}; PyTorch {torch.__version__}. Their figures are in the sections of their names."
    return "\n\n".join([text, write_table(["part", "result", "seconds", "last line"], body)])
