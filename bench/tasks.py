"""Edits of drawn clips: what is to change, what a right edit looks like, and how far one is from that."""

import math
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..demo.captions import caption
from ..demo.clips import Recipe, build_scene, draw_recipe
from ..demo.palette import BACKGROUNDS, COLOURS, SHAPES, STYLES, TEXTURES, WORDS
from ..demo.reader import ShapeReader, find_object, read_colour
from ..demo.shapes import EXTENT
from ..demo.world import SIDE, Clip, is_held_out
from ..modules.judging.scorecard import background_psnr, texture_kept, warp_error
from ..modules.motion.flow import motion_of

KINDS = ("colour", "shape", "texture", "background", "style", "several")
KEEP_GROUND = ("colour", "shape", "texture")
FRAMES = 8
SIZES, STRIDE, PAN, LEAN = (19.0, 28.0), (20.0, 44.0), 20.0, 15.0
BORDER = 5  # pixels about the object that belong to neither it nor the ground
LEAST_AREA = 0.05  # of the wanted object's, below which there is none
LOST = SIDE / 2  # pixels that a frame without an object counts as motion error
VALIDATION, HELD_OUT = 10_000, 20_000  # seeds from here on; the model was trained from seed 0


@dataclass(frozen=True)
class Task:
    """An edit of a drawn clip.

    Attributes:
        kind: one of KINDS.
        source, wanted: how the clip is drawn, and how the edited one would be.
    """

    kind: str
    source: Recipe
    wanted: Recipe

    @property
    def prompts(self) -> tuple[str, str]:
        """The captions of source and edit."""
        return caption(build_scene(self.source))[0], caption(build_scene(self.wanted))[0]

    @property
    def changed(self) -> list[str]:
        """The attributes that the edit changes."""
        return [name for name in WORDS if getattr(self.source, name) != getattr(self.wanted, name)]


def pairs(held_out: bool) -> list[tuple[str, str]]:
    """Return the (colour, shape) pairs that the model was never shown, or the others."""
    every = torch.cartesian_prod(torch.arange(len(COLOURS)), torch.arange(len(SHAPES)))
    chosen = every[is_held_out(every[:, 0], every[:, 1]) == held_out]
    return [(COLOURS[colour], SHAPES[shape]) for colour, shape in chosen.tolist()]


def draw_task(kind: str, number: int, held_out: bool) -> Task:
    """Draw an edit at random, the same for the same arguments.

    The wanted object is a pair of colour and shape that the model was never shown, for validation one that it was.

    Args:
        kind: one of KINDS.
        number: which of them.
        held_out: whether it is for the measurement or for validation.
    """
    seed = (HELD_OUT if held_out else VALIDATION) + len(KINDS) * number + KINDS.index(kind)
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def pick(words: tuple[str, ...] | list, *but: str) -> Any:
        left = [word for word in words if word not in but]
        return left[int(torch.randint(len(left), (), generator=generator))]

    colour, shape = pick(pairs(held_out))
    sizes = uniform(*SIZES), uniform(*SIZES)
    margin = EXTENT * max(sizes)
    angle, stride = uniform(0, 2 * math.pi), uniform(*STRIDE)
    middle = [uniform(margin + stride / 2, SIDE - margin - stride / 2) for _ in range(2)]
    step = (stride / 2 * math.cos(angle), stride / 2 * math.sin(angle))
    wanted = Recipe(
        name=f"{kind}_{number}",
        shape=shape,
        colour=colour,
        edit="",
        frames=FRAMES,
        start=(middle[0] - step[0], middle[1] - step[1]),
        end=(middle[0] + step[0], middle[1] + step[1]),
        texture=pick(TEXTURES, *(("plain",) if kind == "texture" else TEXTURES[1:])),
        background=pick(BACKGROUNDS),
        style=pick(STYLES, *(("flat",) if kind == "style" else STYLES[1:])),
        size=sizes,
        angle=(uniform(-LEAN, LEAN), uniform(-LEAN, LEAN)),
        pan=(uniform(-PAN, PAN), uniform(-PAN, PAN)) if uniform(0, 1) < 0.5 else (0.0, 0.0),
        seed=seed,
    )
    before: dict[str, Any] = {}
    if kind in ("colour", "several"):
        before["colour"] = pick(COLOURS, colour)
    if kind in ("shape", "several"):
        before["shape"] = pick(SHAPES, shape)
    if kind in ("background", "several"):
        before["background"] = pick(BACKGROUNDS, wanted.background)
    if kind == "texture":
        before["texture"] = "plain"
    if kind == "style":
        before["style"] = "flat"
    return Task(kind, replace(wanted, **before), wanted)


def list_tasks(count: int, held_out: bool, kinds: tuple[str, ...] = KINDS) -> dict[str, Task]:
    """Return so many edits of each kind by their names.

    Raises:
        ValueError: there is no such kind.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"--kinds {', '.join(sorted(unknown))}: there are {', '.join(KINDS)}.")
    return {f"{kind}_{n}": draw_task(kind, n, held_out) for n in range(count) for kind in kinds}


class Truth:
    """The drawn clips of an edit, and what is exactly known of them.

    Attributes:
        source, wanted: the clips.
        motion: of the wanted clip.
        apart: where neither the source's object nor the wanted one lies, shape (f, h, w), 0 or 1.
    """

    def __init__(self, task: Task):
        self.task = task
        self.source: Clip = draw_recipe(task.source)
        self.wanted: Clip = draw_recipe(task.wanted)
        self.motion = motion_of(self.wanted.flow, self.wanted.flow_back)
        covered = torch.maximum(self.source.mask, self.wanted.mask)[:, None]
        self.apart = (F.max_pool2d(covered, 2 * BORDER + 1, 1, BORDER)[:, 0] == 0).float()

    def judge(self, edit: Tensor, reader: ShapeReader) -> dict[str, float | None]:
        """Return what is read from an edit, frames (f, 3, h, w) in 0 ... 1; see the document's legend."""
        task, source = self.task, self.source.frames
        read = {name: read_colour(edit) if name == "colour" else reader.read(edit, name) for name in WORDS}
        right = {name: fmean(word == getattr(task.wanted, name) for word in read[name]) for name in WORDS}
        kept = [share for name, share in right.items() if name not in task.changed]
        mask, path = find_object(edit)
        missed = (path - self.wanted.path).norm(dim=-1).nan_to_num(LOST).clamp(max=LOST)
        area = mask.sum(dim=(1, 2)) / self.wanted.mask.sum(dim=(1, 2))
        return {
            "obeyed": fmean(right[name] for name in task.changed),
            "kept": fmean(kept),
            "motion_error": missed.mean().item(),
            "warp_error": 1000 * warp_error(edit, self.motion),
            "flicker": 1.0 if area.min() < LEAST_AREA else (area.diff().std() / area.mean()).item(),
            "ghosts": ((mask * self.apart).sum() / self.wanted.mask.sum()).item(),
            "background": background_psnr(edit, source, 1 - self.apart) if task.kind in KEEP_GROUND else None,
            "texture": texture_kept(edit, self.wanted.frames),
        }
