"""An empirical study of prompt adapters (arXiv 2504.16016), which has none: what its consistency loss and bounds do.

Drawn clips, the demo model with EI²'s attention. Every row of a clip sees the same noise levels and noises, so that
losses compare one by one.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.methods import EI2, method
from ..modules.inversion.host.invert import invert_clip
from ..modules.inversion.inversion import InversionSettings
from ..modules.prompt_tokens.host.session import PromptSettings
from ..modules.prompt_tokens.host.tokens import LearnedTokens, apply_prompt_tokens, tune_prompt
from ..modules.sampling.host import SampleSettings, sample_clip
from ..modules.tuning.host.apply import apply_tune
from ..modules.tuning.host.progress import TuningProgress
from ..modules.tuning.host.training import tune_model
from ..modules.tuning.host.tune_inputs import TuneInputs
from ..modules.tuning.learning_rate import safe_learning_rate
from ..modules.tuning.settings import TuneSettings
from ..scripts.environment import say
from ..scripts.parts import CFG, CFG_END
from .edit_rows import world_stamp
from .table import add_row, load_rows, mean_and_error, write_table
from .tasks import KINDS, Truth, list_tasks
from .world import Row, World

TOKENS, LOW_RANK, STAM = "tokens", "tokens and LoRA", "query projections and STAM"
RATES = {TOKENS: 1e-2, LOW_RANK: 1e-2, STAM: 3e-4}  # of AdamW
RANK = 4
WEIGHTS = (0.0, 1.0, 10.0, 100.0)  # of the consistency loss against the diffusion loss
UNSEEN = 1e-12  # a weight that moves nothing, so that the loss is still measured
OF_LIMIT = (1.0, 4.0)  # learning rates of gradient descent, in 1 / L; above 2 a step may raise its loss
JUDGED = {
    "obeyed": "obeyed",
    "motion_error": "motion error, px",
    "warp_error": "warp error, 10⁻³",
    "flicker": "flicker",
    "texture": "texture",
}


@dataclass(frozen=True)
class Case:
    """One tuning of a drawn clip, and its edit.

    Attributes:
        learner: what is learned, a key of RATES.
        weight: of the consistency loss.
        of_limit: learning rate of gradient descent in units of 1 / L; 0 = AdamW at the rate of RATES.
        clip: name of the task.
        steps, ddim_steps: of the tuning, and of inversion and sampling.
        world: identifies the demo model and the way of measuring.
    """

    learner: str
    weight: float
    of_limit: float
    clip: str
    steps: int
    ddim_steps: int
    world: str


def list_cases(options: argparse.Namespace) -> list[Case]:
    """Return the cases, all of a clip before the next."""
    given = options.steps, options.ddim_steps, world_stamp()
    ways = [(learner, weight, 0.0) for learner in RATES for weight in WEIGHTS]
    ways += [(TOKENS, 0.0, of_limit) for of_limit in OF_LIMIT]
    clips = list_tasks(options.clips_of_kind, held_out=False, kinds=options.kinds or KINDS)
    return [Case(*way, clip, *given) for clip in clips for way in ways]


class Study:
    """The demo model, and the clip that is measured."""

    def __init__(self) -> None:
        self.world = World()
        self.model = attach(inflate(self.world.model), *method(EI2))
        self.truth = cache(Truth)

    def tune_tokens(self, inputs: TuneInputs, settings: TuneSettings, rank: int = 0) -> LearnedTokens:
        """Learn tokens, or with a rank tokens and low-rank adapters; without a rank the curvatures are measured."""
        prompt = PromptSettings(rank=rank)
        return tune_prompt(self.model, inputs, settings, prompt, TuningProgress(""), with_advice=not rank)

    def learn(self, case: Case, truth: Truth) -> tuple[ModelPatcher, Any, Row]:
        """Return the model, the tokens or None, and what was measured of the tuning."""
        inputs = TuneInputs(self.world.prompt(truth.task.prompts[0]), self.world.encode(truth.source.frames))
        settings = TuneSettings(case.steps, seed=0).changed(
            learning_rate=RATES[case.learner], consistency_weight=case.weight or UNSEEN
        )
        if case.learner == STAM:
            tune = tune_model(self.model, inputs, settings, TuningProgress(""))
            return apply_tune(self.model, tune), None, losses_of(tune.info)
        rank = RANK if case.learner == LOW_RANK else 0
        if case.of_limit:
            before = self.tune_tokens(inputs, replace(settings, steps=1)).curvatures
            rate = case.of_limit * safe_learning_rate(before)
            settings = settings.changed(learning_rate=rate, optimizer="gradient descent", max_grad_norm=0.0)
        learned = self.tune_tokens(inputs, settings, rank)
        row = {
            "rate": settings.optimization.learning_rate,
            "rises": learned.adapter.info.get("rises"),
            "curvatures": [asdict(curvature) for curvature in learned.curvatures],
            "smoothness": asdict(learned.smoothness) if learned.smoothness else None,
        }
        model = comfy.sd.load_lora_for_models(self.model, None, learned.low_rank, 1.0, 0.0)[0] if rank else self.model
        return model, learned.adapter, losses_of(learned.adapter.info) | row

    def run(self, case: Case, truth: Truth) -> Row:
        """Tune, edit and judge; a descent that diverges has no figures."""
        try:
            model, tokens, row = self.learn(case, truth)
        except FloatingPointError as error:
            if not case.of_limit:
                raise
            say(f"{case.of_limit:g} / L: {error}")
            return {**asdict(case), **dict.fromkeys(("rate", "rises", "loss", "consistency_loss", *JUDGED))}

        def prompt(words: str) -> list:
            plain = self.world.prompt(words)
            return plain if tokens is None else apply_prompt_tokens(plain, tokens, len(truth.source.frames))

        source, edited = map(prompt, truth.task.prompts)
        latent, settings = self.world.encode(truth.source.frames), InversionSettings(case.ddim_steps, 0.0, "none")
        inversion = invert_clip(model, source, source, latent, settings)
        sampled = sample_clip(model, edited, source, inversion, SampleSettings(CFG, cfg_end=CFG_END))[0]
        judged = truth.judge(self.world.decode(sampled).clamp(0, 1), self.world.reader)
        return {**asdict(case), **row, **{key: judged[key] for key in JUDGED}}


def losses_of(info: dict[str, Any]) -> Row:
    """Return the losses of a tuning, each the mean over the later half of the steps."""
    return {key: fmean(info[key][len(info[key]) // 2 :]) for key in ("loss", "consistency_loss")}


def measure_adapters(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the document."""
    make, path = cache(Study), options.state / "adapters.jsonl"
    tasks = list_tasks(options.clips_of_kind, held_out=False, kinds=options.kinds or KINDS)
    cases, done = list_cases(options), load_rows(path, Case)
    truth = cache(lambda clip: Truth(tasks[clip]))
    for number, case in enumerate(cases, start=1):
        if case not in done:
            with torch.inference_mode():
                done[case] = make().run(case, truth(case.clip))
            add_row(path, done[case])
        say(f"{number:4} of {len(cases)}  {case.clip}  {case.learner}, weight {case.weight:g}, {case.of_limit:g} / L")
    write_document(options.document, [done[case] for case in cases], options)


def write_document(document: Path, rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Write the tables of some rows."""
    document.parent.mkdir(parents=True, exist_ok=True)
    clips, rates = len({row["clip"] for row in rows}), ", ".join(f"{name} at {rate:g}" for name, rate in RATES.items())
    text = [
        "# Prompt adapters, measured",
        f"Written by `python -m bench adapters`: {clips} drawn clip{'s' * (clips > 1)}, the demo model with EI²'s "
        f"attention, tuned for {options.steps} steps (AdamW: {rates}), "
        f"{options.ddim_steps} DDIM steps, no noise relation. All rows of a clip see the same noise levels and noises. "
        "A cell holds the mean over the clips ± its standard error; losses are means over the later half of the steps. "
        "Figures of edits: see [benchmark.md](benchmark.md).",
        "## The temporal consistency loss",
        "Its weight against the diffusion loss; at 0 it is measured, and moves nothing.",
        weights_table(rows),
        "## Its smoothness",
        "The Lipschitz constant of the consistency loss's gradient by a block's features: the bound that is proven "
        "from their least norm, and what power iteration finds, from below, on the clips after the tokens' tuning.",
        smoothness_table(rows),
        "## Gradient descent",
        "Of the tokens, at rates given by L, the largest curvature that power iteration finds before the first step, "
        "beside AdamW. *Rises*: steps that raised the very loss they were taken on, of all.",
        descent_table(rows),
    ]
    document.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    say(f"Wrote {document}")


def cells(rows: Iterable[Row], *keys: str) -> list[str]:
    """Return the cells of some rows' figures."""
    found = list(rows)
    return [mean_and_error([row[key] for row in found]) for key in keys]


def weights_table(rows: Sequence[Row]) -> str:
    """Return learner × weight of the consistency loss."""
    body = []
    for learner in RATES:
        for weight in WEIGHTS:
            own = [row for row in rows if (row["learner"], row["weight"], row["of_limit"]) == (learner, weight, 0.0)]
            body.append([learner, f"{weight:g}", *cells(own, "loss", "consistency_loss", *JUDGED)])
    return write_table(["learned", "weight", "diffusion loss", "consistency loss", *JUDGED.values()], body)


def smoothness_table(rows: Sequence[Row]) -> str:
    """Return the bound beside what is found."""
    body = []
    for weight in WEIGHTS:
        own = [
            row["smoothness"] | {"ratio": row["smoothness"]["bound"] / row["smoothness"]["found"]}
            for row in rows
            if (row["learner"], row["weight"], row["of_limit"]) == (TOKENS, weight, 0.0)
        ]
        body.append([f"{weight:g}", *cells(own, "least_norm", "bound", "found", "ratio")])
    return write_table(["weight", "least norm", "bound", "found", "bound / found"], body)


def descent_table(rows: Sequence[Row]) -> str:
    """Return gradient descent beside AdamW."""
    body = []
    for of_limit in (*OF_LIMIT, 0.0):
        own = [row for row in rows if (row["learner"], row["weight"], row["of_limit"]) == (TOKENS, 0.0, of_limit)]
        name = f"gradient descent, {of_limit:g} / L" if of_limit else "AdamW"
        rises = [len(row["rises"]) / row["steps"] for row in own if row["rises"] is not None]
        diverged = sum(row["loss"] is None for row in own)
        name += f", which diverged on {diverged} of {len(own)}" if diverged else ""
        found = cells(own, "rate", "loss", "obeyed", "motion_error", "warp_error")
        body.append([name, *found, mean_and_error(rises) if rises else ""])
    keys = ("obeyed", "motion_error", "warp_error")
    return write_table(["", "learning rate", "diffusion loss", *(JUDGED[key] for key in keys), "rises"], body)
