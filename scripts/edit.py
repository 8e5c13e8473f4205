"""Run the main workflow on a clip in the real ComfyUI, and report what came of it."""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..demo.clips import save_video
from ..demo.reader import ShapeReader
from ..modules.files.strict_json import to_json
from .clips import fit_square, read_clip, save_animation, save_strip
from .environment import ROOT, SetupError, comfyui_tree, say
from .host import Host, device_arguments
from .judge import get_mean, get_motion_errors, get_psnr, get_turns, list_remarks, read_edit
from .regions import write_region
from .server import GraphError, HostError, Progress, Run
from .workflow import WorkflowError, find_node, replace_node, set_values, to_prompt

BASE = ROOT / ".comfyui-data"
CLIPS = ROOT / "demo" / "clips"
READER = ROOT / "demo" / "weights" / "reader.safetensors"
PLACED = "clip.mp4"
SIDE, CHECKPOINT_SIDE, FRAMES = 128, 512, 8
GIVEN = {"clip": ("Source clip", "file"), "prompt": ("Source prompt", "text"), "edit": ("Edited prompt", "text")}
SAVED = {"edit": "Save edit", "reconstruction": "Save reconstruction", "autoencoder": "Save autoencoder round trip"}
FOREIGN = "only for a demo clip with the demo model, whose world the readers know"
Json = dict[str, Any]


class Display:
    """Shows how far a prompt is: on a terminal a line for each stage that counts up, elsewhere one now and then."""

    def __init__(self, prompt: Json, pause: float = 10) -> None:
        self.titles = {key: node["_meta"]["title"] for key, node in prompt.items()}
        self.pause, self.began, self.shown, self.node = pause, time.monotonic(), 0.0, ""
        self.is_terminal = sys.stdout.isatty()

    def __call__(self, progress: Progress) -> None:
        """Show a step."""
        is_new, self.node = progress.node != self.node, progress.node
        elapsed = time.monotonic() - self.began
        if not (is_new or self.is_terminal or elapsed - self.shown > self.pause):
            return
        self.shown = elapsed
        steps = f"  {progress.value:.0f}/{progress.total:.0f}" if progress.total > 1 else ""
        line = f"{elapsed:7.1f} s  {self.titles.get(progress.node, progress.node)}{steps}"
        if self.is_terminal:
            sys.stdout.write(("\n" if is_new else "\r") + line.ljust(60))
            sys.stdout.flush()
        else:
            say(line)


def edit_clip(options: argparse.Namespace) -> int:
    """Run the workflow as the command line says; returns the exit status, 1 where ComfyUI failed."""
    arguments = ("--cpu",) if options.cpu else device_arguments()
    try:
        workflow = json.loads(options.workflow.read_text(encoding="utf-8"))
        place_inputs(options, workflow)
    except ValueError as error:
        say(f"{error}")
        return 1
    say(f"Starting ComfyUI {'on the CPU' if arguments else 'on the accelerator'}")
    try:
        with Host(comfyui_tree(), BASE, arguments) as host:
            prompt = make_prompt(workflow, host.object_info(), options)
            for title in (*SAVED.values(), "Inversion report"):
                find_node(prompt, title)
            run = host.run(prompt, Display(prompt))
            say("\nMeasuring")
            report = make_report(host, prompt, run, options)
    except (GraphError, HostError, SetupError, WorkflowError) as error:
        say(f"\n{error}\nComfyUI's log: {BASE / 'server.log'}")
        return 1
    show_report(report, options.output)
    if options.document:
        document(report, options.output)
    return 0


def is_drawn(clip: Path | None) -> bool:
    """Whether a clip is one of the demo's, or none was given and it is the demo clip."""
    return clip is None or clip.resolve().parent == CLIPS


def place_inputs(options: argparse.Namespace, workflow: Json) -> None:
    """Put the clip, and a checkpoint if one is given, where ComfyUI finds them."""
    folders = [BASE / "input", BASE / "models" / "checkpoints"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    if options.clip and (options.checkpoint or options.size or options.frames or not is_drawn(options.clip)):
        frames, rate = read_clip(options.clip, options.frames or FRAMES)
        save_video(folders[0] / PLACED, fit_square(frames, get_side(options)), rate)
    else:
        (values,) = (node["widgets_values"] for node in workflow["nodes"] if node.get("title") == "Source clip")
        clip = options.clip or CLIPS / values[0]
        shutil.copyfile(clip, folders[0] / (PLACED if options.clip else clip.name))
    if options.checkpoint:
        check_checkpoint(options.checkpoint)
        lend_file(options.checkpoint.resolve(), folders[1] / options.checkpoint.name)


def check_checkpoint(path: Path) -> None:
    """Raise ValueError where a checkpoint in safetensors is damaged, which shows without reading its weights."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or not a checkpoint ({error}). Copy it again.") from error


def get_side(options: argparse.Namespace) -> int:
    """Return the side in pixels that a clip is cropped to."""
    return options.size or (CHECKPOINT_SIDE if options.checkpoint else SIDE)


def lend_file(source: Path, target: Path) -> None:
    """Make a large file appear at `target` without copying it, where the file system allows that."""
    if target.resolve() == source:
        return
    target.unlink(missing_ok=True)
    for place in (os.symlink, os.link, shutil.copyfile):
        try:
            place(source, target)
            return
        except OSError as error:
            failure = error
    raise failure


def make_prompt(workflow: Json, object_info: Json, options: argparse.Namespace) -> Json:
    """Convert the workflow and put in what the command line changes."""
    prompt = to_prompt(workflow, object_info)
    if options.checkpoint:
        prompt = replace_node(prompt, "Model", "CheckpointLoaderSimple", {"ckpt_name": options.checkpoint.name})
    if options.clip:
        prompt = replace_node(prompt, "Source clip", "LoadVideo", {"file": PLACED})
    given = {"clip": options.clip and PLACED, "prompt": options.prompt, "edit": options.edit}
    changes = {GIVEN[name]: value for name, value in given.items() if value}
    titles, side = {node["_meta"]["title"] for node in prompt.values()}, get_side(options)
    as_it_is = {("Trim", "duration"): 0.0, ("Scale", "width"): side, ("Scale", "height"): side}
    as_it_is[("First frames", "length")] = options.frames or FRAMES
    changes |= {key: value for key, value in as_it_is.items() if key[0] in titles}  # the file is as wanted already
    return set_values(prompt, {**changes, **dict(options.settings)})


def make_report(host: Host, prompt: Json, run: Run, options: argparse.Namespace) -> Json:
    """Copy the saved clips to the output folder, measure them, write pictures and report.json; return the report."""
    titles = {node["_meta"]["title"] for node in prompt.values()}
    given = {name: prompt[find_node(prompt, title)]["inputs"][key] for name, (title, key) in GIVEN.items()}
    options.output.mkdir(parents=True, exist_ok=True)
    files = {"source": host.base / "input" / given["clip"]}
    for name, title in SAVED.items():
        (files[name],) = host.files(run, find_node(prompt, title))
    for name, file in files.items():
        shutil.copyfile(file, options.output / f"{name}.mp4")
    clips = {name: read_clip(file)[0] for name, file in files.items()}
    num_frames = {name: len(frames) for name, frames in clips.items()}
    clips = {name: frames[: min(num_frames.values())] for name, frames in clips.items()}
    stats = host.get("system_stats")
    is_foreign = bool(options.checkpoint) or not is_drawn(options.clip) or get_side(options) != SIDE
    tuning = {}
    if "Tune report" in titles:
        tuning["loss"] = json.loads(run.text(find_node(prompt, "Tune report")))["loss"]
    report: Json = {
        **given,
        "clip": options.clip.name if options.clip else given["clip"],
        "model": options.checkpoint.name if options.checkpoint else "demo model",
        "frames": num_frames,
        "device": stats["devices"][0]["name"],
        "versions": {"comfyui": stats["system"]["comfyui_version"], "torch": stats["system"]["pytorch_version"]},
        **tuning,
        "inversion": json.loads(run.text(find_node(prompt, "Inversion report"))),
        "reconstruction_psnr": get_psnr(clips["reconstruction"], clips["source"]),
        "autoencoder_psnr": get_psnr(clips["autoencoder"], clips["source"]),
        **judge_edit(clips, given["edit"], is_foreign),
        "seconds": {prompt[node]["_meta"]["title"]: round(spent, 2) for node, spent in run.seconds.items()},
    }
    report["remarks"] = list_remarks(report)
    shown = {name: clips[name] for name in ("source", "reconstruction", "edit")}
    save_strip(options.output / "strip.png", shown)
    save_animation(options.output / "animation.webp", shown, read_clip(options.output / "edit.mp4")[1])
    (options.output / "report.json").write_text(to_json(report, indent=2), encoding="utf-8")
    return report


def judge_edit(clips: dict[str, torch.Tensor], prompt: str, is_foreign: bool) -> Json:
    """Return what the readers of the drawn world see in the edit, or for foreign material why they are not asked.

    Args:
        clips: frames (f, 3, h, w) in [0, 1] by name.
        prompt: the edited prompt.
        is_foreign: whether the clip or the model is not the demo's.
    """
    if is_foreign:
        return {"left_out": {"edited": FOREIGN, "motion_error": FOREIGN}}
    errors = get_motion_errors(clips["edit"], clips["source"])
    edited = read_edit(clips["edit"], prompt, ShapeReader.load(READER))
    turns = get_turns(clips["edit"], edited["wanted"]["shape"])
    return {"edited": edited, "motion_error": get_mean(errors), "motion_errors": errors, "turns": turns}


def summarise(report: Json) -> dict[str, str]:
    """Return what matters of a report, in words by name."""
    rows = {}
    if "loss" in report:
        loss = report["loss"]
        tenth = max(1, len(loss) // 10)
        rows["Loss"] = (
            f"{fmean(loss[:tenth]):.4f} -> {fmean(loss[-tenth:]):.4f}, means over {tenth} of {len(loss)} steps"
        )
    autoencoder = f"the autoencoder alone {report['autoencoder_psnr']} dB"
    rows["Reconstruction"] = f"{report['reconstruction_psnr']} dB; {autoencoder}"
    for what, name in report.get("edited", {}).get("wanted", {}).items():
        read = report["edited"][what]
        rows[what.capitalize()] = f"{name or 'none'} wanted, read in {read.count(name)} of {len(read)} frames"
    if "motion_error" in report:
        rows["Motion error"] = f"{report['motion_error']} pixels off the source's path, mean over frames"
    turns = [abs(turn) for turn in report.get("turns", []) if turn is not None]
    if turns:
        rows["Turning"] = f"{max(turns)} degrees from one frame to the next at most, {fmean(turns):.1f} on average"
    rows |= {name: f"left out: {reason}" for name, reason in report.get("left_out", {}).items()}
    return rows


def show_report(report: Json, output: Path) -> None:
    """Print what matters of a report and where everything lies."""
    for name, words in summarise(report).items():
        say(f"{name:<15} {words}")
    for remark in report["remarks"]:
        say(f"- {remark}")
    say(f"Seconds         {sum(report['seconds'].values()):.0f}")
    for name in ("edit.mp4", "animation.webp", "strip.png", "report.json"):
        say(f"{(output / name).resolve()}")


def document(report: Json, output: Path) -> None:
    """Write a report into README.md, between its two marks, and its pictures into docs/."""
    for name in ("strip.png", "animation.webp"):
        shutil.copyfile(output / name, ROOT / "docs" / f"demo_{name}")
    rows = "\n".join(f"| {name} | {words} |" for name, words in summarise(report).items())
    remarks = "\n".join(f"- {remark}" for remark in report["remarks"])
    table = f'| "{report["prompt"]}" | edited to "{report["edit"]}" |\n|---|---|\n{rows}\n\n{remarks}'
    picture = "![Source, reconstruction and edit, frame by frame](docs/demo_strip.png)"
    write_region("measured", f"{picture}\n\n{table}")
