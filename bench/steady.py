"""Steady Frames on drawn clips: flicker of known size planted on the right edit, per-frame edits of the demo model, and
edits that do not flicker."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..demo.clips import draw_recipe
from ..demo.reader import find_object
from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.methods import EI2, PER_FRAME, method
from ..modules.inversion.host.invert import invert_clip
from ..modules.inversion.inversion import InversionSettings
from ..modules.judging.scorecard import texture_kept
from ..modules.motion.flow import Motion, motion_of
from ..modules.motion.variational import estimate_motion
from ..modules.sampling.host import SampleSettings, sample_clip
from ..modules.steady.steady import SteadySettings, steady_edit, unsteadiness
from ..scripts.environment import say
from ..scripts.parts import CFG, CFG_END
from .edit_rows import world_stamp
from .table import add_row, load_rows, mean_and_error, write_table
from .tasks import KINDS, Truth, list_tasks
from .world import Row, World

REVISION = 1  # raised when the same case gives another row
SHIFT, SHAKE, SWELL, GRAIN = 0.1, 2.0, 0.06, 0.12  # standard deviations: of colour, pixels, of size, of brightness
NOTHING, PER_FRAME_EDIT = "none", "per frame"
EDITS = (NOTHING, "colour", "position", "size", "texture", PER_FRAME_EDIT)
BEFORE_PIXELS, BEFORE_LATENTS = "pixels, not steadied", "latents, not steadied"
LIE, EXACT, PIXELS = "pixels, without motion", "pixels, exact motion", "pixels"
LATENTS, SAMPLED = "latents", "latents, sampled again"
WAYS = {  # what each is compared with
    BEFORE_PIXELS: BEFORE_PIXELS,
    LIE: BEFORE_PIXELS,
    EXACT: BEFORE_PIXELS,
    PIXELS: BEFORE_PIXELS,
    BEFORE_LATENTS: BEFORE_LATENTS,
    LATENTS: BEFORE_LATENTS,
    SAMPLED: BEFORE_LATENTS,
}
ONLY = {LIE: (NOTHING, PER_FRAME_EDIT), SAMPLED: (NOTHING, PER_FRAME_EDIT)}  # edits, where not all
DENOISE, STEPS = 0.3, 6  # of the inversion and sampling that follow
FIGURES = {
    "flicker": "flicker",
    "warp_error": "warp error, 10⁻³",
    "texture": "texture",
    "obeyed": "obeyed",
    "changed": "changed, of 255",
    "moved": "moved, px",
}
SETTINGS = SteadySettings()
PART, TENTH, LEVEL = 0.25, 0.1, 1.0  # targets: of flicker and warp error, of texture, of what moves


@dataclass(frozen=True)
class Case:
    """One steadied edit of a drawn clip.

    Attributes:
        clip: name of the task.
        edit: one of EDITS, what flickers in it.
        way: one of WAYS.
        ddim_steps: of the per-frame edit.
        strength, passes: of the blend.
        world: identifies the demo model and the way of measuring.
    """

    clip: str
    edit: str
    way: str
    ddim_steps: int
    strength: float
    passes: int
    world: str


def ways_of(edit: str) -> list[str]:
    """Return the ways in which an edit is steadied."""
    return [way for way in WAYS if edit in ONLY.get(way, EDITS)]


def plant(truth: Truth, kind: str) -> Tensor:
    """Return the right edit with flicker of a kind, frames (f, 3, h, w) in 0 ... 1: independent in each frame."""
    frames, mask = truth.wanted.frames, truth.wanted.mask[:, None]
    generator = torch.Generator().manual_seed(truth.task.wanted.seed)
    draw = partial(torch.randn, generator=generator)
    if kind == "position":
        return draw_recipe(truth.task.wanted, shake=SHAKE * draw(len(frames), 2)).frames
    if kind == "size":
        return draw_recipe(truth.task.wanted, growth=1 + SWELL * draw(len(frames))).frames
    if kind == "colour":
        return (frames + mask * SHIFT * draw(len(frames), 3, 1, 1)).clamp(0, 1)
    if kind == "texture":
        grain = F.avg_pool2d(draw(len(frames), 1, *frames.shape[2:]), 3, 1, 1)
        return (frames + mask * GRAIN * grain / grain.std()).clamp(0, 1)
    return frames


class Study:
    """The demo model."""

    def __init__(self) -> None:
        self.world = World()
        self.per_frame, self.tied = (
            attach(inflate(self.world.model), *method(name, temporal="none")) for name in (PER_FRAME, EI2)
        )

    def sample(self, model: Any, task: Any, latent: Row, steps: int, denoise: float, of: int) -> Row:
        """Invert a latent with the prompt of the source or the edit, sample it with that of the edit."""
        start, edited = self.world.prompt(task.prompts[of]), self.world.prompt(task.prompts[1])
        settings = InversionSettings(steps, 0.0, "none", denoise=denoise)
        inversion = invert_clip(model, start, start, latent, settings)
        return sample_clip(model, edited, start, inversion, SampleSettings(CFG, cfg_end=CFG_END))[0]


class Steadied:
    """A drawn clip, its edits, and what they are steadied to."""

    def __init__(self, truth: Truth, study: Study, ddim_steps: int):
        self.truth, self.study, self.ddim_steps = truth, study, ddim_steps
        self.frames, self.task = truth.source.frames, truth.task
        self.edited, self.latent = cache(self.make_edited), cache(self.make_latent)
        self.steadied = cache(self.steady)
        self.exact = motion_of(truth.source.flow, truth.source.flow_back)

    @cached_property
    def motion(self) -> Motion:
        """What Clip Motion says of the source."""
        return estimate_motion(self.frames.movedim(1, -1))

    @cached_property
    def source(self) -> Tensor:
        """The source's latent."""
        return self.study.world.encode(self.frames)["samples"]

    def make_latent(self, edit: str) -> Tensor:
        """Return an edit's latent."""
        if edit != PER_FRAME_EDIT:
            return self.study.world.encode(plant(self.truth, edit))["samples"]
        given = self.study.per_frame, self.task, {"samples": self.source}
        return self.study.sample(*given, self.ddim_steps, 0.0, of=0)["samples"]

    def make_edited(self, edit: str) -> Tensor:
        """Return an edit's frames."""
        return self.decode(self.latent(edit)) if edit == PER_FRAME_EDIT else plant(self.truth, edit)

    def decode(self, latent: Tensor) -> Tensor:
        """Return the frames of a latent."""
        return self.study.world.decode({"samples": latent}).clamp(0, 1)

    def steady(self, edit: str, way: str) -> Tensor:
        """Return the frames of an edit, steadied in a way."""
        if way == BEFORE_PIXELS:
            return self.edited(edit)
        if way in (LIE, EXACT, PIXELS):
            motion = None if way == LIE else self.exact if way == EXACT else self.motion
            return steady_edit(self.frames, self.edited(edit), SETTINGS, motion)[0].clamp(0, 1)
        if way == BEFORE_LATENTS:
            return self.decode(self.latent(edit))
        steadied = steady_edit(self.source, self.latent(edit), SETTINGS, self.motion)[0]
        if way == SAMPLED:
            given = self.study.tied, self.task, {"samples": steadied}
            steadied = self.study.sample(*given, STEPS, DENOISE, of=1)["samples"]
        return self.decode(steadied)

    def run(self, case: Case) -> Row:
        """Steady an edit and measure it."""
        found, before = self.steadied(case.edit, case.way), self.steadied(case.edit, WAYS[case.way])
        right = before if case.edit == PER_FRAME_EDIT else self.steadied(NOTHING, WAYS[case.way])
        judged, wanted = self.truth.judge(found, self.study.world.reader), self.truth.wanted
        mask = wanted.mask[:, None]
        colour = (mask * (found - wanted.frames)).sum(dim=(2, 3)) / mask.sum(dim=(2, 3))
        place, was = find_object(found)[1], find_object(before)[1]
        flicker = {
            "colour": colour.diff(dim=0).square().mean().sqrt().item(),
            "position": (place - wanted.path).diff(dim=0).square().mean().sqrt().item(),
            "texture": unsteadiness(wanted.frames, found, self.truth.motion),
        }
        return {
            **asdict(case),
            "obeyed": judged["obeyed"],
            "flicker": flicker.get(case.edit, judged["flicker"]),
            "warp_error": judged["warp_error"],
            "texture": texture_kept(found, right),
            "changed": 255 * (found - before).abs().mean().item(),
            "moved": (place - was).norm(dim=-1).mean().item(),
        }


def measure_steady(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the document."""
    study, path = cache(Study), options.state / "steady.jsonl"
    tasks = list_tasks(options.clips_of_kind, held_out=True, kinds=options.kinds or KINDS)
    own = options.ddim_steps, SETTINGS.strength, SETTINGS.passes, f"{world_stamp()}-{REVISION}"
    cases = [Case(clip, edit, way, *own) for clip in tasks for edit in EDITS for way in ways_of(edit)]
    done = load_rows(path, Case)
    clip_of = cache(lambda clip: Steadied(Truth(tasks[clip]), study(), options.ddim_steps))
    for number, case in enumerate(cases, start=1):
        if case not in done:
            with torch.inference_mode():
                done[case] = clip_of(case.clip).run(case)
            add_row(path, done[case])
            say(f"{number:4} of {len(cases)}  {case.clip}  {case.edit}, {case.way}")
    write_document(options, [done[case] for case in cases])


def write_document(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Write the tables of some rows."""
    clips = len({row["clip"] for row in rows})
    text = [
        "# Steady Frames, measured",
        f"Written by `python -m bench steady`: {clips} drawn clips of 8 frames that the demo model never saw, as "
        f"many of each kind of edit; strength {SETTINGS.strength:g}, {SETTINGS.passes} passes, motion as Clip Motion "
        "estimates it on the source. A cell holds the mean over the clips ± its standard error.",
        "Flicker is planted on the edit as the world draws it, independent in each frame, with these standard "
        f"deviations: *colour* {SHIFT:g} of full scale, *position* {SHAKE:g} pixels each way, *size* {SWELL:.0%}, "
        f"*texture* {GRAIN:g} of full scale, as grain on the object. *Per frame*: the demo model's own edit, each "
        f"frame by itself, in {options.ddim_steps} DDIM steps. *None*: the drawn edit, which does not flicker.",
        "## Targets",
        "Of the clips' means: flicker and warp error at most a quarter of the edit's, texture within a tenth of what "
        f"it is without flicker; where nothing flickers, pixels change by at most {LEVEL:g} of 255 on average. "
        "*Beyond*: what is left of the warp error beyond that of the same edit without flicker, below 0 where less is "
        "left than that has.",
        targets_table(rows),
        "## Figures",
        figures_table(rows),
        LEGEND,
    ]
    options.document.parent.mkdir(parents=True, exist_ok=True)
    options.document.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    say(f"Wrote {options.document}")


LEGEND = f"""\
- *Flicker*: root mean square of the change from frame to frame, of the object's colour, its centroid (pixels) or, for \
texture, the difference from the drawn edit along its motion; otherwise the standard deviation of the change of its \
area, as a part of its mean.
- *Warp error*: mean squared difference of neighbouring frames along the drawn edit's motion. What does not flicker \
has one too, by edges between pixels and by tiles that stand still: the rows *none* show it.
- *Texture*: energy of fine structure against the edit without flicker, of latents after the autoencoder; of edits \
per frame against the edit itself.
- *Changed*: mean difference from what is not steadied, of 255. *Moved*: how far the object's centroid lies from there.
- *Exact motion*: the source's as the world draws it, which a renderer's vector pass would give.
- *Latents, sampled again*: the steadied latent inverted and sampled with the edited prompt, denoise {DENOISE:g}, \
{STEPS} steps, by the model whose frames see each other."""


def mean_of(rows: Sequence[Row], edit: str, way: str, key: str) -> float:
    """Return the mean of a figure over the clips."""
    return fmean(row[key] for row in rows if (row["edit"], row["way"]) == (edit, way))


def targets_table(rows: Sequence[Row]) -> str:
    """Return what is left of flicker and warp error, and whether the targets are met."""

    def tell(value: float, is_met: bool) -> str:
        return f"{value:.2f}, {'met' if is_met else 'not met'}"

    body = []
    for edit in EDITS:
        for way in ways_of(edit):
            before = WAYS[way]
            if way == before:
                continue
            if edit == NOTHING:
                changed = mean_of(rows, edit, way, "changed")
                body.append([edit, way, "", "", "", "", tell(changed, changed <= LEVEL)])
                continue
            flicker, warp = (
                mean_of(rows, edit, way, key) / mean_of(rows, edit, before, key) for key in ("flicker", "warp_error")
            )
            texture = mean_of(rows, edit, way, "texture")
            body.append([edit, way, tell(flicker, flicker <= PART), tell(warp, warp <= PART)])
            body[-1] += [beyond(rows, edit, way), tell(texture, abs(texture - 1) <= TENTH), ""]
    return write_table(
        ["flickers", "steadied as", "flicker left", "warp error left", "beyond", "texture", "changed"], body
    )


def beyond(rows: Sequence[Row], edit: str, way: str) -> str:
    """Return what is left of the warp error that planted flicker adds; nothing for edits per frame."""
    if edit == PER_FRAME_EDIT:
        return ""
    own, before, steady = (
        mean_of(rows, *of, "warp_error") for of in ((edit, way), (edit, WAYS[way]), (NOTHING, WAYS[way]))
    )
    return f"{(own - steady) / (before - steady):.2f}"


def figures_table(rows: Sequence[Row]) -> str:
    """Return all figures."""
    body = []
    for edit in EDITS:
        for way in ways_of(edit):
            own = [row for row in rows if (row["edit"], row["way"]) == (edit, way)]
            body.append([edit, way, *(mean_and_error([row[key] for row in own]) for key in FIGURES)])
    return write_table(["flickers", "as", *FIGURES.values()], body)
