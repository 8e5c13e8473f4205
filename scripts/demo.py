"""Edit a clip in the real ComfyUI, from an empty machine: `python scripts/demo.py`.

Makes a virtual environment, gets ComfyUI (or uses the one that COMFYUI_PATH names), runs the main workflow on the demo
clip with the demo model, and writes the edited clip, a picture strip and report.json to --output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import environment

WORKFLOWS = environment.ROOT / "workflows"
CLIP = environment.ROOT / "demo" / "clips" / "red_circle.mp4"
OUTPUT = environment.ROOT / "output"


def read_setting(text: str) -> tuple[tuple[str, str], object]:
    """Read "Title.input=value"; the value is JSON, or else a string."""
    name, _, value = text.partition("=")
    title, _, key = name.partition(".")
    if not (title and key and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form Title.input=value")
    try:
        return (title, key), json.loads(value, parse_constant=refuse_constant)
    except json.JSONDecodeError:
        return (title, key), value


def refuse_constant(name: str) -> None:
    """Refuse NaN and infinity, which Python reads in JSON and which no input can be."""
    raise argparse.ArgumentTypeError(f"{name} is not a number that an input can have")


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="a video to edit, e.g. one of demo/clips (default the demo clip)")
    parser.add_argument("--prompt", help="what the clip shows")
    parser.add_argument("--edit", help="what the edited clip is to show")
    parser.add_argument("--checkpoint", type=Path, help="an SD1.x checkpoint to use instead of the demo model")
    parser.add_argument("--frames", type=int, help="how many frames to take (default 8, of a demo clip all)")
    parser.add_argument("--size", type=int, help="side in pixels it is cropped to (default 128; 512 with --checkpoint)")
    parser.add_argument("--workflow", type=Path, help="another workflow, or an edited copy (keep the titles)")
    parser.add_argument(
        "--set", type=read_setting, action="append", default=[], dest="settings", metavar="TITLE.INPUT=VALUE",
        help="set an input of a node, e.g. Edit.cfg=5; may be repeated",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the results (default output/)")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    parser.add_argument("--document", action="store_true", help="write what was measured into README.md and docs/")
    return parser


def main() -> int:
    """Read the command line, complete the environment and run the workflow."""
    parser = make_parser()
    options = parser.parse_args()
    if (options.checkpoint or options.size or options.frames) and not options.clip:
        options.clip = CLIP
    options.workflow = options.workflow or WORKFLOWS / f"{'' if options.checkpoint else 'demo_'}edit.json"
    for path in (options.clip, options.checkpoint, options.workflow):
        if path and not path.is_file():
            parser.error(f"there is no file {path}")
    if options.size is not None and (not 64 <= options.size <= 2048 or options.size % 8):
        parser.error(f"--size must be a multiple of 8 from 64 to 2048, got {options.size}")
    if options.frames is not None and options.frames < 1:
        parser.error(f"--frames must be at least 1, got {options.frames}")
    if options.checkpoint and options.checkpoint.suffix not in (".safetensors", ".ckpt"):
        parser.error(f"--checkpoint must be a .safetensors or .ckpt file, got {options.checkpoint.name}")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output cannot be made: {error}")
    notes = options.clip and options.clip.with_suffix(".json")  # as the clips in demo/clips have one
    if notes and notes.is_file():
        known = json.loads(notes.read_text(encoding="utf-8"))
        options.prompt = options.prompt or known.get("prompt")
        options.edit = options.edit or known.get("edit")
    if options.clip and not (options.prompt and options.edit):
        parser.error("--clip needs --prompt (what the clip shows) and --edit (what it is to show)")
    environment.stop_on_signals()
    environment.enter(__file__, sys.argv[1:])
    environment.register_pack()
    from consistent_video.scripts.edit import edit_clip

    return edit_clip(options)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
