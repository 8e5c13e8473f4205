"""Real clips with a real checkpoint: each method edits each clip in running ComfyUI servers, and the scorecard judges.

Prompts have LOVEU-TGVE's form: a table with a row for each video, its caption and a caption for each kind of edit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import Any

from tqdm import tqdm

from ..demo.clips import save_video
from ..scripts.clips import fit_square, read_clip
from ..scripts.edit import lend_file
from ..scripts.environment import ROOT, comfyui_tree, link, say
from ..scripts.graph import Group, Workflow, build
from ..scripts.host import GraphError, Host, HostError, Server, device_arguments
from ..scripts.parts import (
    DEMO,
    INFLATE,
    PATCH,
    SOURCE,
    Task,
    checkpoint,
    invert_source,
    ours,
    sample_edit,
    sample_tied,
    save,
    show,
)
from ..scripts.workflow import WorkflowError, find_node, to_prompt
from .table import add_row, load_rows, mean_and_error, write_table

VIDEO, CAPTION = "Video name", "Our GT caption"
KINDS = {
    "style": "Style Change Caption",
    "object": "Object Change Caption",
    "background": "Background Change Caption",
    "multiple": "Multiple Changes Caption",
}
ENDINGS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")
BASE = ROOT / ".comfyui-data"
DEMO_MODEL = "demo"
DO_NOTHING = "do nothing"
REVISION = 2  # raised when the same case is edited by another graph
METHODS: dict[str, dict[str, Any]] = {
    "per frame": {"preset": "per frame"},
    "FFAM": {"preset": "EI²", "temporal": "none"},
    "FFAM + relation, motion": {"preset": "EI²", "temporal": "none", "relation": True},
    "FFAM + prompt-to-prompt": {"preset": "EI²", "temporal": "none", "control": True},
    "Tune-A-Video": {"preset": "Tune-A-Video", "tuned": True},
    "EI²": {"preset": "EI²", "tuned": True},
    "EI² + INR": {"preset": "EI²", "tuned": True, "smoothing": "INR"},
    "EI² + relation, motion": {"preset": "EI²", "tuned": True, "relation": True},
}


@dataclass(frozen=True)
class Case:
    """One edit of a clip.

    Attributes:
        video, kind, method: names.
        before, after: captions of the clip and of the edit.
        checkpoint: file name, or DEMO_MODEL.
        frames, size: of the clip; steps, learning_rate: of the tuning; ddim_steps: of inversion and sampling.
        judges: names of the CLIP folder, the flow and the LPIPS weights that measure.
        revision: of the graphs.
    """

    video: str
    kind: str
    method: str
    before: str
    after: str
    checkpoint: str
    frames: int
    size: int
    steps: int
    learning_rate: float
    ddim_steps: int
    judges: str
    revision: int = REVISION

    @property
    def file(self) -> str:
        """What the clip is called among a server's inputs."""
        return f"bench_{self.video}_{self.frames}_{self.size}.mp4"

    @property
    def name(self) -> str:
        """What its edit is called."""
        return f"{self.video}_{self.kind}_{self.method}".replace(" ", "_")


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a prompt file, JSON (a list of objects) or CSV as LOVEU-TGVE publishes it.

    Rows without a caption, as the headings of its parts, are left out.

    Raises:
        ValueError: it is neither, or a column is missing.
    """
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = list(csv.DictReader(text.splitlines())) if path.suffix == ".csv" else json.loads(text)
        rows = [{key: str(value or "").strip() for key, value in row.items() if key} for row in rows]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path.name} is no list of objects in JSON ({error}).") from error
    missing = {VIDEO, CAPTION} - set().union(*rows) if rows else {VIDEO}
    if missing:
        raise ValueError(
            f"{path.name} has no column {', '.join(sorted(missing))}. It needs {VIDEO!r}, {CAPTION!r} and one or more "
            f"of {', '.join(KINDS.values())}."
        )
    return [row for row in rows if row.get(CAPTION)]


def list_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Return every edit that the prompts ask for, all methods of one before the next."""
    judges = json.dumps([options.clip_folder and options.clip_folder.name, options.flow, options.lpips])
    worked = options.frames, options.size, options.steps, options.learning_rate, options.ddim_steps, judges
    checkpoint = str(options.checkpoint) if str(options.checkpoint) == DEMO_MODEL else options.checkpoint.name
    for row in read_table(options.prompts):
        for kind, column in KINDS.items():
            for method in (options.methods or METHODS) if row.get(column) else ():
                yield Case(row[VIDEO], kind, method, row[CAPTION], row[column], checkpoint, *worked)


def find_video(folder: Path, name: str) -> Path:
    """Return the file of a video, anywhere below a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    for ending in ENDINGS:
        found = sorted(folder.rglob(f"{name.removesuffix(ending)}{ending}"))
        if found:
            return found[0]
    raise FileNotFoundError(f"there is no video {name} below {folder}")


def describe(case: Case) -> Workflow:
    """Return the graph of a case, for the builder of workflows."""
    how = METHODS[case.method]
    model = DEMO if case.checkpoint == DEMO_MODEL else checkpoint(case.checkpoint)
    task = Task(model, case.file, None, case.before, case.after, {}, {})
    clip_model = "Patch"
    nodes = [INFLATE, PATCH.but(**{key: value for key, value in how.items() if key in ("preset", "temporal")})]
    if how.get("tuned"):
        values = {"steps": case.steps, "learning_rate": case.learning_rate, "smoothing": how.get("smoothing", "none")}
        options = task.tuning_options(gradient_checkpointing=case.checkpoint != DEMO_MODEL)
        nodes += [options, task.tune(options="Options", **values)]
        clip_model = "Tune"
    nodes.append(invert_source(clip_model, steps=case.ddim_steps))
    texts = {"source_text": case.before, "edit_text": case.after}
    if how.get("control"):
        given = {"model": clip_model, "inversion": "Invert", "clip": "Model", "source_positive": SOURCE}
        nodes.append(ours("Control", "AttentionControl", **given, **texts))
        clip_model = "Control"
    if how.get("relation"):
        nodes += [*task.relation(), sample_tied(clip_model)]
    else:
        nodes.append(sample_edit(clip_model))
    folder, flow, lpips = json.loads(case.judges)
    judges = {"clip_folder": folder or "none", "lpips": lpips or "none", "flow": flow}
    scorecard = ours("Scorecard", "EditScorecard", source=task.pixels, edited="Decode edit", **texts, **judges)
    edit = [*save("edit", "Edit"), scorecard, show("Figures", "Scorecard", "data")]
    return [*task.nodes(), Group(""), *nodes, *edit]


def run_case(server: Server, case: Case, folder: Path, output: Path) -> dict[str, Any]:
    """Edit a clip in a server and return its row; the edit is saved as a video.

    Args:
        server: that runs.
        case: the edit.
        folder: of the clips.
        output: for the video.

    Raises:
        FileNotFoundError, ValueError: the clip is missing or cannot be read.
        GraphError, HostError, WorkflowError: the server could not do it.
    """
    frames, rate = read_clip(find_video(folder, case.video), case.frames)
    with tempfile.TemporaryDirectory() as place:
        fitted = Path(place) / case.file
        save_video(fitted, fit_square(frames, case.size), rate)
        server.upload(fitted, case.file)
    info = server.object_info()
    prompt = to_prompt(build(describe(case), info), info)
    run = server.run(prompt)
    output.mkdir(parents=True, exist_ok=True)
    (video,) = server.fetch(run, find_node(prompt, "Save edit"))
    (output / f"{case.name}.mp4").write_bytes(video)
    seconds = {prompt[key]["_meta"]["title"]: round(value, 1) for key, value in run.seconds.items() if key in prompt}
    card = json.loads(run.text(find_node(prompt, "Figures")))
    return {**asdict(case), **card, "seconds": {key: seconds.get(key) for key in ("Tune", "Invert", "Edit")}}


class Ledger:
    """The rows that are done, and the failures of this run.

    Args:
        path: of the rows.
        total: how many cases there are.
        done: how many were done before.
    """

    def __init__(self, path: Path, total: int, done: int):
        self.path, self.lock, self.failures = path, threading.Lock(), dict[Case, str]()
        self.bar = tqdm(total=total, initial=done, unit="edit")

    def add(self, case: Case, row: dict[str, Any] | None, error: str = "") -> None:
        """Keep what came of a case."""
        with self.lock:
            if row is None:
                self.failures[case] = error
            else:
                add_row(self.path, row)
            self.bar.update()


def attempt(server: Server, case: Case, options: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """Return a case's row, or why there is none."""
    try:
        return run_case(server, case, options.folder, options.output), ""
    except (GraphError, HostError, WorkflowError, OSError, ValueError, KeyError) as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0]


def run_on_servers(
    servers: Sequence[Server], cases: Sequence[Case], options: argparse.Namespace, ledger: Ledger
) -> None:
    """Run cases on some servers, each taking the next one as soon as it is free.

    A server that answers no more gets no further case, and the one it had goes to another.
    """
    free: Queue[Server | None] = Queue()
    left = list(servers)
    for server in servers:
        free.put(server)

    def work(case: Case) -> None:
        error = "no server answers"
        while (server := free.get()) is not None:
            row, error = attempt(server, case, options)
            if row is not None or server.answers():
                free.put(server)
                ledger.add(case, row, error)
                return
            left.remove(server)
            if not left:
                free.put(None)
        free.put(None)
        ledger.add(case, None, error)

    with ThreadPoolExecutor(len(servers)) as pool:
        for future in as_completed([pool.submit(work, case) for case in cases]):
            future.result()


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


def run_on_ray(cases: Sequence[Case], options: argparse.Namespace, ledger: Ledger) -> None:
    """Run cases on hosts that Ray places, one for each GPU; the queue is Ray's."""
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise SystemExit(
            "--ray needs the package ray, which is not installed: .venv/bin/python -m pip install 'ray[default]'; or "
            "name running servers by --servers."
        ) from error
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    hook = {"worker_process_setup_hook": "scripts.environment.register_pack"}
    ray.init(ignore_reinit_error=True, runtime_env={"env_vars": {"PYTHONPATH": paths}, **hook})
    count = int(ray.cluster_resources().get("GPU", 0))

    class Worker:
        """A host on one GPU."""

        def __init__(self, number: int):
            self.held = ExitStack()
            self.host = self.held.enter_context(start_host(BASE / f"ray_{number}", options))

        def run(self, case: Case) -> tuple[Case, dict[str, Any] | None, str]:
            """Run a case on it."""
            return case, *attempt(self.host, case, options)

        def stop(self) -> None:
            """End the host."""
            self.held.close()

    remote = ray.remote(Worker).options(num_gpus=1 if count else 0)
    workers = [remote.remote(number) for number in range(max(count, 1))]
    try:
        for came in ActorPool(workers).map_unordered(lambda worker, case: worker.run.remote(case), cases):
            ledger.add(*came)
    finally:
        ray.get([worker.stop.remote() for worker in workers])


def measure_clips(options: argparse.Namespace) -> int:
    """Run what is not done yet, write the table, and list what failed.

    Returns:
        The exit status: 1 where anything failed.
    """
    unknown = set(options.methods) - set(METHODS)
    if unknown:
        sys.exit(f"--methods {', '.join(sorted(unknown))}: there are {', '.join(METHODS)}.")
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
    ledger = Ledger(path, len(cases), len(cases) - len(left))
    if left:
        run_all(left, options, ledger)
    ledger.bar.close()
    done = load_rows(path, Case)
    rows = [done[case] for case in cases if case in done]
    options.document.parent.mkdir(parents=True, exist_ok=True)
    options.document.write_text(make_document(rows, ledger.failures, options), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    for case, reason in ledger.failures.items():
        say(f"Failed: {case.video}, {case.kind}, {case.method}: {reason}")
    say(f"{len(rows)} of {len(cases)} edits done. Wrote {options.document}")
    return int(bool(ledger.failures))


def run_all(cases: Sequence[Case], options: argparse.Namespace, ledger: Ledger) -> None:
    """Run cases where the command line says."""
    if options.ray:
        run_on_ray(cases, options, ledger)
    elif options.servers:
        servers = [Server(address.removeprefix("http://").rstrip("/")) for address in options.servers]
        silent = [server.address for server in servers if not server.answers()]
        if silent:
            sys.exit(f"--servers: no ComfyUI answers at {', '.join(silent)}.")
        run_on_servers(servers, cases, options, ledger)
    else:
        with start_host(BASE, options) as host:
            run_on_servers([host], cases, options, ledger)


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
        *(f"- Failed: {case.video}, {case.kind}, {case.method}: {reason}" for case, reason in failures.items()),
    ]
    return "\n".join(lines) + "\n"
