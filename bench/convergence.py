"""How many steps of a tuning the same quality takes, by the papers' recipe and by others.

Loss and edit are measured along each tuning of drawn validation clips: what is chosen here is not chosen on held-out
ones.
"""

import argparse
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain, islice
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.methods import EI2, method
from ..modules.inversion.host.invert import invert_clip
from ..modules.inversion.inversion import InversionSettings
from ..modules.sampling.host import SampleSettings, sample_clip
from ..modules.tuning.host import session
from ..modules.tuning.host.apply import apply_tune
from ..modules.tuning.host.rescue import on_private_copy
from ..modules.tuning.host.training import Tuning
from ..modules.tuning.host.tune_inputs import TuneInputs
from ..modules.tuning.objective import Clip, Draw
from ..modules.tuning.settings import TuneSettings
from ..modules.tuning.tuner import Tuner
from ..modules.tuning.weights import Tune
from ..scripts.environment import say
from ..scripts.parts import CFG, CFG_END
from .convergence_document import write_document
from .convergence_recipes import OURS, PAPERS, RECIPES, UNTUNED
from .edit_rows import world_stamp
from .table import add_row, load_rows
from .tasks import KINDS, Task, Truth, list_tasks
from .world import Row, World

FIGURES = ("obeyed", "kept", "motion_error", "warp_error", "flicker")


@dataclass(frozen=True)
class Case:
    """A tuning after some of its steps.

    Attributes:
        recipe: name in RECIPES, or UNTUNED.
        taken: identifies the settings by which it takes the steps, and what takes them.
        clip: name of the task.
        seed: of the tuning.
        frames: of the clip.
        steps, rate: of the papers' recipe, by which the others' are reckoned.
        done: steps done.
        pairs: of noise level and noise that the loss is the mean of.
        ddim_steps: of inversion and sampling.
        world: identifies the demo model and the way of measuring.
    """

    recipe: str
    taken: str
    clip: str
    seed: int
    frames: int
    steps: int
    rate: float
    done: int
    pairs: int
    ddim_steps: int
    world: str


def list_cases(name: str, clip: str, seed: int, options: argparse.Namespace) -> dict[int, Case]:
    """Return the cases along one tuning, by the number of steps done."""
    given = options.frames, options.steps, options.rate
    measured = options.pairs, options.ddim_steps, world_stamp()
    parts = [0.0] if name == UNTUNED else [part for part in options.parts if part <= RECIPES[name].length]
    steps = sorted({round(part * options.steps) for part in parts})
    taken = "" if name == UNTUNED else RECIPES[name].stamp(options.steps, options.rate)
    return {done: Case(name, taken, clip, seed, *given, done, *measured) for done in steps}


def chosen_tasks(options: argparse.Namespace) -> dict[str, Task]:
    """Return the edits of the validation clips, by name: the first clip of each kind before the second of any."""
    end = options.skip + options.clips
    every = list_tasks(math.ceil(end / len(KINDS)), held_out=False)
    return dict(islice(every.items(), options.skip, end))


def list_tunings(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Return recipe, clip and seed of every tuning: the two that are compared of all clips before the others."""
    compared = (UNTUNED, PAPERS, OURS)
    others = [name for name, recipe in RECIPES.items() if name not in compared and recipe.can_run()]
    clips = list(chosen_tasks(options))
    for names, chosen, seeds in (
        (compared, clips, options.seeds),
        (others, clips[: options.other_clips or None], min(options.other_seeds or options.seeds, options.seeds)),
    ):
        for seed in range(seeds):
            for clip in chosen:
                yield from ((name, clip, seed) for name in names if name != UNTUNED or seed == 0)


def draw_pairs(clip: Clip, count: int) -> list[Draw]:
    """Return noise levels in the middles of as many equal parts of the timesteps, each with noise: always the same."""
    generator, levels = torch.Generator().manual_seed(0), len(clip.sigma_table)
    everything, middles = slice(0, len(clip.x_0)), (torch.arange(count) + 0.5) * levels / count
    noises = torch.randn(count, *clip.x_0.shape, generator=generator).to(clip.x_0)
    return [Draw(t, everything, eps) for t, eps in zip(middles.long(), noises, strict=True)]


@torch.no_grad()
def fixed_loss(tuning: Tuning, pairs: Sequence[Draw]) -> float:
    """Return the mean loss of a tuning on some pairs of noise level and noise."""
    objective = tuning.tuner.objective
    with parametrize.cached():
        return fmean(objective.evaluate(pair, 0)[0]["loss"].item() for pair in pairs)


def tune_along(
    world: World, truth: Truth, settings: TuneSettings, at: Collection[int], pairs: int, tuner: type[Tuner] = Tuner
) -> list[tuple[int, float, Tune]]:
    """Tune on a clip; returns steps done, loss and what was learned, after some numbers of steps, ascending.

    Args:
        world, truth: the model, and the clip with its prompts.
        settings: of the tuning.
        at: numbers of steps.
        pairs: that the loss is measured on.
        tuner: takes the steps.
    """
    model = attach(inflate(world.model), *method(EI2))
    inputs = TuneInputs(world.prompt(truth.task.prompts[0]), world.encode(truth.source.frames))
    found = []
    with mock.patch.object(session, "Tuner", tuner), on_private_copy(Tuning, model, inputs, settings, None) as tuning:
        drawn = draw_pairs(tuning.tuner.objective.clip, pairs)
        for done in chain([0], islice(tuning.steps(), max(at))):
            if done in at:
                found.append((done, fixed_loss(tuning, drawn), tuning.made(done, {})))
    return found


def edit(world: World, truth: Truth, tune: Tune, ddim_steps: int) -> Tensor:
    """Return the edit by a tune: plain inversion, then the main graph's guidance away from the source prompt."""
    model = apply_tune(world.model, tune)
    source, edited = (world.prompt(words) for words in truth.task.prompts)
    settings = InversionSettings(ddim_steps, gamma=0.0, direction="none")
    inversion = invert_clip(model, source, source, world.encode(truth.source.frames), settings)
    sampled = sample_clip(model, edited, source, inversion, SampleSettings(CFG, cfg_end=CFG_END))[0]
    return world.decode(sampled).clamp(0, 1)


@torch.inference_mode()
def run(world: World, task: Task, cases: Mapping[int, Case]) -> list[Row]:
    """Return the rows along one tuning."""
    first = next(iter(cases.values()))
    task = replace(task, **{name: replace(getattr(task, name), frames=first.frames) for name in ("source", "wanted")})
    truth, rows = Truth(task), []
    recipe = RECIPES[PAPERS if first.recipe == UNTUNED else first.recipe]
    settings = recipe.settings(first.steps, first.rate, first.seed)
    for done, loss, tune in tune_along(world, truth, settings, cases, first.pairs, recipe.tuner):
        judged = truth.judge(edit(world, truth, tune, first.ddim_steps), world.reader)
        rows.append({**asdict(cases[done]), "loss": loss, **{key: judged[key] for key in FIGURES}})
    return rows


def measure_convergence(options: argparse.Namespace) -> None:
    """Tune what is not done yet, and write the document of what is."""
    make, path = cache(World), options.state / "convergence.jsonl"
    done = load_rows(path, Case)
    unknown = set(options.recipes) - {UNTUNED, *RECIPES}
    if unknown:
        raise ValueError(f"--recipes {', '.join(sorted(unknown))}: there are {', '.join([UNTUNED, *RECIPES])}.")
    for name, recipe in RECIPES.items():
        if not recipe.can_run():
            say(f"{name} is left out: torch {torch.__version__} has no torch.optim.{recipe.needs}.")
    tasks = chosen_tasks(options)
    wanted = [tuning for tuning in list_tunings(options) if not options.recipes or tuning[0] in options.recipes]
    rows: list[dict[str, Any]] = []
    for number, (name, clip, seed) in enumerate(wanted, start=1):
        cases = list_cases(name, clip, seed, options)
        if not all(case in done for case in cases.values()):
            for row in run(make(), tasks[clip], cases):
                done[cases[row["done"]]] = row
                add_row(path, row)
        rows += [done[case] for case in cases.values()]
        say(f"{number:4} of {len(wanted)}  {clip}  seed {seed}  {name}")
        write_document(rows, options)
    say(f"Wrote {options.document}")
