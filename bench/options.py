"""What might make a tuning step or a UNet call faster: compiling, the memory layout, other optimisers."""

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from unittest import mock

import torch
from comfy.model_management import unload_all_models
from torch import nn

from ..modules.tuning import updates
from ..modules.tuning.settings import OptimizerName
from .performance import Job, Row, Setting, measure_jobs, read_setting
from .table import write_table
from .timing import balanced_order, in_common, ratios, read_turns, time_calls, write_milliseconds, write_spread
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
    """The turn of an option in a round, in tuning steps or in UNet calls."""

    what: str
    option: str
    round_number: int
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


def options_of(what: str) -> dict[str, Option]:
    """Return the options that concern tuning steps or UNet calls."""
    return {name: option for name, option in OPTIONS.items() if option.samples or what == "tuning step"}


def run_case(case: Case) -> Row:
    """Do a turn on a model of its own; seconds are None where it fails."""
    unload_all_models()
    torch.compiler.reset()
    try:
        return {"seconds": MEASURED[case.what](case, OPTIONS[case.option])}
    except (AssertionError, RuntimeError) as error:  # of compilers, whose faults are what is measured here
        if case.option == AS_IT_IS:
            raise
        return {"seconds": None, "failed": ": ".join([type(error).__name__, *str(error).splitlines()[:1]])}


def measure_options(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = replace(read_setting(options, cpu_size=16, cpu_frames=4), rounds=2)
    cases = [
        Case(**asdict(setting), what=what, option=name, round_number=number, steps=5 if setting.device == "cuda" else 1)
        for what in MEASURED
        for number in range(setting.rounds)
        for name in balanced_order([name for name, option in options_of(what).items() if option.can_run()], number)
    ]
    measure_jobs("options", options, [Job("options", cases, run_case)], partial(make_section, setting))


def make_lines(what: str, rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield the lines of tuning steps or of UNet calls, as far as they are measured."""
    turns, failed = read_turns(rows, "option"), {row["option"]: row.get("failed") for row in rows}
    for name, option in options_of(what).items():
        if name in turns:
            both = in_common(turns, name, AS_IT_IS)
            against = write_spread(ratios(both, name, AS_IT_IS)) if both else ""
            yield [name, what, write_milliseconds(list(turns[name].values())), against]
        elif name in failed or not option.can_run():
            yield [name, what, "", failed.get(name) or "cannot run here"]


def make_section(setting: Setting, rows: Sequence[Row]) -> str:
    """Return the section's text."""
    body = [line for what in MEASURED for line in make_lines(what, [row for row in rows if row["what"] == what])]
    return "\n\n".join(
        [
            f"{setting}. EI², r = 4. None of them is on by itself.",
            write_table(["option", "of a", "ms", f"× {AS_IT_IS}"], body),
        ]
    )
