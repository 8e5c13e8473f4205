"""The template browser's picture of each workflow: what comes of it, by the demo model."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from ..demo.clips import save_video
from .clips import read_clip
from .descriptions import describe_demo
from .descriptions_of_flows import BY_DEMO_MODEL, FLOWS
from .environment import ROOT, say
from .graph import build
from .host import Host
from .workflow import Json, find_node, is_link, set_values, to_prompt

CLIPS = ROOT / "demo" / "clips"
FRAMES = 4  # of the clip, spread over it: the picture shows the first and the last
STEPS, TUNING_STEPS = 10, 30  # at most: a small picture tells no more of more
SIDE, MARGIN, TITLE = 480, 6, 64  # pixels
PAPER, INK, PALE = "#171718", "#f2f2f2", "#9aa0a6"
QUALITY = 85
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
STYLE = 2  # to be raised where the pictures are to look otherwise

SAME = {"demo_ei2": "ei2"}  # whose demo twin is that of another
SAME |= dict.fromkeys(("demo_edit", "edit_sdxl", "edit_clip", "demo_edit_clip"), "edit")
SAME |= dict.fromkeys(FLOWS.keys() - BY_DEMO_MODEL.keys(), "edit_sd3")
SHOWN = {  # title of the node whose output the picture shows, where it is not the saved edit
    "saved_tune": "Save edit tied",
    "reconstruction": "Plot",
    "tuning_settings": "Loss plot",
    "resume_tune": "Loss plot",
}
ALSO = {"ei2": "Save tune", "tuning_settings": "Save tune", "tune_a_video": "Export"}  # what other workflows load
AFTER = {"saved_tune": "ei2", "reconstruction": "ei2", "import_tune_a_video": "tune_a_video"}
AFTER["resume_tune"] = "tuning_settings"
SMALL = {
    "long_clip": {("Windows", "context_length"): 3, ("Windows", "context_overlap"): 1},
    "tuning_settings": {("Options", "warmup_steps"): 5, ("Save tune", "with_state"): True},
    "resume_tune": {("Tune", "steps"): TUNING_STEPS + 10},
}
CAPTIONS = {
    "demo_edit_clip": "Start here: no download",
    "demo_edit": "The main graph, no download",
    "demo_ei2": "EI², tuned, no download",
    "edit_clip": "Your clip, one node",
    "edit": "Your clip, the main graph",
    "edit_sdxl": "The main graph with SDXL",
    "edit_sd3": "The main graph with SD3",
    "edit_flux": "The main graph with Flux",
    "edit_qwen_image": "With Qwen-Image",
    "edit_z_image": "With Z-Image",
    "ei2": "EI²: tuned on the clip",
    "inr_smooth": "INR Smooth: its loss",
    "tune_a_video": "Tune-A-Video",
    "import_tune_a_video": "A UNet from Tune-A-Video",
    "saved_tune": "Edits with saved tuning",
    "resume_tune": "Go on with a tuning",
    "tuning_settings": "A region, all settings",
    "long_clip": "A long clip in windows",
    "controlnet": "Steered by a ControlNet",
    "attention_control": "Follows source attention",
    "custom_sampler": "By SamplerCustomAdvanced",
    "reconstruction": "How well it comes back",
    "prompt_tokens": "Learned prompt tokens",
    "steady_frames": "Takes the flicker out",
    "smoothvideo": "SmoothVideo",
    "controlvideo": "ControlVideo",
    "video_p2p": "Video-P2P",
    "vid2vid_zero": "Vid2Vid-zero",
    "fatezero": "FateZero",
    "slicedit": "Slicedit",
    "stem_inversion": "STEM-Inversion",
    "inr_on_controlvideo": "INR on ControlVideo",
    "inr_on_fatezero": "INR on FateZero",
    "inr_on_video_p2p": "INR on Video-P2P",
}


def draw_results(host: Host, folder: Path, names: Iterable[str], again: bool = False) -> None:
    """Run workflows with the demo model and draw what comes of them.

    What a picture shows is noted in its file; one that shows it already is left alone, so that a run that was broken
    off goes on where it was.

    Args:
        host: the server; its base directory keeps what one workflow saves for another.
        folder: of the workflows and their pictures.
        names: of the workflows.
        again: draw those as well that are as they should be.
    """
    wanted: dict[str, list[str]] = {}
    for name in names:
        wanted.setdefault(SAME.get(name, name), []).append(name)
    place_clips(host.base / "input")
    for run in in_order(wanted):
        prompt = make_prompt(host, run)
        marks = {name: mark(prompt, name) for name in wanted.get(run, [])}
        stale = {name for name in marks if again or read_mark(folder / f"{name}.jpg") != marks[name]}
        if not stale and (run in wanted or saved_by(host, run)):
            continue
        file = run_once(host, run, prompt)
        for name in sorted(stale):
            picture = draw_result(file, host.base / "input" / clip_of(prompt), CAPTIONS[name])
            picture.save(folder / f"{name}.jpg", quality=QUALITY, optimize=True, comment=marks[name].encode())


def run_once(host: Host, run: str, prompt: Json) -> Path:
    """Return the file that a prompt saves, kept from an earlier run of the very same."""
    folder = host.base / "results"
    kept = next(folder.glob(f"{digest(prompt)}.*"), None)
    if kept is None or (run in ALSO and not saved_by(host, run)):
        say(f"Running {run}")
        (file, *_) = host.files(host.run(prompt), find_node(prompt, SHOWN.get(run, "Save edit")))
        kept = folder / f"{digest(prompt)}{file.suffix}"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(file, kept)
    return kept


def in_order(wanted: Iterable[str]) -> Iterator[str]:
    """Yield runs, each after the one that saves what it loads."""
    before = {AFTER[name] for name in wanted if name in AFTER}
    yield from sorted({*wanted, *before}, key=lambda name: (name in AFTER, name not in before, name))


def saved_by(host: Host, run: str) -> bool:
    """Whether what other workflows load of a run is there."""
    return any((host.base / "models" / "consistent_video").glob(f"{run}_00001_*"))


def place_clips(folder: Path) -> None:
    """Put a few frames of each demo clip, spread over it, into a folder."""
    for path in sorted(CLIPS.glob("*.mp4")):
        frames, rate = read_clip(path)
        chosen = torch.linspace(0, len(frames) - 1, FRAMES).round().long()
        save_video(folder / path.name, frames[chosen], rate)


def make_prompt(host: Host, run: str) -> Json:
    """Return the demo twin of a workflow with few steps, of it what the picture needs."""
    info = host.object_info()
    prompt = to_prompt(build(describe_demo(run), info), info)
    titles = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}
    caps = {title: TUNING_STEPS if title in ("Tune", "Tokens") else STEPS for title in titles}
    few: dict[tuple[str, str], object] = {
        (title, "steps"): min(inputs["steps"], caps[title]) for title, inputs in titles.items() if "steps" in inputs
    }
    if "Load tune" in titles:
        few["Load tune", "tune_name"] = f"{AFTER[run]}_00001_.safetensors"
    if "Import" in titles:
        few["Import", "file"] = f"{AFTER[run]}_00001_/unet/diffusion_pytorch_model.safetensors"
    if run in ALSO:
        few[ALSO[run], "filename_prefix"] = run
    prompt = set_values(prompt, {**few, **SMALL.get(run, {})})
    for node in prompt.values():
        node["inputs"].pop("preview", None)
    return needed(prompt, [SHOWN.get(run, "Save edit"), *([ALSO[run]] if run in ALSO else [])])


def needed(prompt: Json, titles: Iterable[str]) -> Json:
    """Return of a prompt the nodes of some titles and all that they need."""
    waiting = [find_node(prompt, title) for title in titles]
    found: set[str] = set()
    while waiting:
        key = waiting.pop()
        found.add(key)
        links = [value[0] for value in prompt[key]["inputs"].values() if is_link(value)]
        waiting += [link for link in links if link not in found]
    return {key: node for key, node in prompt.items() if key in found}


def clip_of(prompt: Json) -> str:
    """Return the file of a prompt's source clip."""
    return prompt[find_node(prompt, "Source clip")]["inputs"]["file"]


def mark(prompt: Json, name: str) -> str:
    """Return a short text that changes where what the picture of a workflow shows does."""
    return digest([prompt, CAPTIONS[name], STYLE])


def digest(value: object) -> str:
    """Return a short text that stands for a value of JSON, and for the frames that it is made of."""
    return hashlib.sha256(json.dumps([value, FRAMES], sort_keys=True).encode()).hexdigest()[:16]


def read_mark(path: Path) -> str:
    """Return the mark in a picture's file, "" where there is none."""
    if not path.is_file():
        return ""
    with Image.open(path) as picture:
        return picture.info.get("comment", b"").decode(errors="replace")


def draw_result(file: Path, source: Path, caption: str) -> Image.Image:
    """Return the picture of a result: a plot, or the source on the left and the edit on the right.

    Args:
        file: a saved video or picture.
        source: the clip that was edited.
        caption: what the workflow is for.
    """
    picture = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((SIDE / 2, TITLE / 2), caption, INK, fit_font(caption, SIDE - 4 * MARGIN), anchor="mm")
    font = ImageFont.truetype(FONT, 19)
    if file.suffix != ".mp4":
        with Image.open(file) as opened:
            plot = opened.convert("RGB")
            plot.thumbnail((SIDE - 2 * MARGIN, SIDE - TITLE - 36))
            picture.paste(plot, ((SIDE - plot.width) // 2, TITLE + (SIDE - TITLE - 30 - plot.height) // 2))
        pen.text((SIDE / 2, SIDE - 16), "demo model", PALE, font, anchor="mm")
        return picture
    side = (SIDE - TITLE - 30 - MARGIN) // 2
    for column, (clip, label) in enumerate(((source, "source"), (file, "edit, demo model"))):
        frames = read_clip(clip)[0]
        left = SIDE * column // 2 + (SIDE // 2 - side) // 2
        for row, frame in enumerate((frames[0], frames[-1])):
            tile = Image.fromarray((rearrange(frame, "c h w -> h w c") * 255).round().byte().numpy())
            picture.paste(tile.resize((side, side), Image.Resampling.LANCZOS), (left, TITLE + row * (side + MARGIN)))
        pen.text((SIDE * (2 * column + 1) / 4, SIDE - 16), label, PALE, font, anchor="mm")
    return picture


def fit_font(text: str, width: int, largest: int = 34) -> ImageFont.FreeTypeFont:
    """Return the largest font, up to a size, in which a line of text is at most so many pixels wide."""
    for size in range(largest, 10, -1):
        font = ImageFont.truetype(FONT, size)
        if font.getlength(text) <= width:
            break
    return font
