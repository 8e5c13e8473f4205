"""How the time of FFAM grows with frames, r and resolution, against attention per frame and the pairs it looks at."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure

from ..modules.clip_model.attention import Grid, scaled_dot_product
from ..modules.clip_model.attention.fine_coarse import fine_coarse_attention
from .performance import Row, Setting, half_on_gpu
from .table import write_table
from .timing import ratios, time_rounds, write_milliseconds, write_spread

DIM, HEADS = 320, 8  # of SD1.5's largest feature map
FRAMES, RS = (4, 8, 16, 32, 64), (1, 2, 4, 8)
SIZES = (0.5, 0.75, 1.0, 1.5)  # of the size given
USUAL_FRAMES, USUAL_R = 8, 4
PER_FRAME, OURS = "per frame", "FFAM"


def coarse_keys(size: int, frames: int, r: int) -> int:
    """Return the number of keys of a query of FFAM."""
    return size**2 + (frames - 1) * (-(-size // r)) ** 2


def list_shapes(setting: Setting) -> list[tuple[int, int, int]]:
    """Return frames, size and r of every point, each once."""
    usual, most = min(USUAL_FRAMES, setting.frames), FRAMES[-1] if setting.frames >= USUAL_FRAMES else setting.frames
    shapes = [(frames, setting.size, USUAL_R) for frames in FRAMES if frames <= most]
    shapes += [(usual, setting.size, r) for r in RS]
    shapes += [(usual, round(part * setting.size), USUAL_R) for part in SIZES]
    return list(dict.fromkeys(shapes))


def time_shape(setting: Setting, frames: int, size: int, r: int) -> Row:
    """Return the times of a forward pass of both, turn by turn."""
    generator = torch.Generator().manual_seed(0)
    shape = frames, size**2, DIM
    q, k, v = (torch.randn(shape, generator=generator).to(setting.device, half_on_gpu(setting)) for _ in range(3))
    ours = partial(fine_coarse_attention, q, k, v, Grid(HEADS, frames, size, size), r)
    with torch.no_grad():
        calls = {PER_FRAME: partial(scaled_dot_product, q, k, v, HEADS), OURS: ours}
        return {"shape": (frames, size, r), "seconds": time_rounds(calls, setting.rounds, torch.device(setting.device))}


def run_case(setting: Setting) -> Row:
    """Time every point of the curves."""
    return {"points": [time_shape(setting, *shape) for shape in list_shapes(setting)]}


def curve(setting: Setting, row: Row, along: int) -> list[tuple[int, float, float]]:
    """Return the points along frames (0), size (1) or r (2): where, times per frame, pairs as a multiple."""
    usual = (min(USUAL_FRAMES, setting.frames), setting.size, USUAL_R)
    points = []
    for point in row["points"]:
        shape = tuple(point["shape"])
        if all(shape[other] == usual[other] for other in range(3) if other != along):
            points.append((shape[along], median(ratios(point["seconds"], OURS, PER_FRAME)), pairs_of(*shape)))
    return sorted(points)


def pairs_of(frames: int, size: int, r: int) -> float:
    """Return the pairs of query and key as a multiple of those per frame."""
    return coarse_keys(size, frames, r) / size**2


def save_plot(setting: Setting, row: Row, path: Path) -> None:
    """Plot the times over frames, r and size, beside the pairs."""
    figure = Figure(figsize=(11, 3.6), dpi=100, layout="constrained")
    panels = {"frames": 0, "r": 2, "size of the latent": 1}
    for axes, (name, along) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        where, times, pairs = zip(*curve(setting, row, along), strict=True)
        axes.plot(where, times, "o-", markersize=3, label="time")
        axes.plot(where, pairs, "--", label="pairs")
        axes.set(xlabel=name, ylabel="× per frame", ylim=(0, None))
    figure.axes[0].legend()
    figure.savefig(path)


def make_lines(row: Row, plot: str) -> list[str]:
    """Return the lines about it in the section on attention."""
    body = [
        [
            *(str(number) for number in point["shape"]),
            write_milliseconds(point["seconds"][OURS]),
            write_spread(ratios(point["seconds"], OURS, PER_FRAME)),
            f"{pairs_of(*point['shape']):.3g}",
        ]
        for point in row["points"]
    ]
    return [
        "",
        "How the time of FFAM's forward pass grows. *Pairs*: of query and key, as a multiple of those per frame.",
        "",
        f"![Time over frames, r and size]({plot})",
        "",
        write_table(["frames", "latent", "r", "ms", "× per frame", "pairs"], body),
    ]
