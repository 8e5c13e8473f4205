"""The workflows as prompts of few steps, and what they saved."""

import json
from pathlib import Path

from consistent_video.demo.clips import save_video
from consistent_video.scripts.clips import fit_square, read_clip
from consistent_video.scripts.descriptions import describe_demo
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.graph import build
from consistent_video.scripts.host import Host
from consistent_video.scripts.workflow import find_node, replace_node, set_values, to_prompt

SIDE, DEMO_FRAMES = 64, 5  # pixels, half of the demo clips'; of their eight frames
PATIENCE = 900  # seconds; a loaded machine is many times slower
WALKED = ("Tune", "Tokens", "Invert", "Invert to reconstruct")  # titles of nodes that take steps
PREVIEWED = {("Preview", "every"): 2, ("Preview", "preview_steps"): 2}


def load_workflow(host: Host, name: str, steps: int = 3, **values) -> dict:
    """Return the prompt of a workflow, of its demo twin for "demo_", with few steps and values by "Title.input"."""
    path, info = ROOT / "workflows" / f"{name}.json", host.object_info()
    if path.is_file():
        workflow = json.loads(path.read_text(encoding="utf-8"))
    else:
        workflow = build(describe_demo(name.removeprefix("demo_")), info)
    prompt = to_prompt(workflow, info)
    file = prompt[find_node(prompt, "Source clip")]["inputs"]["file"]
    prompt = replace_node(prompt, "Source clip", "LoadVideo", {"file": file})  # the demo clip, reduced
    titles = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}
    quick = {(title, "steps"): steps for title in WALKED} | PREVIEWED
    quick = {(title, key): value for (title, key), value in quick.items() if key in titles.get(title, {})}
    return set_values(prompt, {**quick, **{tuple(key.split(".")): value for key, value in values.items()}})


def small_clip(path: Path, num_frames: int) -> Path:
    """Write the first frames of the demo clip of that name, reduced: a workflow then runs in a fraction of the time."""
    frames, rate = read_clip(ROOT / "demo" / "clips" / path.name, num_frames)
    save_video(path, fit_square(frames, SIDE), rate)
    return path


def saved_frames(host: Host, prompt: dict, run, title: str):
    (file,) = host.files(run, find_node(prompt, title))
    return read_clip(file)[0]


SD15 = {  # those by real loaders or of the most frames, in this order: the first save what the others load
    "edit": {},
    "ei2": {},
    "saved_tune": {},
    "tuning_settings": {"Tune.steps": 2, "Tune.snapshots": "", "Options.warmup_steps": 1, "Save tune.with_state": True}
    | {"Region.x": 8, "Region.y": 8}
    | {f"{title}.{side}": 64 for title in ("Nothing", "Rectangle") for side in ("width", "height")},
    "resume_tune": {"Load tune.tune_name": "clip_00002_.safetensors", "Tune.steps": 3, "Tune.snapshots": ""},
    "controlnet": {},
    "long_clip": {"Windows.context_length": 2, "Windows.context_overlap": 1},
}
