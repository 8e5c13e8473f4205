"""Real clips with a real checkpoint: methods edit them in running ComfyUI servers, and the scorecard judges."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue
from typing import Any

from tqdm import tqdm

from ..scripts.edit import lend_file
from ..scripts.environment import ROOT, comfyui_tree, link, say
from ..scripts.host import Host, device_arguments
from ..scripts.server import GraphError, HostError, Server
from ..scripts.systems import COMPARED
from ..scripts.workflow import WorkflowError
from .clip_case import DEMO_MODEL, METHODS, Case, list_cases, run_case
from .table import add_row, load_rows, mean_and_error, write_table

BASE = ROOT / ".comfyui-data"
DO_NOTHING = "do nothing"
Outcome = tuple[Case, "dict[str, Any] | None", str]  # its row, or why there is none


def attempt(server: Server, case: Case, options: argparse.Namespace) -> Outcome:
    """Return a case with its row, or with why there is none."""
    try:
        return case, run_case(server, case, options.folder, options.output), ""
    except (GraphError, HostError, WorkflowError, OSError, ValueError, KeyError) as error:
        return case, None, f"{type(error).__name__}: {error}".splitlines()[0]


def run_on_servers(servers: Sequence[Server], cases: Sequence[Case], options: argparse.Namespace) -> Iterator[Outcome]:
    """Run cases on some servers, each taking the next one as soon as it is free.

    A server that answers no more gets no further case, and the one it had goes to another.
    """
    free: Queue[Server | None] = Queue()
    left = list(servers)
    for server in servers:
        free.put(server)

    def work(case: Case) -> Outcome:
        error = "no server answers"
        while (server := free.get()) is not None:
            outcome = attempt(server, case, options)
            if outcome[1] is not None or server.answers():
                free.put(server)
                return outcome
            error = outcome[2]
            left.remove(server)
            tqdm.write(f"{server.address} answers no more; {len(left)} of {len(servers)} servers go on with its edit.")
            if not left:
                free.put(None)
        free.put(None)
        return case, None, error

    with ThreadPoolExecutor(len(servers)) as pool:
        for future in as_completed([pool.submit(work, case) for case in cases]):
            yield future.result()


def start_host(base: Path, options: argparse.Namespace) -> Host:
    """Return a ComfyUI of this machine, not yet started, with the files that the run needs."""
    host = Host(comfyui_tree(), base, device_arguments())
    if str(options.checkpoint) != DEMO_MODEL:
        checkpoints = base / "models" / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        lend_file(options.checkpoint.resolve(), checkpoints / options.checkpoint.name)
    if options.clip_folder:
        (base / "models" / "clip_score").mkdir(parents=True, exist_ok=True)
        link(base / "models" / "clip_score" / options.clip_folder.name, options.clip_folder.resolve())
    return host


def measure_clips(options: argparse.Namespace) -> int:
    """Run what is not done yet, write the table, and list what failed; returns the exit status."""
    rows, failures = complete(options)
    options.document.parent.mkdir(parents=True, exist_ok=True)
    options.document.write_text(make_document(rows, failures, options), encoding="utf-8")
    say(f"Wrote {options.document}")
    return int(bool(failures))


def complete(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[Case, str]]:
    """Run what is not done yet, and return the rows of all edits, and why some have none."""
    unknown = set(options.methods) - {*METHODS, *COMPARED}
    if unknown:
        sys.exit(f"--methods {', '.join(sorted(unknown))}: there are {', '.join([*METHODS, *COMPARED])}.")
    if not options.folder.is_dir():
        sys.exit(f"--folder: there is no folder {options.folder}.")
    if not (options.servers or str(options.checkpoint) == DEMO_MODEL or options.checkpoint.is_file()):
        sys.exit(f"--checkpoint: there is no file {options.checkpoint}.")
    try:
        cases = list(list_cases(options))
    except (OSError, ValueError) as error:
        sys.exit(f"--prompts: {error}")
    path = options.state / "clips.jsonl"
    done = load_rows(path, Case)
    left = [case for case in cases if case not in done]
    failures: dict[Case, str] = {}
    for case, row, reason in tqdm(
        run_all(left, options), total=len(cases), initial=len(cases) - len(left), unit="edit"
    ):
        if row is None:
            failures[case] = reason
        else:
            add_row(path, row)
            done[case] = row
    rows = [done[case] for case in cases if case in done]
    say("\n".join([*list_failures(failures), f"{len(rows)} of {len(cases)} edits done."]))
    return rows, failures


def list_failures(failures: Mapping[Case, str]) -> list[str]:
    """Return a line for each edit that failed."""
    return [f"- Failed: {case.video}, {case.kind}, {case.method}: {reason}" for case, reason in failures.items()]


def run_all(cases: Sequence[Case], options: argparse.Namespace) -> Iterator[Outcome]:
    """Run cases where the command line says."""
    if not cases:
        return
    if options.servers:
        servers = [Server(address.removeprefix("http://").rstrip("/")) for address in options.servers]
        silent = [server.address for server in servers if not server.answers()]
        if silent:
            sys.exit(f"--servers: no ComfyUI answers at {', '.join(silent)}.")
        yield from run_on_servers(servers, cases, options)
    else:
        with start_host(BASE, options) as host:
            yield from run_on_servers([host], cases, options)


def make_document(rows: Sequence[dict[str, Any]], failures: dict[Case, str], options: argparse.Namespace) -> str:
    """Return the table of the rows: means over the edits of each method, and of doing nothing."""
    measures = list(dict.fromkeys(key for row in rows for key in row["rows"]["edit"]))
    groups: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row["rows"]["edit"])
    nothing = {(row["video"], row["kind"]): row["rows"]["do nothing"] for row in rows}
    groups = {DO_NOTHING: list(nothing.values()), **groups}
    body = [
        [name, str(len(own)), *(mean_and_error([card.get(key) for card in own]) for key in measures)]
        for name, own in groups.items()
    ]
    left_out = dict(pair for row in rows for pair in row["left_out"].items())
    models = dict.fromkeys(what for row in rows for what in row["models"].values())
    lines = [
        "# Edits of real clips",
        "",
        f"Written by `python -m bench clips`: {options.checkpoint.name}, {options.frames} frames of {options.size} x "
        f"{options.size}, tuning for {options.steps} steps at {options.learning_rate:g}, {options.ddim_steps} DDIM "
        "steps. A cell holds the mean over edits ± its standard error; what each figure is, the help page of Edit "
        "Scorecard says. *do nothing* is the source as its own edit.",
        "",
        write_table(["method", "edits", *measures], body),
        "",
        *(f"- Measured by: {what}." for what in models),
        *(f"- Left out: {name}, {reason}." for name, reason in left_out.items()),
        *list_failures(failures),
    ]
    return "\n".join(lines) + "\n"
