"""The demo model and its drawn world, to make edits in this process and judge them from their pixels."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..demo.clips import RECIPES, draw_recipe
from ..demo.reader import ShapeReader, find_object
from ..modules.host.demo import load_demo_model
from ..modules.host.patch import attach, inflate
from ..modules.motion import Motion, motion_of
from ..modules.presets import AS_PRESET, EI2, method
from ..scripts.clips import read_clip
from ..scripts.environment import ROOT
from ..scripts.judge import get_motion_errors, read_edit

CLIPS = ROOT / "demo" / "clips"
READER = ROOT / "demo" / "weights" / "reader.safetensors"
Row = dict[str, Any]


def load_clip(name: str) -> tuple[Tensor, dict[str, Any]]:
    """Return a demo clip's frames (f, 3, h, w) in 0 ... 1, and what is noted of it: "prompt", "edit" and the truth."""
    notes = json.loads((CLIPS / f"{name}.json").read_text(encoding="utf-8"))
    return read_clip(CLIPS / f"{name}.mp4")[0], notes


def load_motion(name: str) -> Motion:
    """Return the exact motion of a demo clip, as it was drawn."""
    clip = draw_recipe(next(recipe for recipe in RECIPES if recipe.name == name))
    return motion_of(clip.flow, clip.flow_back)


class World:
    """The demo model and what is read from its clips."""

    def __init__(self) -> None:
        self.model, self.text, self.vae = load_demo_model()
        self.reader = ShapeReader.load(READER)

    def prompt(self, words: str) -> list:
        """Encode a prompt."""
        return self.text.encode_from_tokens_scheduled(self.text.tokenize(words))

    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Encode frames (f, 3, h, w) in 0 ... 1."""
        return {"samples": self.vae.encode(frames.movedim(1, -1))}

    def decode(self, latent: dict[str, Any]) -> Tensor:
        """Decode to frames (f, 3, h, w) in 0 ... 1."""
        return self.vae.decode(latent["samples"]).movedim(-1, 1).cpu()

    def patched(self, norm: str = AS_PRESET, spectral: str = AS_PRESET, r: int = 4) -> ModelPatcher:
        """Return EI²'s clip model, with another norm in its temporal modules if given."""
        return attach(inflate(self.model), *method(EI2, r, norm=norm, spectral=spectral))


def judge(edit: Tensor, source: Tensor, prompt: str, reader: ShapeReader) -> Row:
    """Return what is read from an edit, frames (f, 3, h, w) in 0 ... 1: shares of the frames, pixels, and flicker.

    Flicker is the standard deviation over frames of the change of the object's area against the source's, as a part of
    its mean area.
    """
    read = read_edit(edit, prompt, reader)
    obeyed = {
        what: sum(word == name for word in read[what]) / len(edit) for what, name in read["wanted"].items() if name
    }
    motion = [error for error in get_motion_errors(edit, source) if error is not None]
    areas, before = (find_object(frames)[0].sum(dim=(1, 2)) for frames in (edit, source))
    share = areas / before
    return {
        "obeyed": fmean(obeyed.values()),
        "motion_error": fmean(motion) if motion else None,
        "flicker": (share.diff().std() / share.mean()).item(),
    }
