"""One edit of a real clip: what LOVEU-TGVE's table asks for, its graph, and its run in a server."""

import argparse
import csv
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..demo.clips import save_video
from ..scripts.clips import fit_square, read_clip
from ..scripts.descriptions import DEMO_TASK, SD15_TASK
from ..scripts.graph import Group, Workflow, build, inputs_of
from ..scripts.parts import (
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
from ..scripts.server import Server
from ..scripts.systems import COMPARED, describe_system
from ..scripts.workflow import default_value, find_node, to_prompt

VIDEO, CAPTION = "Video name", "Our GT caption"
KINDS = {
    "style": "Style Change Caption",
    "object": "Object Change Caption",
    "background": "Background Change Caption",
    "multiple": "Multiple Changes Caption",
}
ENDINGS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")
DEMO_MODEL = "demo"
REVISION = 3  # raised when the same case is edited by another graph
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
        raise ValueError(f"{path.name} is not a list of objects in JSON ({error}).") from error
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
    """Return the file of a video, anywhere below a folder; FileNotFoundError where there is none."""
    for ending in ENDINGS:
        found = sorted(folder.rglob(f"{name.removesuffix(ending)}{ending}"))
        if found:
            return found[0]
    raise FileNotFoundError(f"there is no video {name} below {folder}")


def describe(case: Case) -> Workflow:
    """Return the graph of a case, for the builder of workflows."""
    is_demo = case.checkpoint == DEMO_MODEL
    known = DEMO_TASK if is_demo else replace(SD15_TASK, model=checkpoint(case.checkpoint))
    tuning = {"steps": case.steps, "learning_rate": case.learning_rate}
    task = replace(known, file=case.file, crop=None, before=case.before, after=case.after, tuning=tuning)
    system = COMPARED.get(case.method)
    method = describe_system(task, system, case.ddim_steps) if system else describe_method(task, case)
    folder, flow, lpips = json.loads(case.judges)
    judges = {"clip_folder": folder or "none", "lpips": lpips or "none", "flow": flow}
    texts = {"source_text": case.before, "edit_text": case.after}
    scorecard = ours("Scorecard", "EditScorecard", source=task.pixels, edited="Decode edit", **texts, **judges)
    return [*method, *save("edit", "Edit"), scorecard, show("Figures", "Scorecard", "data")]


def describe_method(task: Task, case: Case) -> Workflow:
    """Return the graph of one of METHODS, to the latent of its edit."""
    how = METHODS[case.method]
    clip_model = "Patch"
    nodes = [INFLATE, PATCH.but(**{key: value for key, value in how.items() if key in ("preset", "temporal")})]
    if how.get("tuned"):
        nodes += [task.tuning_options(), task.tune(options="Options", smoothing=how.get("smoothing", "none"))]
        clip_model = "Tune"
    nodes.append(invert_source(clip_model, steps=case.ddim_steps))
    if how.get("control"):
        given = {"model": clip_model, "inversion": "Invert", "clip": "Model", "source_positive": SOURCE}
        nodes.append(ours("Control", "AttentionControl", **given, source_text=case.before, edit_text=case.after))
        clip_model = "Control"
    if how.get("relation"):
        nodes += [*task.relation(), sample_tied(clip_model)]
    else:
        nodes.append(sample_edit(clip_model))
    return [*task.nodes(), Group(""), *nodes]


def run_case(server: Server, case: Case, folder: Path, output: Path) -> dict[str, Any]:
    """Edit a clip in a server and return its row; the edit is saved as a video.

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
    took = {key: seconds.get(key) for key in ("Tune", "Invert", "Edit")}
    return {**asdict(case), **card, "seconds": took, "settings": list_settings(prompt, info)}


def list_settings(prompt: dict[str, Any], info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what the pack's nodes of a prompt were set to, by title, where it differs from their defaults."""
    found = {}
    for node in prompt.values():
        kinds = {name: (kind, options) for name, kind, options in inputs_of(info[node["class_type"]])}
        found[node["_meta"]["title"]] = {
            name: value
            for name, value in node["inputs"].items()
            if node["class_type"].startswith("ConsistentVideo_")
            and not isinstance(value, list)
            and value != default_value(*kinds[name])
        }
    return {title: values for title, values in found.items() if values}
