"""Every way to edit a clip, on drawn clips that the model never saw, judged by the world that drew them.

Hyper-parameters are chosen on drawn clips of their own before the held-out ones are touched.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from functools import cache
from statistics import fmean
from typing import Any

from ..scripts.environment import say
from .edit_cost import Costs
from .edit_document import CURVE, PUBLISHED, PUBLISHED_ROWS, write_document
from .edit_rows import Case, Rows
from .edit_run import Bench, make_case
from .methods import BOUNDS, CHOICES, CHOSEN, CLOSE, METHODS, SHARED, SHOWN, Choice
from .tasks import KINDS, list_tasks
from .world import Row, World


def choose(rows: Rows, options: argparse.Namespace) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Choose the hyper-parameters on the validation clips, one choice after the other.

    Of the values whose edits are right, in what they change and in what they keep alike, within CLOSE of the best,
    those with the least warp error are taken, within a part CLOSE of it, and of these the one whose edits are most
    right. What no measured method takes keeps the first value; without validation clips nothing is searched, and the
    values are those that the search once led to.

    Returns:
        Values by name, and what was measured of each combination.
    """
    chosen = {name: value for choice in CHOICES for name, value in zip(choice.names, choice.values[0], strict=True)}
    if options.quick or not options.validation:
        return chosen | CHOSEN, []
    measured: list[dict[str, Any]] = []
    for choice in CHOICES:
        if not any(takes(name, choice) for name in selected(options)):
            continue
        tuned = METHODS[choice.row(choice.values[0])].draws
        tasks = list_tasks(1 if tuned else options.validation, held_out=False)  # tunings take long
        found: list[dict[str, Any]] = []
        for values in choice.values:
            name, given = choice.row(values), dict(zip(choice.names, values, strict=True))
            found.append({"method": name, "values": given, **{key: [] for key in CURVE}})
        for clip, task in tasks.items():  # all values of a clip together: they share its inversions
            for entry in found:
                row = rows.get(make_case(entry["method"], clip, False, 0, options, chosen | entry["values"]), task)
                for key in CURVE:
                    entry[key].append(row[key])
            say(f"validation  {', '.join(choice.names)}  {clip}")
        right = [(fmean(entry["obeyed"]) + fmean(entry["kept"])) / 2 for entry in found]
        error = [fmean(entry["warp_error"]) for entry in found]
        good = [n for n in range(len(found)) if right[n] >= max(right) - CLOSE]
        least = min(error[n] for n in good)
        steady = [n for n in good if error[n] <= (1 + CLOSE) * least]
        chosen |= found[max(steady, key=lambda n: (right[n], -error[n]))]["values"]
        measured += found
    return chosen, measured


def takes(name: str, choice: Choice) -> bool:
    """Whether a method has the hyper-parameters of a choice."""
    how = METHODS[name]
    if choice.way is not None:
        return name in {choice.row(values) for values in choice.values}
    return {"passes": bool(how.relation), "rate": how.model.tuned, how.takes: True}.get(
        choice.names[0], choice.names[0] in SHARED
    )


def selected(options: argparse.Namespace) -> list[str]:
    """Return the methods that are measured; ValueError where there is no such method."""
    unknown = set(options.methods) - METHODS.keys()
    if unknown:
        raise ValueError(f"--methods {', '.join(sorted(unknown))}: there are {', '.join(METHODS)}.")
    return [
        name
        for name, how in METHODS.items()
        if (how.quick or not options.quick) and (not options.methods or name in options.methods)
    ]


def list_cases(options: argparse.Namespace, chosen: Mapping[str, float]) -> Iterator[Case]:
    """Return every held-out case, all of a clip and seed before the next.

    Methods for which nothing is drawn, and those that are measured on a part of the tuned clips, have the first seed.
    """
    clips = list(list_tasks(options.clips_of_kind, held_out=True, kinds=options.kinds or KINDS))
    for seed in range(options.seeds):
        for number, clip in enumerate(clips):
            if seed == 0:
                yield from (make_case(name, clip, True, 0, options, chosen) for name in BOUNDS)
            for name in selected(options):
                how = METHODS[name]
                is_tuned = how.draws and number < how.part * options.tuned_clips and (seed == 0 or how.part == 1)
                if is_tuned or (seed == 0 and not how.draws):
                    yield make_case(name, clip, True, seed, options, chosen)


def measure_edit(options: argparse.Namespace) -> None:
    """Choose on the validation clips, run what is not done yet, and write the document."""
    make = cache(lambda: Bench(World()))
    rows = Rows(options.state, lambda case, task: make().run(case, task), PUBLISHED_ROWS, SHOWN)
    costs = Costs(options.state, make)
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
    if options.document == PUBLISHED:
        rows.publish(PUBLISHED_ROWS)
    say(f"Wrote {options.document}")
