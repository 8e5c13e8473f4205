"""EI²'s Figure 4: the norm of the temporal module, with and without spectral norm, judged on tuned edits."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import fmean

import torch

from ..modules.covariate_shift import average_shift
from ..modules.host.apply import apply_tune
from ..modules.host.inversion import InversionSettings, invert_clip
from ..modules.host.progress import TuningProgress
from ..modules.host.report import measure_clip
from ..modules.host.sampling import SampleSettings, sample_clip
from ..modules.host.training import tune_model
from ..modules.host.tune_inputs import TuneInputs
from ..modules.presets import NORMS
from ..modules.tuning import TuneSettings
from ..scripts.environment import say
from .table import add_row, load_rows, mean_and_error, write_table
from .world import Row, World, judge, load_clip

OWN = ("instance centering", "on")
LEARNING_RATE, R, GAMMA, CFG = 1e-4, 4, 0.5, 7.5


@dataclass(frozen=True)
class Case:
    """One tuned edit: what the temporal module is made of, the clip and the seed; and how it is worked on."""

    norm: str
    spectral: str
    clip: str
    seed: int
    steps: int
    ddim_steps: int
    learning_rate: float = LEARNING_RATE
    r: int = R
    gamma: float = GAMMA
    cfg: float = CFG


def run_case(world: World, case: Case) -> Row:
    """Tune, edit and judge; as a node does it, in inference mode."""
    began = time.monotonic()
    source, notes = load_clip(case.clip)
    latent, words = world.encode(source), {name: world.prompt(notes[name]) for name in ("prompt", "edit")}
    empty, model = world.prompt(""), world.patched(case.norm, case.spectral, r=case.r)
    settings = TuneSettings(case.steps, case.learning_rate, case.seed)
    tune = tune_model(model, TuneInputs(words["prompt"], latent), settings, TuningProgress(""))
    tuned = apply_tune(model, tune)
    inverted = InversionSettings(
        case.ddim_steps, GAMMA, start="clean latent", denoise=1.0, set_alpha_to_one=True
    )
    inversion = invert_clip(tuned, empty, empty, latent, inverted)
    edit = world.decode(sample_clip(tuned, words["edit"], empty, inversion, SampleSettings(CFG))[0])
    shift = average_shift(list(measure_clip(tuned, words["prompt"], latent, 0.5, case.seed)[0].values()))
    return {
        **asdict(case),
        **judge(edit, source, notes["edit"], world.reader),
        "mean_shift": shift.mean_shift,
        "covariance_ratio": shift.covariance_ratio,
        "loss": fmean(tune.info["loss"][-max(1, case.steps // 5) :]),
        "seconds": round(time.monotonic() - began, 1),
    }


def list_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Return every case, all norms of a clip and seed before the next."""
    for seed, clip in itertools.product(range(options.seeds), options.clips):
        for norm, spectral in itertools.product(NORMS, ("off", "on")):
            yield Case(norm, spectral, clip, seed, options.steps, options.ddim_steps)


def measure_norms(options: argparse.Namespace) -> None:
    """Run what is not done yet, and write the table."""
    cases, path = list(list_cases(options)), options.state / "norms.jsonl"
    done = load_rows(path, Case)
    world = World() if any(case not in done for case in cases) else None
    for number, case in enumerate(cases, start=1):
        if case not in done:
            assert world is not None, "made where something is left"
            with torch.inference_mode():
                done[case] = run_case(world, case)
            add_row(path, done[case])
        seconds = done[case]["seconds"]
        say(f"{number:4} of {len(cases)}  {case.clip}  {case.norm}, spectral norm {case.spectral}  {seconds} s")
    rows = [done[case] for case in cases]
    options.document.write_text(make_document(rows, options), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    say(f"Wrote {options.document}")


def against(rows: list[Row], reference: list[Row], key: str) -> str:
    """Return the mean of a figure, and its difference to EI²'s own on the same clips and seeds."""
    mean = mean_and_error([row[key] for row in rows]).split(" ±")[0]
    if rows is reference:
        return mean
    pairs = [(row[key], own[key]) for row, own in zip(rows, reference, strict=True)]
    apart = mean_and_error([mine - its for mine, its in pairs if None not in (mine, its)])
    return f"{mean} ({apart if apart.startswith(('-', 'none')) else f'+{apart}'})"


def make_document(rows: list[Row], options: argparse.Namespace) -> str:
    """Return the document of the rows."""
    columns = {
        "obeyed": "attributes read right",
        "motion_error": "motion error, px",
        "flicker": "flicker of area",
        "mean_shift": "mean shift",
        "covariance_ratio": "covariance ratio",
        "loss": "loss",
    }
    groups = {
        (norm, spectral): [row for row in rows if (row["norm"], row["spectral"]) == (norm, spectral)]
        for norm, spectral in itertools.product(NORMS, ("off", "on"))
    }
    reference = groups[OWN]
    body = [
        [norm, spectral, *(against(group, reference, key) for key in columns)]
        for (norm, spectral), group in groups.items()
    ]
    count = len(rows) // len(groups)
    return "\n".join(
        [
            "# The norm in the temporal module",
            "",
            "Written by `python -m bench norms`. EI²'s Figure 4 asks what the temporal module's norm and the spectral "
            "norm of its value and output matrices do; here with the demo model, "
            f"{', '.join(options.clips)}, seeds below {options.seeds}: {count} tuned edits in each row. "
            "A cell holds the mean and, in brackets, the difference to EI²'s own row over the same clips and seeds ± "
            f"its standard error. FFAM with r = {R}, {options.steps} steps of tuning at {LEARNING_RATE:g}, "
            f"{options.ddim_steps} DDIM steps, the clip inverted with an empty prompt at gamma {GAMMA:g}, CFG {CFG:g}.",
            "",
            write_table(["norm", "spectral norm", *columns.values()], body),
            "",
            "- *Attributes read right*: colour and shape of the edited prompt as read from the frames' pixels, share "
            "of the frames.",
            "- *Motion error*: distance of the object's centroid from the source's.",
            "- *Flicker of area*: standard deviation of the change from frame to frame of the object's area over the "
            "source's, as a part of its mean.",
            "- *Mean shift*, *covariance ratio*: what the tuned temporal modules do to the features, mean over blocks, "
            "as Covariate Shift Report says it.",
            "- *Loss*: mean over the last fifth of the tuning.",
            "",
        ]
    )
