"""One edit of a drawn clip by one method: made, timed and judged."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from types import TracebackType
from typing import Any

import torch
from comfy.model_management import get_torch_device
from comfy.model_patcher import ModelPatcher
from comfy.sample import sample_custom
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..modules.attention_control.host.call import ControlSettings
from ..modules.attention_control.host.control import attach_control
from ..modules.attention_control.host.prompts import read_prompts
from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.methods import method
from ..modules.diffusion.ddim import sample_ddim
from ..modules.diffusion.host.latent import sigma_table
from ..modules.diffusion.schedule import ddim_sigmas
from ..modules.inversion.host.invert import invert_clip
from ..modules.inversion.inversion import InversionSettings
from ..modules.judging.covariate_shift import average_shift
from ..modules.judging.host.report import measure_clip
from ..modules.judging.reconstruction import psnr
from ..modules.motion.variational import estimate_motion
from ..modules.prompt_tokens.adapter import PromptAdapter
from ..modules.prompt_tokens.host.session import PromptSettings
from ..modules.prompt_tokens.host.tokens import apply_prompt_tokens, tune_prompt
from ..modules.sampling.host import RelationSettings, SampleSettings, sample_clip
from ..modules.tuning.host.apply import apply_tune
from ..modules.tuning.host.progress import TuningProgress
from ..modules.tuning.host.training import tune_model
from ..modules.tuning.host.tune_inputs import TuneInputs
from ..modules.tuning.settings import TuneSettings
from .edit_rows import Case, world_stamp
from .methods import AS_DRAWN, DO_NOTHING, FROM_TEXT, METHODS, TEXT_CFG, Method, Tuned
from .tasks import Task, Truth
from .timing import synchronise
from .world import Row, World

TOKEN_RATE, MASK_THRESHOLD = 1e-2, 0.7
STRENGTH = 0.5  # of the relation: above it, what alternates from frame to frame is inverted


class Watch:
    """The seconds of a stretch of work: as a context."""

    def __enter__(self) -> "Watch":
        self.began = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        synchronise(get_torch_device())
        self.seconds = time.perf_counter() - self.began


class Bench:
    """The demo model, the truth of the clip at hand, and its tuned models."""

    def __init__(self, world: World):
        self.world = world
        self.key: tuple = ()
        self.truth: Truth
        self.tuned: dict[tuple, tuple[ModelPatcher, Watch]] = {}
        self.learned: dict[tuple, tuple[PromptAdapter, Watch]] = {}
        self.latent: dict[str, Any] = {}
        self.inverted: dict[tuple, dict[str, Any]] = {}
        self.reconstructed: dict[int, float] = {}  # by the id of an inversion that is held

    def turn_to(self, case: Case, task: Task) -> None:
        """Make the clip of a case the current one; tunings and inversions of another are forgotten."""
        key = case.clip, case.held_out, case.seed
        if key != self.key:
            self.key, self.truth = key, Truth(task)
            self.latent = self.world.encode(self.truth.source.frames)
            self.tuned, self.learned, self.inverted, self.reconstructed = {}, {}, {}, {}

    def model(self, case: Case, how: Tuned) -> tuple[ModelPatcher, Watch | None]:
        """Return the model of a method, and what its tuning took."""
        base = self.world.flow if how.path == "flow" else self.world.model
        model = attach(inflate(base), *method(**dict(how.patch)))  # type: ignore[arg-type]
        if not how.tuned:
            return model, None
        weight = case.value if how.smoothing != "none" else 0.0
        key = (how, case.steps, case.rate, weight)
        if key not in self.tuned:
            settings = TuneSettings(case.steps, case.seed).changed(
                learning_rate=case.rate, smoothing=how.smoothing, smoothing_weight=weight
            )
            with Watch() as watch:
                tune = tune_model(model, self.inputs(), settings, TuningProgress(""))
            self.tuned[key] = apply_tune(model, tune), watch
        return self.tuned[key]

    def inputs(self) -> TuneInputs:
        """Return what the clip at hand is tuned with."""
        return TuneInputs(self.world.prompt(self.truth.task.prompts[0]), self.latent)

    def tokens(self, case: Case, how: Method, model: ModelPatcher) -> tuple[PromptAdapter | None, Watch | None]:
        """Return the prompt tokens of a method, and what learning them took."""
        if not how.tokens:
            return None, None
        key = how.model, case.steps, case.rate
        if key not in self.learned:
            settings = TuneSettings(case.steps, case.seed).changed(learning_rate=TOKEN_RATE)
            given = model, self.inputs(), settings, PromptSettings(), TuningProgress("")
            with Watch() as watch:
                adapter = tune_prompt(*given, with_advice=False).adapter
            self.learned[key] = adapter, watch
        return self.learned[key]

    def prompt(self, words: str, tokens: PromptAdapter | None) -> list:
        """Return a prompt with learned tokens before it, if there are any."""
        plain = self.world.prompt(words)
        return plain if tokens is None else apply_prompt_tokens(plain, tokens, len(self.truth.source.frames), 1.0, 1.0)

    def invert(self, case: Case, model: ModelPatcher, prompt: list, shares: bool) -> dict[str, Any]:
        """Return the inversion of a method; where `shares` is set, one that another method made alike."""
        how = METHODS[case.method]
        settings = InversionSettings(
            case.ddim_steps,
            how.gamma,
            how.direction,
            how.reading,
            start=how.start,
            denoise=case.denoise,
            method=how.inversion,
        )
        tuned = (case.steps, case.rate, case.value if how.model.smoothing != "none" else 0.0) if how.draws else ()
        key = how.model, how.tokens, tuned, settings
        found = self.inverted.get(key) if shares else None
        if found is None:
            found = invert_clip(model, prompt, prompt, self.latent, settings)
            self.inverted[key] = found
        return found

    def edit(self, case: Case, shares: bool = False) -> tuple[Tensor, float, float | None]:
        """Return the edited frames, the seconds of the edit, and those of the tunings if there are any.

        Args:
            case: what is made.
            shares: whether the inversion may be one that another method made; not where it is timed.
        """
        how = METHODS[case.method]
        model, tuning = self.model(case, how.model)
        tokens, learning = self.tokens(case, how, model)
        frames, prompts = self.truth.source.frames, self.truth.task.prompts
        with Watch() as watch:
            source, edited = (self.prompt(words, tokens) for words in prompts)
            inversion = self.invert(case, model, source, shares)
            if how.control:
                control = ControlSettings("refine", case.value, how.control, case.value, threshold=MASK_THRESHOLD)
                words = ",".join({self.truth.task.source.shape, self.truth.task.wanted.shape})
                read = read_prompts(self.world.text, *prompts, mask=words)
                model = attach_control(model, inversion, source, read, control)
            relation = None
            if how.relation:
                motion = estimate_motion(frames.movedim(1, -1)) if how.relation == "motion" else None
                relation = RelationSettings(STRENGTH, end=case.end, motion=motion, passes=case.passes)
            sampling = SampleSettings(case.cfg, cfg_end=case.cfg_end, relation=relation)
            negative = source if how.from_source else self.prompt("", tokens)
            sampled = sample_clip(model, edited, negative, inversion, sampling)[0]
            found = self.world.decode(sampled).clamp(0, 1)
        tunings = [took.seconds for took in (tuning, learning) if took is not None]
        return found, watch.seconds, sum(tunings) if tunings else None

    def draw_from_text(self, case: Case) -> Tensor:
        """Return frames that the model draws from the edited prompt and independent noise, by DDIM from the top."""
        task, model = self.truth.task, self.world.model
        latent = torch.zeros_like(self.latent["samples"])
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(task.wanted.seed))
        sigmas = ddim_sigmas(sigma_table(model), case.ddim_steps)
        edited, empty = self.world.prompt(task.prompts[1]), self.world.prompt("")
        sampled = sample_custom(model, noise, case.cfg, KSAMPLER(sample_ddim), sigmas, edited, empty, latent)
        return self.world.decode({"samples": sampled}).clamp(0, 1)

    def judge_model(self, case: Case) -> Row:
        """Return what is measured of a method's inversion and model, not of its edit."""
        how = METHODS[case.method]
        model, source = self.model(case, how.model)[0], self.truth.task.prompts[0]
        prompt = self.prompt(source, self.tokens(case, how, model)[0])
        inversion = self.invert(case, model, prompt, shares=True)
        if id(inversion) not in self.reconstructed:
            back = sample_clip(model, prompt, prompt, inversion, SampleSettings(1.0))[0]
            found = psnr(self.world.decode(back), self.world.decode(self.latent))
            self.reconstructed[id(inversion)] = fmean(found)
        row: Row = {"reconstruction": self.reconstructed[id(inversion)], "mean_shift": None, "covariance_ratio": None}
        if how.model.tuned:
            shift = average_shift(list(measure_clip(model, prompt, self.latent, 0.5, case.seed)[0].values()))
            row |= {"mean_shift": shift.mean_shift, "covariance_ratio": shift.covariance_ratio}
        return row

    def run(self, case: Case, task: Task) -> tuple[Row, Tensor]:
        """Edit and judge."""
        self.turn_to(case, task)
        measured: Row = dict.fromkeys(("reconstruction", "mean_shift", "covariance_ratio"))
        if case.method == DO_NOTHING:
            found = self.truth.source.frames
        elif case.method == AS_DRAWN:
            found = self.world.decode(self.world.encode(self.truth.wanted.frames)).clamp(0, 1)
        elif case.method == FROM_TEXT:
            found = self.draw_from_text(case)
        else:
            found, *_ = self.edit(case, shares=True)
            if case.held_out:
                measured = self.judge_model(case)
        judged = self.truth.judge(found, self.world.reader)
        if case.method == FROM_TEXT:  # it has neither the clip's motion nor its picture
            judged = {key: value if key in ("obeyed", "kept") else None for key, value in judged.items()}
        return {**asdict(case), **judged, **measured}, found


def make_case(
    name: str, clip: str, held_out: bool, seed: int, options: argparse.Namespace, chosen: Mapping[str, float]
) -> Case:
    """Return a case with the hyper-parameters that are chosen."""
    how = METHODS.get(name)
    if how is None:
        steps, cfg = (options.ddim_steps, TEXT_CFG) if name == FROM_TEXT else (0, 0.0)
        return Case(name, clip, held_out, seed, 0, 0.0, steps, cfg, 0.0, 0.0, 0, 0.0, 0.0, world_stamp())
    own = {**chosen, **dict(how.own)}
    return Case(
        name,
        clip,
        held_out,
        seed,
        steps=options.steps if how.draws else 0,
        rate=own["rate"] if how.model.tuned else 0.0,
        ddim_steps=options.ddim_steps,
        cfg=own["cfg"],
        cfg_end=own["cfg_end"],
        denoise=own["denoise"],
        passes=int(own["passes"]) if how.relation else 0,
        end=own["end"] if how.relation else 0.0,
        value=own[how.takes] if how.takes else 0.0,
        world=world_stamp(),
    )
