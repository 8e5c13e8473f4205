"""Times of several things in one run, turn by turn in balanced order, and what they say against each other."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]
Times = dict[str, list[float]]
Turns = dict[str, dict[int, float]]  # seconds in each round
LEAST_SECONDS = 0.02  # of a timed turn, so that the clock is exact enough


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(call: Call, calls: int, device: torch.device) -> float:
    """Return the mean seconds of some calls."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(calls):
        call()
    synchronise(device)
    return (time.perf_counter() - began) / calls


def balanced_order(names: Sequence[str], round_number: int) -> list[str]:
    """Return the order of a round: every second one is reversed, so that each place is shared over two rounds."""
    return list(names) if round_number % 2 == 0 else list(reversed(names))


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> Call:
    """Return a call of a function and of the gradients of its inputs."""

    def run() -> object:
        found = function()
        return torch.autograd.grad(found, inputs, torch.ones_like(found))

    return torch.enable_grad()(run)


def time_rounds(contenders: Mapping[str, Call], rounds: int, device: torch.device) -> Times:
    """Return the seconds of a call of each contender in each round, all in the same run; a first call is not timed."""
    calls = {}
    for name, call in contenders.items():
        call()
        calls[name] = max(1, round(LEAST_SECONDS / max(time_calls(call, 1, device), 1e-9)))
    times: Times = {name: [] for name in contenders}
    for number in range(rounds):
        for name in balanced_order(list(contenders), number):
            times[name].append(time_calls(contenders[name], calls[name], device))
    return times


def read_turns(rows: Iterable[Mapping[str, Any]], key: str) -> Turns:
    """Return the seconds from rows of a turn each, by what had it, as a key says; those that failed are left out."""
    turns: Turns = {}
    for row in rows:
        if row["seconds"] is not None:
            turns.setdefault(row[key], {})[row["round_number"]] = row["seconds"]
    return turns


def in_common(turns: Turns, *names: str) -> Times:
    """Return the times in the rounds in which all of these had a turn."""
    rounds = set.intersection(*(set(turns.get(name, ())) for name in names))
    return {name: [turns[name][number] for number in sorted(rounds)] for name in names if rounds}


def ratios(times: Times, name: str, reference: str) -> list[float]:
    """Return a contender's time as a multiple of another's in each round."""
    return [mine / its for mine, its in zip(times[name], times[reference], strict=True)]


def write_spread(values: Sequence[float]) -> str:
    """Return the median and, in brackets, the quartiles."""
    if len(values) < 2:
        return f"{values[0]:.3g}"
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):.3g} ({low:.3g} to {high:.3g})"


def write_milliseconds(seconds: Sequence[float]) -> str:
    """Return the median of times in milliseconds."""
    milliseconds = 1000 * median(seconds)
    return f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:.0f}"
