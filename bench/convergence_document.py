"""The document of `python -m bench convergence`: verdicts, table and plot."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .convergence_recipes import OURS, PAPERS, RECIPES, UNTUNED
from .edit_document import PUBLISHED_ROWS
from .edit_rows import Case
from .methods import EI2, MOTION_ADDED, OBEYED_LOST
from .table import load_rows, mean_and_error, write_table
from .tasks import VALIDATION
from .verdict import LEAST_CLIPS, LEVEL, SUPPORTED, Finding, clip_means, common_rows, compare, reached

TARGET = 0.4  # of the paper's steps, after which ours is to have what its recipe has at its end
CHOSEN, OTHERS = "[convergence.md](convergence.md)", "[convergence_other_clips.md](convergence_other_clips.md)"
UNTOLD = "tells nothing: the untuned model has it"
OPTIONS = ("clips", "skip", "seeds", "other_clips", "other_seeds", "frames", "steps", "rate", "pairs", "ddim_steps")
Rows = Sequence[Mapping[str, Any]]
# What is judged: its heading, the direction that is better, and what may be lost of it.
JUDGED = {
    "loss": ("loss", -1, 0.0),
    "obeyed": ("obeyed", 1, OBEYED_LOST),
    "motion_error": ("motion error, px", -1, MOTION_ADDED),
    "flicker": ("flicker", -1, 0.02),
}
COLUMNS = {**{key: heading for key, (heading, *_) in JUDGED.items()}, "kept": "kept", "warp_error": "warp error, 10⁻³"}


def points(rows: Rows, name: str) -> list[int]:
    """Return the numbers of steps after which a recipe is measured."""
    return sorted({row["done"] for row in rows if row["recipe"] == name})


def at(rows: Rows, name: str, done: int) -> Rows:
    """Return the rows of a recipe after some steps; before the first all are alike."""
    return [row for row in rows if row["done"] == done and row["recipe"] == (name if done else UNTUNED)]


def curve(rows: Rows, name: str, key: str) -> dict[int, float]:
    """Return the mean over a recipe's clips of a figure, by the number of steps done."""
    clips = {row["clip"] for row in rows if row["recipe"] == name}
    own = [row for row in rows if row["clip"] in clips]
    found = {done: clip_means(at(own, name, done), key) for done in [0, *points(rows, name)]}
    return {done: fmean(values.values()) for done, values in found.items() if values}


def share_reached(rows: Rows, name: str, key: str, steps: int) -> float | None:
    """Return after which part of the paper's steps a recipe has what the paper's has at its end; None = never.

    Both are taken on the clips and seeds that both have.
    """
    _, sign, margin = JUDGED[key]
    ends = {(row["clip"], row["seed"]) for row in at(rows, PAPERS, steps)}
    shared = ends & {(row["clip"], row["seed"]) for row in rows if row["recipe"] == name}
    own = [row for row in rows if row["recipe"] == UNTUNED or (row["clip"], row["seed"]) in shared]
    if not shared:
        return None
    target = curve(own, PAPERS, key)[steps] - sign * margin
    found = reached(curve(own, name, key), target, sign)
    return None if found is None else found / steps


def lead(rows: Rows, key: str, steps: int, margin: float = 0.0) -> Finding:
    """Return how much better ours is at the target than the paper's recipe at its end, see `compare`."""
    both = common_rows(at(rows, OURS, round(TARGET * steps)), at(rows, PAPERS, steps), key)
    better, worse = (clip_means(found, key) for found in both)
    return compare(better, worse, JUDGED[key][1], margin)


def met_in_time(share: float | None, finding: Finding) -> str:
    """Return whether ours has a figure in time, as a cell, unless there is nothing that it would have to learn."""
    if not finding.clips:
        return finding.verdict
    if share == 0:
        return UNTOLD
    return "yes" if share is not None and share <= TARGET else "no"


def verdict_table(rows: Rows, steps: int) -> str:
    """Return what the two recipes have that are compared, and how much better ours is at the target."""
    goal, body = round(TARGET * steps), []
    shown = [at(rows, PAPERS, 0), at(rows, PAPERS, goal), at(rows, PAPERS, steps), at(rows, OURS, goal)]
    for key, (heading, _, margin) in JUDGED.items():
        cells = [mean_and_error(list(clip_means(found, key).values())) for found in shown]
        share, allowed = share_reached(rows, OURS, key, steps), lead(rows, key, steps, margin)
        lost = f", {margin:g} lost at most" if margin else ""
        better = [str(lead(rows, key, steps)), f"{allowed.verdict}: {allowed}"]
        body.append([heading + lost, *cells, as_share(share), met_in_time(share, allowed), *better])
    headings = ["figure", UNTUNED, f"{PAPERS}, {goal} steps", f"{PAPERS}, {steps} steps", f"{OURS}, {goal} steps"]
    ends = ["reached after", f"≤ {TARGET:g}", f"better at {TARGET:g}", "verdict, what may be lost included"]
    return write_table([*headings, *ends], body)


def as_share(share: float | None) -> str:
    """Return a part of the steps as a cell."""
    return "never" if share is None else f"{share:.2g}"


def reach_table(rows: Rows, steps: int) -> str:
    """Return after which part of the paper's steps each recipe has what the paper's has at its end."""
    names = [name for name in RECIPES if points(rows, name)]
    body = [[name, *(as_share(share_reached(rows, name, key, steps)) for key in JUDGED)] for name in names]
    return write_table(["recipe", *(heading for heading, *_ in JUDGED.values())], body)


def recipe_table(rows: Rows) -> str:
    """Return the figures of every recipe at every number of steps."""
    body = []
    for name in (name for name in (UNTUNED, *RECIPES) if points(rows, name)):
        for done in points(rows, name):
            own = at(rows, name, done)
            cells = [mean_and_error(list(clip_means(own, key).values())) for key in COLUMNS]
            body.append([name, str(done), str(len({row["clip"] for row in own})), str(len(own)), *cells])
    return write_table(["recipe", "steps", "clips", "tunings", *COLUMNS.values()], body)


def draw_plot(rows: Rows, path: Path) -> None:
    """Draw each figure that is judged over the steps; the two recipes that are compared in bold."""
    figure = Figure(figsize=(10, 6.4), dpi=80, layout="constrained")
    for axes, (key, (heading, *_)) in zip(figure.subplots(2, 2).flatten(), JUDGED.items(), strict=True):
        for number, name in enumerate(name for name in RECIPES if points(rows, name)):
            values = curve(rows, name, key)
            style = {"linewidth": 2.5} if name in (PAPERS, OURS) else {"linewidth": 1, "alpha": 0.7}
            axes.plot(list(values), list(values.values()), "o-", markersize=3, color=f"C{number}", label=name, **style)
        axes.set_xlabel("steps")
        axes.set_ylabel(heading)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    FigureCanvasAgg(figure).print_png(path)


def command_options(options: argparse.Namespace) -> str:
    """Return the options that a run was asked with."""
    values = {name.replace("_", "-"): getattr(options, name) for name in OPTIONS}
    given = [f"--{name} {value}" for name, value in values.items() if value not in (None, 0)]
    lists = {"--parts": [f"{part:g}" for part in options.parts], "--recipes": [f'"{name}"' for name in options.recipes]}
    return " ".join([*given, *(" ".join([name, *values]) for name, values in lists.items() if values)])


def say_rates(options: argparse.Namespace) -> str:
    """Return at which learning rate the paper's recipe stands here, and elsewhere."""
    held_out = (case for case in load_rows(PUBLISHED_ROWS, Case) if case.held_out and case.method == EI2)
    chosen = ", ".join(f"{rate:g}" for rate in sorted({case.rate for case in held_out}))
    return (
        f"*{PAPERS}* stands at a learning rate of {options.rate:g}; `python -m bench papers` takes "
        f"{options.papers_rate:g} by default ([papers.md](papers.md)), where the benchmark's validation chose {chosen} "
        "([benchmark.md](benchmark.md))."
    )


def say_choice(options: argparse.Namespace) -> str:
    """Return on which clips ours was chosen."""
    chosen = f"Factor and schedule of *{OURS}* were chosen on"
    if options.skip:
        return f"{chosen} other clips ({CHOSEN}): the verdict is an independent test."
    return (
        f"{chosen} these clips among those below, so that the verdict is of the choice and no independent test; that "
        f"is {OTHERS}."
    )


def say_default(rows: Rows, steps: int) -> str:
    """Return why One-Shot Tune has the default that it has."""
    verdicts = {heading: lead(rows, key, steps, margin).verdict for key, (heading, _, margin) in JUDGED.items()}
    left = [f"{heading} ({verdict})" for heading, verdict in verdicts.items() if verdict != SUPPORTED]
    if not left:
        return f"`{OURS}` is the default of One-Shot Tune: every verdict below is *{SUPPORTED}*."
    return (
        f"`{OURS}` is the default of One-Shot Tune, for which every verdict below was to be *{SUPPORTED}*. Not so "
        f"here: {', '.join(left)}."
    )


def write_document(rows: Rows, options: argparse.Namespace) -> None:
    """Write the document, and its plot beside it, of the rows that are done."""
    document: Path = options.document
    document.parent.mkdir(parents=True, exist_ok=True)
    plot = document.with_suffix(".png")
    draw_plot(rows, plot)
    clips = list(dict.fromkeys(row["clip"] for row in rows))
    recipes = [f"- *{name}*: {RECIPES[name].says}" for name in RECIPES if points(rows, name)]
    parts = [
        "# Steps to the same quality",
        f"Written by `python -m bench convergence {command_options(options)}`. EI²'s preset of the demo model tunes on "
        f"{len(clips)} drawn clips ({', '.join(clips)}) of {options.frames} frames, of the validation's seeds, which "
        f"begin at {VALIDATION}: what is chosen here is not chosen on the benchmark's held-out clips. The loss is the "
        f"mean over the same {options.pairs} pairs of noise level and noise at every point; the edit, by "
        f"{options.ddim_steps} DDIM steps, is judged by the world that drew it, see [benchmark.md](benchmark.md). "
        "A cell holds the mean over clips ± its standard error, each clip the mean of its seeds.",
        "\n".join(recipes),
        say_rates(options),
        "## Verdict",
        f"Has *{OURS}* what *{PAPERS}* has at its end, after {TARGET:g} of the steps? The last two columns are how "
        f"much better it is there, without and with what may be lost, with an interval of {LEVEL:.0%} by a bootstrap "
        f"over clips; of fewer than {LEAST_CLIPS} clips nothing is decided. A figure that the untuned model has as "
        "well, but for what may be lost, tells nothing of recipes. "
        f"{say_choice(options)} Only the demo model was tuned.",
        say_default(rows, options.steps),
        verdict_table(rows, options.steps),
        "The part of the paper's steps after which each recipe has it, on the clips and seeds of both, linear between "
        "the points measured. 0: the untuned model has it already, and the figure tells no recipe from another.",
        reach_table(rows, options.steps),
        "## Figures",
        "Rows of different clips are not to be compared with each other; the table above compares on the same ones.",
        recipe_table(rows),
        f"![Loss and edit over the steps]({plot.name})",
    ]
    document.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
