"""Every way to edit a clip, on drawn clips that the model never saw, judged by the world that drew them.

Hyper-parameters are chosen on drawn clips of their own before the held-out ones are touched.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from functools import cache
from statistics import fmean
from typing import Any

from ..scripts.environment import say
from .edit_cost import Costs
from .edit_document import write_document
from .edit_rows import Case, Rows
from .edit_run import Bench, make_case
from .methods import AS_DRAWN, CHOICES, DO_NOTHING, METHODS, OBEYED, gamma_row
from .tasks import KINDS, list_tasks
from .world import Row, World


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
    make = cache(lambda: Bench(World()))
    rows, costs = Rows(options.state, make), Costs(options.state, make)
    chosen, measured = choose(rows, options)
    tasks = list_tasks(options.clips_of_kind, held_out=True, kinds=options.kinds or KINDS)
    cases = list(list_cases(options, chosen))
    for number, case in enumerate(cases, start=1):
        began = time.monotonic()
        rows.get(case, tasks[case.clip])
        say(f"{number:4} of {len(cases)}  {case.clip}  {case.method}  {time.monotonic() - began:.1f} s")
    costs.measure(cases, tasks, options.timed)
    groups: dict[str, list[Row]] = {}
    for case in cases:
        groups.setdefault(case.method, []).append(rows.done[case] | costs.of(case))
    write_document(rows, cases, groups, tasks, chosen, measured, options)
    if options.json:
        every = {"chosen": chosen, "validation": measured, "rows": [row for own in groups.values() for row in own]}
        options.json.write_text(json.dumps(every, indent=1), encoding="utf-8")
    say(f"Wrote {options.document}")
