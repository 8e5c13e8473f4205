"""What might make a tuning step or a UNet call faster: compiling, the memory layout, other optimisers."""

import argparse
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from unittest import mock

import torch
from comfy.model_management import unload_all_models
from torch import nn

from ..modules.tuning import updates
from ..modules.tuning.settings import OptimizerName
from .document import write_section
from .performance import Row, Setting, complete_rows, read_setting
from .table import write_table
from .timing import Times, balanced_order, ratios, time_calls, write_milliseconds, write_spread
from .tune import Way, clip_model, tuning
from .unets import guided_call, load, make_model

AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Option:
    """Something that might be faster.

    Attributes:
        prepare: changes the UNet in place.
        during: what holds meanwhile.
        optimizer: of the tuning.
        samples: whether it concerns sampling as well.
        needs: a package, or a program, without which it cannot be tried.
    """

    prepare: Callable[[nn.Module], object] = lambda unet: None
    during: Callable[[], AbstractContextManager] = nullcontext
    optimizer: OptimizerName = "AdamW"
    samples: bool = True
    needs: str = ""

    def can_run(self) -> bool:
        """Whether what it needs is there."""
        return not self.needs or bool(shutil.which(self.needs) or find_spec(self.needs))


OPTIONS = {
    AS_IT_IS: Option(),
    "channels-last": Option(lambda unet: unet.to(memory_format=torch.channels_last)),  # type: ignore[call-overload]
    "AdamW, not fused": Option(during=partial(mock.patch.object, updates, "FUSED", ()), samples=False),
    "AdamW 8-bit": Option(optimizer="AdamW 8-bit", samples=False, needs="bitsandbytes"),
    "torch.compile": Option(lambda unet: unet.compile(dynamic=False), needs="gcc"),
}


@dataclass(frozen=True)
class Case(Setting):
    """All options, turn by turn, in tuning steps or in UNet calls."""

    what: str
    steps: int


def time_tuning(case: Case, option: Option) -> float:
    """Return the seconds of a tuning step; the first with the option is not timed."""
    with (
        option.during(),
        tuning(clip_model(make_model(), Way()), Way(optimizer=option.optimizer), case.frames, case.size) as made,
    ):
        option.prepare(made.copy.model.diffusion_model)
        made.step()
        return time_calls(made.step, case.steps, torch.device(case.device))


def time_sampling(case: Case, option: Option) -> float:
    """Return the seconds of a guided UNet call; the first is not timed."""
    with torch.no_grad():
        model = clip_model(make_model(), Way())
        load([model])
        option.prepare(model.model.diffusion_model)
        call = guided_call(model, case.frames, case.size)
        call()
        return time_calls(call, case.steps, torch.device(case.device))


MEASURED = {"tuning step": time_tuning, "guided UNet call": time_sampling}


def run_case(case: Case) -> Row:
    """Do a turn of every option in each round, each on a model of its own; one that fails has no further turn."""
    able = [
        name for name, option in OPTIONS.items() if option.can_run() and (option.samples or case.what == "tuning step")
    ]
    times: Times = {name: [] for name in able}
    failed: dict[str, str] = {}
    for number in range(case.rounds):
        for name in balanced_order([name for name in able if name not in failed], number):
            unload_all_models()
            torch.compiler.reset()
            try:
                times[name].append(MEASURED[case.what](case, OPTIONS[name]))
            except (AssertionError, RuntimeError) as error:  # of compilers, whose faults are what is measured here
                if name == AS_IT_IS:
                    raise
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return {"seconds": {name: its for name, its in times.items() if name not in failed}, "failed": failed}


def measure_options(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = read_setting(options, cpu_size=16, cpu_frames=4)
    steps = 5 if setting.device == "cuda" else 1
    cases = [Case(**{**asdict(setting), "rounds": 2}, what=what, steps=steps) for what in MEASURED]
    write_section(
        options.document, "options", make_section(setting, complete_rows("options", options, cases, run_case))
    )


def make_section(setting: Setting, rows: list[Row]) -> str:
    """Return the section's text."""
    body = []
    for row in rows:
        for name in OPTIONS:
            seconds = row["seconds"].get(name)
            its = (
                ["", row["failed"].get(name, "cannot run here")]
                if seconds is None
                else [write_milliseconds(seconds), write_spread(ratios(row["seconds"], name, AS_IT_IS))]
            )
            if OPTIONS[name].samples or row["what"] == "tuning step":
                body.append([name, row["what"], *its])
    return "\n\n".join(
        [
            f"{setting}. EI², r = 4. None of them is on by itself.",
            write_table(["option", "of a", "ms", f"× {AS_IT_IS}"], body),
        ]
    )
