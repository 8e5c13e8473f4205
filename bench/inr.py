"""INR Smooth: directions (Figure 11) and weights in the inversion, and its relation at sampling, judged on edits."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import fmean

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..modules.host.apply import apply_tune
from ..modules.host.inversion import InversionSettings, invert_clip
from ..modules.host.progress import TuningProgress
from ..modules.host.sampling import RelationSettings, SampleSettings, sample_clip
from ..modules.host.training import tune_model
from ..modules.host.tune_inputs import TuneInputs
from ..modules.noise_relation import Direction
from ..modules.reconstruction import psnr
from ..modules.scorecard import texture_kept, warp_error
from ..modules.smoothing import Smoothing
from ..modules.tuning import TuneSettings
from ..modules.variational_flow import estimate_motion
from ..scripts.environment import say
from .table import add_row, load_rows, mean_and_error, write_table
from .world import Row, World, judge, load_clip, load_motion

LEARNING_RATE, CFG = 1e-4, 7.5
TUNED: dict[str, Smoothing | None] = {"training-free": None, "EI²": "none", "EI² + INR": "INR"}


@dataclass(frozen=True)
class Case:
    """One edit: how the model was tuned, the relation in the inversion and at sampling, the clip and the seed."""

    tuned: str
    direction: Direction
    gamma: float
    relation: str
    strength: float
    passes: int
    clip: str
    seed: int
    steps: int
    ddim_steps: int

    @property
    def name(self) -> tuple[str, str, str]:
        """How it is called in the table."""
        inversion = "plain" if self.direction == "none" else f"{self.direction}, gamma {self.gamma:g}"
        times = f" × {self.passes}" if self.passes > 1 else ""
        sampling = "none" if self.relation == "none" else f"{self.relation}, {self.strength:g}{times}"
        return self.tuned, inversion, sampling


def list_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Return every case, all of a clip and seed before the next."""
    ways: tuple[Direction, ...] = ("forward", "backward", "both")
    inversions: list[tuple[Direction, float]] = [("none", 0.0), *((way, gamma) for way in ways for gamma in (0.5, 1.0))]
    relations = [(kind, strength, 1) for kind in ("plain", "motion") for strength in (0.25, 0.5, 0.75)]
    relations += [("motion", 0.5, passes) for passes in (2, 4)]
    for seed in range(options.seeds):
        for clip in options.clips:
            worked = clip, seed, options.steps, options.ddim_steps
            for tuned, smoothing in TUNED.items():
                if seed and smoothing is None:
                    continue  # nothing is drawn: it would be the same edit again
                for direction, gamma in inversions:
                    yield Case(tuned, direction, gamma, "none", 0.0, 1, *worked)
                for relation in relations:
                    yield Case(tuned, "none", 0.0, *relation, *worked)


class Models:
    """The tuned models of one clip and seed, each tuned once."""

    def __init__(self, world: World):
        self.world = world
        self.held: dict[str, ModelPatcher] = {}
        self.key: tuple[str, int, int] | None = None

    def get(self, case: Case) -> ModelPatcher:
        """Return the model of a case."""
        key = case.clip, case.seed, case.steps
        if key != self.key:
            self.held, self.key = {}, key
        if case.tuned not in self.held:
            self.held[case.tuned] = self.make(case)
        return self.held[case.tuned]

    def make(self, case: Case) -> ModelPatcher:
        """Tune the model of a case."""
        smoothing, model = TUNED[case.tuned], self.world.patched()
        if smoothing is None:
            return model
        source, notes = load_clip(case.clip)
        inputs = TuneInputs(self.world.prompt(notes["prompt"]), self.world.encode(source))
        settings = TuneSettings(case.steps, LEARNING_RATE, case.seed, smoothing=smoothing)
        return apply_tune(model, tune_model(model, inputs, settings, TuningProgress("")))


def run_case(world: World, models: Models, case: Case) -> Row:
    """Invert, edit, and judge."""
    began = time.monotonic()
    source, notes = load_clip(case.clip)
    latent, empty, model = world.encode(source), world.prompt(""), models.get(case)
    relation = None
    if case.relation != "none":
        motion = estimate_motion(source.movedim(1, -1)) if case.relation == "motion" else None
        relation = RelationSettings(case.strength, motion=motion, passes=case.passes)
    settings = InversionSettings(
        case.ddim_steps, case.gamma, case.direction, start="clean latent", denoise=1.0, set_alpha_to_one=True
    )
    inversion = invert_clip(model, empty, empty, latent, settings)

    def sample(prompt: str, cfg: float) -> Tensor:
        settings = SampleSettings(cfg, relation=relation)
        return world.decode(sample_clip(model, world.prompt(prompt), empty, inversion, settings)[0])

    edit = sample(notes["edit"], CFG)
    return {
        **asdict(case),
        **judge(edit, source, notes["edit"], world.reader),
        "warp_error": 1000 * warp_error(edit, load_motion(case.clip)),
        "texture": texture_kept(edit, source),
        "reconstruction": fmean(psnr(sample("", 1.0), world.decode(latent))),
        "seconds": round(time.monotonic() - began, 1),
    }


def measure_inr(options: argparse.Namespace) -> None:
    """Run what is not done yet, and write the table."""
    cases, path = list(list_cases(options)), options.state / "inr.jsonl"
    done = load_rows(path, Case)
    world = World() if any(case not in done for case in cases) else None
    models = Models(world) if world is not None else None
    for number, case in enumerate(cases, start=1):
        if case not in done:
            assert world is not None and models is not None, "made where something is left"
            with torch.inference_mode():
                done[case] = run_case(world, models, case)
            add_row(path, done[case])
        say(f"{number:4} of {len(cases)}  {case.clip}  {', '.join(case.name)}  {done[case]['seconds']} s")
    options.document.write_text(make_document([(case, done[case]) for case in cases], options), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps([done[case] for case in cases], indent=1), encoding="utf-8")
    say(f"Wrote {options.document}")


def make_document(rows: list[tuple[Case, Row]], options: argparse.Namespace) -> str:
    """Return the document of the rows."""
    columns = {
        "obeyed": "attributes read right",
        "motion_error": "motion error, px",
        "flicker": "flicker of area",
        "warp_error": "warp error, 10⁻³",
        "texture": "texture",
        "reconstruction": "reconstruction, dB",
    }
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for case, row in rows:
        groups.setdefault(case.name, []).append(row)
    body = [[*name, str(len(groups[name])), *(compare(groups, name, key) for key in columns)] for name in groups]
    return "\n".join(
        [
            "# The interframe noise relation",
            "",
            f"Written by `python -m bench inr --seeds {options.seeds} --ddim-steps {options.ddim_steps}`. The demo "
            f"model, {', '.join(options.clips)}. A cell holds the mean of the row's edits and, in brackets, the "
            "difference to the first row of the same tuning (plain inversion, nothing at sampling) over the same clips "
            "and seeds ± its standard error. Tuned for "
            f"{options.steps} steps at {LEARNING_RATE:g}, EI² + INR with lambda 2; {options.ddim_steps} DDIM steps, "
            f"inverted with an empty prompt, CFG {CFG:g}.",
            "",
            write_table(["tuning", "inversion", "relation at sampling", "edits", *columns.values()], body),
            "",
            "- *Attributes read right*, *motion error*, *flicker of area*: as in [norms.md](norms.md).",
            "- *Warp error*: mean squared difference of neighbouring frames of the edit along the source's own motion, "
            "known exactly, where points are seen in both.",
            "- *Texture*: mean square of the Laplacian of the edit's frames against the source's. The edit has other "
            "shapes and colours, so that 1 is no aim; compare within a tuning.",
            "- *Reconstruction*: PSNR of the same inversion sampled with the empty prompt it was made with, without "
            "guidance and with the same relation at sampling, against the autoencoder's round trip.",
            "- All noise levels are walked, from the highest to 0, and gamma starts at the clean latent. At these "
            "16 × 16 latents that level knows nothing of the layout: [benchmark.md](benchmark.md) starts lower.",
            "- Motion compensation at sampling uses an estimated flow, not the known one.",
            "",
        ]
    )


def compare(groups: dict[tuple[str, str, str], list[Row]], name: tuple[str, str, str], key: str) -> str:
    """Return the mean of a figure, and its difference to the plain edit of the same tuning."""
    rows, plain = groups[name], groups[name[0], "plain", "none"]
    known = [row[key] for row in rows if row[key] is not None]
    mean = f"{fmean(known):.3g}" if known else "none"
    if rows is plain:
        return mean
    pairs = [(row[key], own[key]) for row, own in zip(rows, plain, strict=True)]
    apart = mean_and_error([mine - its for mine, its in pairs if None not in (mine, its)])
    return f"{mean} ({apart if apart.startswith(('-', 'none')) else f'+{apart}'})"
