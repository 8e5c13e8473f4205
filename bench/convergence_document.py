"""The document of `python -m bench convergence`: verdicts, table and plot."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .convergence_recipes import OURS, PAPERS, RECIPES, UNTUNED
from .methods import MOTION_ADDED, OBEYED_LOST
from .table import mean_and_error, write_table
from .tasks import VALIDATION
from .verdict import LEAST_CLIPS, LEVEL, clip_means, compare, reached

TARGET = 0.4  # of the paper's steps, after which ours is to have what its recipe has at its end
OPTIONS = ("clips", "seeds", "frames", "steps", "rate", "pairs", "ddim_steps")  # that the document names
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
    """Return the mean over clips of a figure, by the number of steps done."""
    found = {done: clip_means(at(rows, name, done), key) for done in [0, *points(rows, name)]}
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


def verdict_table(rows: Rows, steps: int) -> str:
    """Return what the two recipes have that are compared, and how much better ours is at the target."""
    goal, body = round(TARGET * steps), []
    shown = [at(rows, PAPERS, 0), at(rows, PAPERS, goal), at(rows, PAPERS, steps), at(rows, OURS, goal)]
    for key, (heading, sign, margin) in JUDGED.items():
        cells = [mean_and_error(list(clip_means(found, key).values())) for found in shown]
        finding = compare(clip_means(shown[3], key), clip_means(shown[2], key), sign, margin)
        share = share_reached(rows, OURS, key, steps)
        met = "not measured" if not finding.clips else "yes" if share is not None and share <= TARGET else "no"
        lost = f", {margin:g} lost at most" if margin else ""
        body.append([heading + lost, *cells, as_share(share), met, f"{finding.verdict}: {finding}"])
    headings = ["figure", UNTUNED, f"{PAPERS}, {goal} steps", f"{PAPERS}, {steps} steps", f"{OURS}, {goal} steps"]
    return write_table([*headings, "reached after", f"≤ {TARGET:g}", f"better at {TARGET:g}"], body)


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
            body.append([name, str(done), f"{len(own)}", *cells])
    return write_table(["recipe", "steps", "tunings", *COLUMNS.values()], body)


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
    given = [f"--{name.replace('_', '-')} {getattr(options, name)}" for name in OPTIONS]
    lists = {"--parts": [f"{part:g}" for part in options.parts], "--recipes": [f'"{name}"' for name in options.recipes]}
    return " ".join([*given, *(" ".join([name, *values]) for name, values in lists.items() if values)])


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
        "## Verdict",
        f"Has *{OURS}* what *{PAPERS}* has at its end, after {TARGET:g} of the steps? The last column is how much "
        f"better it is there, what may be lost included, with an interval of {LEVEL:.0%} by a bootstrap over clips; of "
        f"fewer than {LEAST_CLIPS} clips nothing is decided.",
        verdict_table(rows, options.steps),
        "The part of the paper's steps after which each recipe has it, on the clips and seeds of both, linear between "
        "the points measured. 0: the untuned model has it already, and the figure tells no recipe from another.",
        reach_table(rows, options.steps),
        "## Figures",
        recipe_table(rows),
        f"![Loss and edit over the steps]({plot.name})",
    ]
    document.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
