"""The document of `python -m bench edit`: verdicts, table, plot and picture strips."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from comfy.model_management import get_torch_device
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..scripts.clips import save_strip
from ..scripts.environment import ROOT
from ..scripts.regions import write_region
from .edit_cost import DDIM_STEPS, TUNING_STEPS
from .edit_rows import Case, Rows
from .methods import (
    AS_DRAWN,
    BOUNDS,
    CLOSE,
    DEFAULT,
    DO_NOTHING,
    EI2,
    FFAM,
    FROM_TEXT,
    HALF,
    MOTION,
    REFERENCE,
    SHOWN,
    TEXT_CFG,
    TUNE_A_VIDEO_PRESET,
    claims,
)
from .table import mean_and_error, median_and_quartiles, write_table
from .tasks import FRAMES, HELD_OUT, LOST, VALIDATION, Task
from .verdict import DRAWS, LEAST_CLIPS, LEVEL, clip_means
from .world import Row

PUBLISHED = ROOT / "docs" / "benchmark.md"  # whose figures the README shows as well
PUBLISHED_ROWS = PUBLISHED.with_suffix(".jsonl")
CURVE = ("obeyed", "kept", "motion_error", "warp_error", "flicker", "texture")
BRIEF = ("obeyed", "motion_error", "warp_error", "flicker", "texture")
BRIEF_ROWS = (AS_DRAWN, REFERENCE, FFAM, DEFAULT, TUNE_A_VIDEO_PRESET, EI2, MOTION)
COLUMNS = {
    "obeyed": "obeyed",
    "kept": "kept",
    "motion_error": "motion error, px",
    "warp_error": "warp error, 10⁻³",
    "flicker": "flicker",
    "ghosts": "ghosts",
    "background": "background, dB",
    "texture": "texture",
    "reconstruction": "reconstruction, dB",
    "mean_shift": "mean shift",
    "covariance_ratio": "covariance ratio",
    "cost": "time of an edit",
    "tuning_cost": "time of tuning",
    "memory": "memory, GiB",
}


LEGEND = f"""\
- *Obeyed*: what the prompt changes, as read back from the pixels: share of frames and attributes. *Kept*: the same of \
what it does not change.
- *Motion error*: distance of the object's centroid from the known path of the edited clip; a frame without an object \
counts as {LOST:g} pixels.
- *Warp error*: mean squared difference of neighbouring frames along the known flow of the drawn edit, where points \
are seen in both. *Flicker*: standard deviation of the change of the object's area from frame to frame, as a part of \
its mean; a clip with a frame without an object counts as 1.
- *Ghosts*: vivid colour away from the object of the source and of the drawn edit, as a part of the object's area. \
*Background*: PSNR against the source there, in edits of the object alone.
- *Texture*: energy of fine structure against the drawn edit's; 1 is right, less is smoothed.
- *Reconstruction*: PSNR of the inversion sampled back with the source prompt at CFG 1, against the autoencoder's \
round trip. *Mean shift*, *covariance ratio*: what tuned temporal modules do to the features, mean over blocks, as \
Covariate Shift Report says it.
- *Time*: of inversion and sampling with {DDIM_STEPS} steps each, and of {TUNING_STEPS} steps of tuning, as multiples \
of the same edit per frame. All methods take their turns on a clip in one go. *Memory*: the most that tensors hold \
beyond the model while a clip is tuned and edited.
- Every row inverts with the source prompt and guides away from it, the papers' methods too, with the CFG and the part \
of the steps that were chosen; rows with an empty negative guide away from the empty prompt at CFG 7.5, as the papers.
- *{AS_DRAWN}*: the edited clip as the world draws it, through the autoencoder: what a perfect edit would score. \
*{DO_NOTHING}*: the source as its own edit. *{FROM_TEXT}*: frames that the model draws from independent noise and the \
edited prompt, at CFG {TEXT_CFG:g} and with as many steps, without the clip: the most that it can obey.
- *Tune-A-Video* is its preset here, of which all 112 tensors are trained. Its own configurations leave the 42 of the \
encoder blocks without a gradient.
"""


def verdict_lines(groups: Mapping[str, Sequence[Row]], chosen: Mapping[str, float]) -> list[str]:
    """Return how claims are judged, and the verdict on each, with what it rests on."""
    how = (
        f"The difference within each clip, with the interval of {LEVEL:.0%} of {DRAWS} resamplings of the clips. "
        "Supported: the whole interval is on the claim's side. Not supported: none of it is. Otherwise, and with fewer "
        f"than {LEAST_CLIPS} clips, undecided. Not measured: no clip has both methods."
    )
    lines = []
    for letter, claim in claims(chosen).items():
        verdict, findings = claim.judge(groups)
        lines.append(f"- **({letter}) {verdict[0].upper()}{verdict[1:]}.** {claim.text}.")
        for part, finding in findings:
            margin = f", {part.margin:g} allowed" if part.margin else ""
            what = f"{COLUMNS[part.key].split(',')[0]} of {part.better} against {part.worse}{margin}"
            found = f"better by {finding}: " if finding.clips else ""
            lines.append(f"  - {what}: {found}{finding.verdict}.")
    return [how, "\n".join(lines)]


def command_options(options: argparse.Namespace) -> str:
    """Return the options that a run was asked with."""
    if options.quick:
        return "--quick"
    names = ("clips_of_kind", "tuned_clips", "seeds", "validation", "steps", "ddim_steps", "timed")
    given = [f"--{name.replace('_', '-')} {getattr(options, name)}" for name in names]
    lists = {"--kinds": options.kinds, "--methods": [f'"{name}"' for name in options.methods]}
    return " ".join([*given, *(part for name, values in lists.items() if values for part in (name, *values))])


def validation_lines(measured: Sequence[Mapping[str, Any]], chosen: Mapping[str, float]) -> list[str]:
    """Return what was chosen, and from what."""
    values = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    if not measured:
        return [f"Nothing was chosen by measurement in this run: {values}, the papers' or the nodes' own values."]
    body = [
        [
            ", ".join(f"{name} {value:g}" for name, value in entry["values"].items()),
            entry["method"],
            str(len(entry["obeyed"])),
            *(median_and_quartiles(entry[key]) if key != "obeyed" else mean_and_error(entry[key]) for key in CURVE),
        ]
        for entry in measured
    ]
    return [
        "Chosen on validation clips of other seeds, whose objects are pairs of colour and shape that the model was "
        f"trained on (one of each kind where a tuning is tried): {values}. Of the values whose edits are right (mean "
        f"of *obeyed* and *kept*) within {CLOSE:g} of the best, those with a mean warp error within {CLOSE:.0%} of the "
        "least are taken, and of these the one whose edits are most right; all methods that have the parameter get the "
        f"same value. denoise 0 is the start matched to the latent's size, denoise {HALF:g} starts at half its sigma.",
        "Means ± standard errors of *obeyed*, otherwise medians (quartiles):",
        write_table(["values", "tried with", "clips", *(COLUMNS[key] for key in CURVE)], body),
    ]


def draw_plot(groups: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw obedience against warp error of each method; what does nothing lies at the lower left."""
    figure = Figure(figsize=(10, 6.4), dpi=80, layout="constrained")
    axes = figure.add_subplot(xlabel="warp error, 10⁻³ (less is steadier)", ylabel="obeyed (more is better)")
    for number, (name, rows) in enumerate(groups.items()):
        obeyed, error = (list(clip_means(rows, key).values()) for key in ("obeyed", "warp_error"))
        if not error:
            continue
        x, y = fmean(error), fmean(obeyed)
        axes.plot(x, y, "s" if name in BOUNDS else "o", color=f"C{number % 10}", label=f"{number + 1} {name}")
        axes.annotate(str(number + 1), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.01, 0.5))
    FigureCanvasAgg(figure).print_png(path)


def save_strips(rows: Rows, cases: Sequence[Case], tasks: Mapping[str, Task], document: Path) -> list[str]:
    """Save a strip of the first clip of each kind; returns the lines that show them."""
    lines = []
    for clip in (name for name in tasks if name.endswith("_0")):
        own = {case.method: case for case in cases if case.clip == clip and case.seed == 0 and case.method in SHOWN}
        frames = {name: rows.frames(own[name]) for name in SHOWN if name in own}
        path = document.with_name(f"{document.stem}_{tasks[clip].kind}.webp")
        save_strip(path, frames, columns=FRAMES, side=80)
        before, after = tasks[clip].prompts
        lines += [f'"{before}" to "{after}":', f"![Frames of each method]({path.name})"]
    return lines


def kind_lines(groups: Mapping[str, Sequence[Row]], tasks: Mapping[str, Task]) -> str:
    """Return the table of how much the methods that are shown obey, a column for each kind of edit."""
    kinds = list(dict.fromkeys(task.kind for task in tasks.values()))
    body = []
    for name in (name for name in SHOWN if name in groups):
        obeyed = clip_means(groups[name], "obeyed")
        cells = [mean_and_error([obeyed[clip] for clip in obeyed if tasks[clip].kind == kind]) for kind in kinds]
        body.append([name, *cells])
    return "Obeyed, by kind of edit:\n\n" + write_table(["method", *kinds], body)


def table_lines(
    groups: Mapping[str, Sequence[Row]],
    names: Sequence[str],
    columns: Sequence[str],
    cell: Callable[[Sequence[float]], str] = mean_and_error,
) -> str:
    """Return the table of some methods, numbered as in the plot, with some columns; cells sum up the clips' figures."""
    numbers = {name: number for number, name in enumerate(groups, start=1)}
    body = [
        [
            f"{numbers[name]} {name}",
            str(len({row["clip"] for row in groups[name]})),
            *(cell(list(clip_means(groups[name], key).values())) for key in columns),
        ]
        for name in names
    ]
    return write_table(["method", "clips", *(COLUMNS[key] for key in columns)], body)


def summary(groups: Mapping[str, Sequence[Row]]) -> str:
    """Return what the README shows: some methods on the clips that all of them have, by what says the most."""
    shown = [name for name in BRIEF_ROWS if name in groups]
    clips = set.intersection(*({row["clip"] for row in groups[name]} for name in shown))
    common = {name: [row for row in rows if row["clip"] in clips] for name, rows in groups.items()}
    return "\n\n".join(
        [
            f"Means over {len(clips)} drawn clips that the demo model never saw, ± their standard errors; *as drawn* "
            "is what a perfect edit would score:",
            table_lines(common, shown, BRIEF),
        ]
    )


def introduction(tasks: Mapping[str, Task], chosen: Mapping[str, float], options: argparse.Namespace) -> str:
    """Return what was measured, and how."""
    kinds = list(dict.fromkeys(task.kind for task in tasks.values()))
    clips = min(options.timed, len(tasks))
    timed = f"Times on {clips} of the clips, on a {get_torch_device().type.upper()}. " if clips else ""
    command = f"python -m bench edit {command_options(options)}"
    return (
        f"Written by `{command}`. The demo model edits {len(tasks)} drawn clips of {FRAMES} frames "
        f"({', '.join(kinds)}); their seeds begin at {HELD_OUT}, the model was trained from seed 0, and each "
        f"wanted object is a pair of colour and shape that it never saw. Seeds of each tuning: {options.seeds}; "
        f"methods that draw nothing are measured once. {options.ddim_steps} DDIM steps, CFG {chosen['cfg']:g}, denoise "
        f"{chosen['denoise']:g}, {chosen['passes']:g} passes of the relation to {chosen['end']:g} of the steps, tuning "
        f"for {options.steps} steps at {chosen['rate']:g}. {timed}A cell holds the mean over clips ± its standard "
        f"error, each clip the mean of its seeds. Methods that draw are measured on the first {options.tuned_clips} "
        f"clips at most; norms of the temporal module, losses of the tuning and prompt-to-prompt of a tuned model on a "
        f"third of these, by one seed. Every row lies in [{PUBLISHED_ROWS.name}]({PUBLISHED_ROWS.name})."
    )


def write_document(
    rows: Rows,
    cases: Sequence[Case],
    groups: Mapping[str, Sequence[Row]],
    tasks: Mapping[str, Task],
    chosen: Mapping[str, float],
    measured: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Write the document, and its plot and strips beside it.

    Args:
        rows: those on disk, for the frames of what is shown.
        cases: all of the run.
        groups: rows of each method, with what it costs.
        tasks: by the clips' names.
        chosen, measured: hyper-parameters, and what they were chosen from.
        options: of the command.
    """
    document: Path = options.document
    document.parent.mkdir(parents=True, exist_ok=True)
    plot = document.with_suffix(".png")
    draw_plot(groups, plot)
    parts = [
        "# Edits, judged by the world that drew them",
        introduction(tasks, chosen, options),
        "## Verdicts",
        *verdict_lines(groups, chosen),
        "## Figures",
        table_lines(groups, list(groups), list(COLUMNS)),
        "Medians over clips, with their quartiles:",
        table_lines(groups, list(groups), CURVE, median_and_quartiles),
        kind_lines(groups, tasks),
        LEGEND.rstrip(),
        f"![Obedience against warp error]({plot.name})",
        "## Hyper-parameters",
        f"None was chosen on these clips (validation seeds begin at {VALIDATION}).",
        *validation_lines(measured, chosen),
        "## Pictures",
        *save_strips(rows, cases, tasks, document),
    ]
    document.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if document == PUBLISHED:
        write_region("benchmark", summary(groups))
