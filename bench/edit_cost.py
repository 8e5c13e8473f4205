"""What every way to edit takes: time turn by turn in the same run, and memory."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comfy.model_management import get_torch_device

from ..scripts.environment import say
from .edit_rows import Case
from .edit_run import Bench
from .memory_count import GIB, extra_memory
from .methods import METHODS, REFERENCE
from .table import add_row, load_rows
from .tasks import Task
from .timing import balanced_order

DDIM_STEPS, TUNING_STEPS = 5, 10  # of what is timed
COUNTED_TUNING_STEPS = 2  # the optimiser has its state from the first on
COSTS = ("cost", "tuning_cost", "memory", "seconds", "tuning_seconds")


@dataclass(frozen=True)
class Spent:
    """What a row on disk was measured of: the method with its clip and steps, and the kind of device."""

    method: str
    clip: str
    ddim_steps: int
    steps: int
    device: str


class Costs:
    """Times and memory that are known, on disk.

    Args:
        folder: of the files.
        make: returns the bench, where something is left to measure.
    """

    def __init__(self, folder: Path, make: Callable[[], Bench]):
        self.times_file, self.memory_file = folder / "edit_time.jsonl", folder / "edit_memory.jsonl"
        self.times, self.memory = load_rows(self.times_file, Spent), load_rows(self.memory_file, Spent)
        self.make, self.device = make, get_torch_device().type

    def turn_to(self, case: Case, task: Task) -> Bench:
        """Return the bench with the clip at hand, and nothing tuned."""
        bench = self.make()
        bench.key = ()
        bench.turn_to(case, task)
        return bench

    def key(self, case: Case) -> Spent:
        """Return what a case is known by."""
        return Spent(case.method, case.clip, case.ddim_steps, case.steps, self.device)

    def timed(self, case: Case) -> Spent:
        """Return what is timed for a case."""
        return self.key(replace(case, ddim_steps=DDIM_STEPS, steps=min(case.steps, TUNING_STEPS)))

    def counted(self, case: Case) -> Spent:
        """Return what memory is taken of for a case."""
        return self.key(replace(case, steps=min(case.steps, COUNTED_TUNING_STEPS)))

    def time(self, cases: Sequence[Case], task: Task, number: int) -> None:
        """Time every method on a clip in one go, unless that is done; every second round goes backwards."""
        own = {case.method: case for case in cases if case.method in METHODS}
        if all(self.timed(case) in self.times for case in own.values()):
            return
        bench = self.turn_to(own[REFERENCE], task)
        bench.edit(replace(own[REFERENCE], ddim_steps=1))  # not timed: it loads the models
        rows = []
        for name in balanced_order(list(own), number):
            spent = self.timed(own[name])
            given = replace(own[name], ddim_steps=spent.ddim_steps, steps=spent.steps)
            _, seconds, tuning = bench.edit(given)
            rows.append({**asdict(spent), "seconds": seconds, "tuning_seconds": tuning})
        for row in rows:
            add_row(self.times_file, row)
            self.times[Spent(**{key: row[key] for key in asdict(spent)})] = row
        say(f"timed on {task.source.name}")

    def count(self, case: Case, task: Task) -> None:
        """Take the memory of a method, unless that is done."""
        spent = self.counted(case)
        if case.method not in METHODS or spent in self.memory:
            return
        bench = self.turn_to(case, task)
        taken = extra_memory(lambda: bench.edit(replace(case, steps=spent.steps)), get_torch_device())
        self.memory[spent] = {**asdict(spent), "memory": taken / GIB}
        add_row(self.memory_file, self.memory[spent])
        say(f"memory of {case.method}: {taken / GIB:.2f} GiB")

    def measure(self, cases: Sequence[Case], tasks: dict[str, Task], rounds: int) -> None:
        """Take what is not known yet.

        Args:
            cases: held-out ones.
            tasks: by the clips' names.
            rounds: clips on which every method is timed, and memory taken on the first; 0 = neither.
        """
        with torch.inference_mode():
            for number, (clip, task) in enumerate(list(tasks.items())[:rounds]):
                own = [case for case in cases if case.clip == clip and case.seed == 0]
                for case in own if number == 0 else ():
                    self.count(case, task)
                self.time(own, task, number)

    def of(self, case: Case) -> dict[str, float | None]:
        """Return the figures of a case's method: times on its clip as multiples of an edit per frame and in seconds,
        memory in GiB."""
        times, memory = self.times.get(self.timed(case)), self.memory.get(self.counted(case))
        plain = self.times.get(self.timed(replace(case, method=REFERENCE, steps=0)))
        found: dict[str, Any] = dict.fromkeys(COSTS)
        if times and plain:
            found |= {key: times[key] for key in ("seconds", "tuning_seconds")}
            found["cost"] = times["seconds"] / plain["seconds"]
            found["tuning_cost"] = times["tuning_seconds"] and times["tuning_seconds"] / plain["seconds"]
        if memory:
            found["memory"] = memory["memory"]
        return found
