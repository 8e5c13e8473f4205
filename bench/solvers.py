"""Reconstruction and edits of the default graph by the number of UNet calls, for each solver of the inversion."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from statistics import fmean
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.methods import EI2, method
from ..modules.inversion.host.invert import invert_clip
from ..modules.inversion.inversion import InversionSettings
from ..modules.judging.reconstruction import psnr
from ..modules.motion.variational import estimate_motion
from ..modules.sampling.host import RelationSettings, SampleSettings, sample_clip
from ..scripts.parts import CFG, CFG_END, RELATION
from .edit_rows import world_stamp
from .edit_run import STRENGTH
from .performance import Job, Row, Setting, measure_jobs, read_setting
from .table import write_table
from .tasks import Truth, draw_task
from .world import SIZE, World

DDIM, REFINED, DDPM, MIDPOINT = "DDIM", "DDIM, refined once", "edit-friendly DDPM", "midpoint"
SOLVERS: Mapping[str, Mapping[str, Any]] = {
    DDIM: {},
    MIDPOINT: {"solver": "midpoint"},
    REFINED: {"refinements": 1},
    DDPM: {"method": "edit-friendly DDPM"},
}
TARGET, OF_DDIM = 25, 50  # calls in which midpoint is to reconstruct as well as DDIM
CALLS = {DDIM: (5, 10, TARGET, OF_DDIM), MIDPOINT: (5, 10, TARGET), REFINED: (10, TARGET), DDPM: (10, TARGET)}
KINDS = ("colour", "shape")
JUDGED = ("obeyed", "kept", "motion_error", "warp_error", "ghosts", "background")
FRAMES = 4


@dataclass(frozen=True)
class Case(Setting):
    """One clip, inverted by a solver in so many calls, brought back and edited."""

    kind: str
    solver: str
    calls: int
    world: str

    @property
    def steps(self) -> int:
        """Steps that take no more calls than there may be."""
        spare = self.calls - 1 if self.solver == MIDPOINT else self.calls
        return spare // 2 if self.solver == REFINED else spare


@cache
def make_world() -> World:
    """Return the demo model."""
    return World()


def counted(model: ModelPatcher, calls: list[int]) -> ModelPatcher:
    """Return a model that adds the rows of each call of its UNet to a list, both sides of guidance together."""

    def count(executor, inner, conds, x, *rest):
        calls.append(len(x))
        return executor(inner, conds, x, *rest)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "count", count)
    return model


def run_case(case: Case) -> Row:
    """Invert a validation clip, bring it back at CFG 1 and edit it by the default graph."""
    world, task = make_world(), draw_task(case.kind, 0, held_out=False)
    task = replace(task, **{name: replace(getattr(task, name), frames=case.frames) for name in ("source", "wanted")})
    truth, calls = Truth(task), list[int]()
    model = counted(attach(inflate(world.model), *method(EI2, temporal="none")), calls)
    before, after = (world.prompt(words) for words in task.prompts)
    frames = truth.source.frames
    with torch.inference_mode():
        clip = world.encode(frames)
        settings = InversionSettings(case.steps, 0.0, "none", **SOLVERS[case.solver])
        inversion, up = invert_clip(model, before, before, clip, settings), len(calls)
        back, down = sample_clip(model, before, before, inversion, SampleSettings(1.0))[0], len(calls) - up
        motion, passes = estimate_motion(frames.movedim(1, -1)), int(RELATION["passes"])
        relation = RelationSettings(STRENGTH, end=RELATION["end"], motion=motion, passes=passes)
        sampling = SampleSettings(CFG, cfg_end=CFG_END, relation=relation)
        edit = world.decode(sample_clip(model, after, before, inversion, sampling)[0]).clamp(0, 1)
        reconstruction = fmean(psnr(world.decode(back), world.decode(clip)))
        return {"up": up, "down": down, "psnr": reconstruction, **truth.judge(edit, world.reader)}


def measure_solvers(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = replace(read_setting(options, SIZE, FRAMES), size=SIZE)
    cases = [
        Case(**asdict(setting), kind=kind, solver=solver, calls=calls, world=world_stamp())
        for kind in KINDS
        for solver, budgets in CALLS.items()
        for calls in budgets  # of the inversion, at most
    ]
    measure_jobs("solvers", options, [Job("solvers", cases, run_case)], partial(make_section, setting))


def make_section(setting: Setting, rows: Sequence[Row]) -> str:
    """Return the section's text."""
    body = []
    found = {
        key: [row for row in rows if (row["solver"], row["calls"]) == key]
        for key in dict.fromkeys((row["solver"], row["calls"]) for row in rows)
    }
    reached = {key: fmean(row["psnr"] for row in of) for key, of in found.items()}
    for (solver, calls), of in found.items():
        target = ["", ""]
        if (solver, calls) == (MIDPOINT, TARGET) and (DDIM, OF_DDIM) in reached:
            goal = reached[DDIM, OF_DDIM]
            target = [f"≥ {goal:.3g}", "yes" if reached[solver, calls] >= goal else "no"]
        known = [[row[key] for row in of if row[key] is not None] for key in JUDGED]
        judged = [f"{fmean(values):.3g}" if values else "" for values in known]
        body.append([solver, f"{of[0]['up']} and {of[0]['down']}", f"{reached[solver, calls]:.3g}", *target, *judged])
    return "\n\n".join(
        [
            f"{setting}. The demo model, untuned, with EI²'s attention; validation clips whose "
            f"{' or '.join(KINDS)} is edited, one each; means. *Calls*: of the UNet in the inversion and in sampling, "
            "both sides of guidance together. *PSNR*: of the reconstruction at CFG 1 against the autoencoder's round "
            f"trip. What follows is of the edit by the default graph: CFG {CFG:g} in the first {CFG_END:.0%} of the "
            "steps, with the source prompt as negative, and the noise relation along the clip's motion; the columns "
            "are those of docs/benchmark.md.",
            write_table(
                ["solver", "calls", "PSNR, dB", "target", "met", *(key.replace("_", " ") for key in JUDGED)], body
            ),
        ]
    )
