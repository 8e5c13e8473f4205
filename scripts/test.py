"""Check the project: `python scripts/test.py [--unit | --host | --matrix] [arguments of pytest]`.

Sets up the virtual environment and ComfyUI as demo.py does, then runs ruff, mypy, the tests that need no ComfyUI and
the tests that run in the real one. Every stage runs whatever the others say; the exit status is 1 if any failed.
--matrix tries several ComfyUIs and Pythons instead, see matrix.py; its arguments choose some of them, e.g. 0.30.0 3.13.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import environment

SHARED = ("-n", "auto", "--dist", "loadfile")  # among processes, whole files at a time
CHECKED = ("modules", "nodes", "demo", "scripts", "bench")
NO_TESTS = 5  # pytest's exit status where nothing was selected


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: its name, exit status, seconds, and the last line it printed."""

    name: str
    status: int
    seconds: float
    last: str

    def __str__(self) -> str:
        return f"{'FAILED' if self.status else 'ok':<7} {self.name:<11} {self.seconds:6.1f} s   {self.last}"


def run_stage(
    name: str, module: str, *arguments: str, folder: Path = environment.ROOT, threads: int | None = None
) -> Outcome:
    """Run a Python module's command line and show what it prints; with so many threads, None = any number."""
    environment.say(f"\n--- {name}")
    began, last = time.monotonic(), ""
    command = [sys.executable, "-m", module, *arguments]
    settings = {**os.environ, "PYTHONUTF8": "1", **({"OMP_NUM_THREADS": str(threads)} if threads is not None else {})}
    process = subprocess.Popen(
        command, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace",
    )  # fmt: skip
    with environment.attend(process):
        for line in process.stdout or ():
            environment.say(line.rstrip("\n"))
            last = line.strip() or last
        status = process.wait()
    return Outcome(name, status, time.monotonic() - began, last)


def run_mypy() -> Outcome:
    """Type-check the pack as the package `consistent_video`, through a link of that name."""
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / environment.MODULE
        environment.link(pack, environment.ROOT)
        paths = [str(Path(environment.MODULE) / name) for name in CHECKED if (environment.ROOT / name).is_dir()]
        config = environment.ROOT / "pyproject.toml"
        cache = environment.ROOT / ".mypy_cache"
        outcome = run_stage(
            "mypy", "mypy", "--config-file", str(config), "--cache-dir", str(cache), *paths, folder=Path(folder)
        )
        pack.unlink() if pack.is_symlink() else pack.rmdir()
    return outcome


def run_tests(name: str, folder: str, arguments: list[str]) -> Outcome:
    """Run the tests of a folder; that nothing is selected is fine where arguments select."""
    outcome = run_stage(name, "pytest", folder, *SHARED, *arguments, threads=1)  # the processes share the cores
    if arguments and outcome.status == NO_TESTS:
        return Outcome(outcome.name, 0, outcome.seconds, outcome.last)
    return outcome


def run_all(only: str | None, arguments: list[str]) -> list[Outcome]:
    """Run the stages that the command line asks for."""
    outcomes = []
    if only is None:
        outcomes.append(run_stage("ruff", "ruff", "check", "."))
        outcomes.append(run_mypy())
    if only in (None, "unit"):
        outcomes.append(run_tests("tests/unit", "tests/unit", arguments))
    if only in (None, "host"):
        outcomes.append(run_tests("tests/host", "tests/host", arguments))
    return outcomes


def main() -> int:
    """Read the command line, complete the environment and run the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--unit", action="store_const", const="unit", dest="only", help="only tests/unit")
    choice.add_argument("--host", action="store_const", const="host", dest="only", help="only tests/host")
    choice.add_argument("--matrix", action="store_const", const="matrix", dest="only", help="write docs/hosts.md")
    options, arguments = parser.parse_known_args()
    environment.stop_on_signals()
    environment.enter(__file__, sys.argv[1:])
    if options.only == "matrix":
        environment.register_pack()
        from consistent_video.scripts.matrix import run_matrix

        return run_matrix(arguments)
    outcomes = run_all(options.only, arguments)
    environment.say("\n" + "\n".join(map(str, outcomes)))
    return int(any(outcome.status for outcome in outcomes))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
