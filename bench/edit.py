"""Every way to edit a clip, on drawn clips that the model never saw, judged by the world that drew them.

Hyper-parameters are chosen on drawn clips of their own before the held-out ones are touched.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from statistics import fmean
from types import TracebackType
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..modules.host.apply import apply_tune
from ..modules.host.control import attach_control
from ..modules.host.control_call import ControlSettings
from ..modules.host.control_prompts import read_prompts
from ..modules.host.inversion import InversionSettings, invert_clip
from ..modules.host.patch import attach, inflate
from ..modules.host.progress import PeakMemory, TuningProgress
from ..modules.host.prompt_session import PromptSettings
from ..modules.host.prompt_tokens import apply_prompt_tokens, tune_prompt
from ..modules.host.sampling import RelationSettings, SampleSettings, sample_clip
from ..modules.host.training import tune_model
from ..modules.host.tune_inputs import TuneInputs
from ..modules.motion import estimate_motion
from ..modules.presets import method
from ..modules.prompt_adapter import PromptAdapter
from ..modules.tuning import TuneSettings
from ..scripts.environment import say
from .edit_document import write_document
from .edit_rows import Case, Rows, world_stamp
from .methods import AS_DRAWN, CHOICES, DO_NOTHING, METHODS, OBEYED, REFERENCE, Method, Tuned, gamma_row
from .tasks import KINDS, Task, Truth, list_tasks
from .world import Row, World

TOKEN_RATE, MASK_THRESHOLD = 1e-2, 0.7


class Watch:
    """The seconds of a stretch of work, and the most memory in GiB: as a context."""

    def __enter__(self) -> Watch:
        self.memory, self.ended = PeakMemory(), threading.Event()
        self.memory.look()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.began = time.monotonic()
        self.thread.start()
        return self

    def look(self) -> None:
        """Look at the memory until the work has ended."""
        while not self.ended.wait(0.02):
            self.memory.look()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds, self.peak = time.monotonic() - self.began, self.memory.look()


class Bench:
    """The demo model, the truth of the clip at hand, and its tuned models.

    Args:
        world: the demo model.
    """

    def __init__(self, world: World):
        self.world = world
        self.key: tuple = ()
        self.truth: Truth
        self.tuned: dict[tuple, tuple[ModelPatcher, Watch]] = {}
        self.learned: dict[tuple, tuple[PromptAdapter, Watch]] = {}
        self.reference: dict[tuple, float] = {}

    def turn_to(self, case: Case, task: Task) -> None:
        """Make the clip of a case the one at hand; tunings of another are forgotten."""
        key = case.clip, case.held_out, case.seed
        if key != self.key:
            self.key, self.truth, self.tuned, self.learned = key, Truth(task), {}, {}

    def model(self, case: Case, how: Tuned) -> tuple[ModelPatcher, Watch | None]:
        """Return the model of a method, and what its tuning took."""
        model = attach(inflate(self.world.model), *method(**dict(how.patch)))  # type: ignore[arg-type]
        if not how.tuned:
            return model, None
        weight = case.value if how.smoothing != "none" else 0.0
        key = (how, case.steps, case.rate, weight)
        if key not in self.tuned:
            settings = TuneSettings(case.steps, case.rate, case.seed, smoothing=how.smoothing, smoothing_weight=weight)
            with Watch() as watch:
                tune = tune_model(model, self.inputs(), settings, TuningProgress(""))
            self.tuned[key] = apply_tune(model, tune), watch
        return self.tuned[key]

    def inputs(self) -> TuneInputs:
        """Return what the clip at hand is tuned with."""
        prompt, frames = self.truth.task.prompts[0], self.truth.source.frames
        return TuneInputs(self.world.prompt(prompt), self.world.encode(frames))

    def tokens(self, case: Case, how: Method, model: ModelPatcher) -> tuple[PromptAdapter | None, Watch | None]:
        """Return the prompt tokens of a method, and what learning them took."""
        if not how.tokens:
            return None, None
        key = how.model, case.steps, case.rate
        if key not in self.learned:
            settings = TuneSettings(case.steps, TOKEN_RATE, case.seed)
            given = model, self.inputs(), settings, PromptSettings(), TuningProgress("")
            with Watch() as watch:
                adapter = tune_prompt(*given, with_advice=False).adapter
            self.learned[key] = adapter, watch
        return self.learned[key]

    def prompt(self, words: str, tokens: PromptAdapter | None) -> list:
        """Return a prompt with learned tokens before it, if there are any."""
        plain = self.world.prompt(words)
        return plain if tokens is None else apply_prompt_tokens(plain, tokens, len(self.truth.source.frames), 1.0, 1.0)

    def edit(self, case: Case) -> tuple[Tensor, Watch, list[Watch]]:
        """Return the edited frames, and what the edit and the tunings took."""
        how = METHODS[case.method]
        model, tuning = self.model(case, how.model)
        tokens, learning = self.tokens(case, how, model)
        frames, prompts = self.truth.source.frames, self.truth.task.prompts
        with Watch() as watch:
            latent = self.world.encode(frames)
            empty, edited = self.prompt("", tokens), self.prompt(prompts[1], tokens)
            inverted = self.world.prompt(prompts[0]) if how.control else empty
            settings = InversionSettings(case.ddim_steps, how.gamma, how.direction)
            inversion = invert_clip(model, inverted, empty, latent, settings)
            if how.control:
                control = ControlSettings("refine", case.value, how.control, case.value, threshold=MASK_THRESHOLD)
                words = ",".join({self.truth.task.source.shape, self.truth.task.wanted.shape})
                read = read_prompts(self.world.text, *prompts, mask=words)
                model = attach_control(model, inversion, inverted, read, control)
            relation = None
            if how.relation:
                motion = estimate_motion(frames.movedim(1, -1)) if how.relation == "motion" else None
                relation = RelationSettings(case.value, motion=motion)
            sampled = sample_clip(model, edited, empty, inversion, SampleSettings(case.cfg, relation=relation))[0]
            found = self.world.decode(sampled).clamp(0, 1)
        return found, watch, [took for took in (tuning, learning) if took is not None]

    def seconds_per_frame(self, case: Case) -> float:
        """Return the seconds of editing the clip at hand per frame, to which others are set in relation."""
        key = case.clip, case.held_out, case.ddim_steps
        if key not in self.reference:
            plain = replace(case, method=REFERENCE, value=0.0, steps=0, rate=0.0)
            self.reference[key] = min(self.edit(plain)[1].seconds for _ in range(2))
        return self.reference[key]

    def run(self, case: Case, task: Task) -> tuple[Row, Tensor]:
        """Edit and judge."""
        self.turn_to(case, task)
        row = asdict(case)
        if case.method in (DO_NOTHING, AS_DRAWN):
            drawn = self.truth.source.frames
            if case.method == AS_DRAWN:
                drawn = self.world.decode(self.world.encode(self.truth.wanted.frames)).clamp(0, 1)
            cost: dict[str, float | None] = dict.fromkeys(("seconds", "cost", "tuning_cost", "memory"))
            return {**row, **self.truth.judge(drawn, self.world.reader), **cost}, drawn
        reference = self.seconds_per_frame(case)
        found, watch, tunings = self.edit(case)
        cost = {
            "seconds": watch.seconds,
            "cost": watch.seconds / reference,
            "tuning_cost": sum(took.seconds for took in tunings) / reference if tunings else None,
            "memory": max(took.peak for took in (watch, *tunings)),
        }
        return {**row, **self.truth.judge(found, self.world.reader), **cost}, found


def make_case(
    name: str, clip: str, held_out: bool, seed: int, options: argparse.Namespace, chosen: Mapping[str, float]
) -> Case:
    """Return a case with the hyper-parameters that are chosen."""
    how = METHODS.get(name)
    if how is None:
        return Case(name, clip, held_out, seed, 0, 0.0, 0, 0.0, 0.0, world_stamp())
    steps = options.steps if how.draws else 0
    rate = chosen["rate"] if how.model.tuned else 0.0
    value = chosen[how.takes] if how.takes else 0.0
    return Case(name, clip, held_out, seed, steps, rate, options.ddim_steps, chosen["cfg"], value, world_stamp())


def choose(rows: Rows, options: argparse.Namespace) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Choose the hyper-parameters on the validation clips, one after the other.

    Of the values whose edits obey within OBEYED of the best the one with the least warp error is taken; without
    validation clips, the first.

    Returns:
        Values by name, and what was measured of each value.
    """
    chosen = {choice.name: choice.values[0] for choice in CHOICES}
    if options.quick or not options.validation:
        return chosen, []
    tasks = list_tasks(options.validation, held_out=False)
    measured: list[dict[str, Any]] = []
    for choice in CHOICES:
        found: list[dict[str, Any]] = []
        for value in choice.values:
            name = choice.method if choice.way is None else gamma_row(choice.way, value)
            cases = [make_case(name, clip, False, 0, options, chosen | {choice.name: value}) for clip in tasks]
            own = [rows.get(case, tasks[case.clip]) for case in cases]
            figures = {key: fmean(row[key] for row in own) for key in ("obeyed", "warp_error")}
            found.append({"name": choice.name, "method": name, "value": value, **figures})
            say(f"validation  {choice.name} {value:g}  obeyed {figures['obeyed']:.2f}")
        best = max(entry["obeyed"] for entry in found)
        good = [entry for entry in found if entry["obeyed"] >= best - OBEYED]
        chosen[choice.name] = min(good, key=lambda entry: entry["warp_error"])["value"]
        measured += found
    return chosen, measured


def list_cases(options: argparse.Namespace, chosen: Mapping[str, float]) -> Iterator[Case]:
    """Return every held-out case, all of a clip and seed before the next; what nothing is drawn for once."""
    names = [name for name, how in METHODS.items() if how.quick or not options.quick]
    for seed in range(options.seeds):
        for clip in list_tasks(options.clips_of_kind, held_out=True, kinds=options.kinds or KINDS):
            if seed == 0:
                yield from (make_case(name, clip, True, 0, options, chosen) for name in (DO_NOTHING, AS_DRAWN))
            for name in names:
                if seed == 0 or METHODS[name].draws:
                    yield make_case(name, clip, True, seed, options, chosen)


def measure_edit(options: argparse.Namespace) -> None:
    """Choose on the validation clips, run what is not done yet, and write the document."""
    rows = Rows(options.state, lambda: Bench(World()))
    chosen, measured = choose(rows, options)
    tasks = list_tasks(options.clips_of_kind, held_out=True, kinds=options.kinds or KINDS)
    cases = list(list_cases(options, chosen))
    for number, case in enumerate(cases, start=1):
        began = time.monotonic()
        rows.get(case, tasks[case.clip])
        say(f"{number:4} of {len(cases)}  {case.clip}  {case.method}  {time.monotonic() - began:.1f} s")
    write_document(rows, cases, tasks, chosen, measured, options)
    if options.json:
        every = {"chosen": chosen, "validation": measured, "rows": [rows.done[case] for case in cases]}
        options.json.write_text(json.dumps(every, indent=1), encoding="utf-8")
    say(f"Wrote {options.document}")
