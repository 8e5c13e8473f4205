"""Figures as images."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ..inversion.stability import Stability
from .covariate_shift import Shift
from .reconstruction import Reconstruction
from .scorecard import MEASURES, Scorecard


def draw(figure: Figure) -> Tensor:
    """Return a figure as an image, shape (1, height, width, 3) in 0 ... 1."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).float()[None] / 255


def plot_loss(losses: Sequence[float], added: Mapping[str, Sequence[float] | None] | None = None) -> Tensor:
    """Plot the loss of each step and its running mean; returns an image of shape (1, 480, 800, 3) in 0 ... 1.

    Args:
        losses: of each step.
        added: losses of each step that were added with their weights, by name; None = not there.

    One-shot tuning draws a new noise level at each step, so that single losses scatter; the running mean over a tenth
    of the steps shows where they go.
    """
    figure = Figure(figsize=(8, 4.8), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (mean squared error)", yscale="log")
    for name, values in {"loss": losses, **(added or {})}.items():
        if values:
            window = max(1, len(values) // 10)
            means = np.convolve(values, np.ones(window) / window, mode="valid")
            axes.plot(range(1, len(values) + 1), values, ".", markersize=3, alpha=0.4, label=name)
            axes.plot(range(window, len(values) + 1), means, label=f"{name}, mean of {window}")
    axes.legend()
    return draw(figure)


def plot_shifts(shifts: Mapping[str, Shift]) -> Tensor:
    """Plot the covariate shift of each block, the first at the top: bars from what a module without effect has.

    The axes reach over a tenth at least, so that what is next to nothing looks so.

    Returns:
        Image of shape (1, height, 800, 3) in 0 ... 1, 480 high or as high as the blocks need.
    """
    figure = Figure(figsize=(8, max(4.8, 1 + 0.2 * len(shifts))), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    means = np.array([shift.mean_shift for shift in shifts.values()])
    ratios = np.array([shift.covariance_ratio for shift in shifts.values()])
    left.barh(list(shifts), means)
    left.set_xlim(0, max(0.1, 1.05 * means.max()))
    right.barh(list(shifts), ratios - 1, left=1)
    right.set_xlim(min(0.9, 1.05 * ratios.min() - 0.05), max(1.1, 1.05 * ratios.max() - 0.05))
    right.axvline(1, color="black", linewidth=0.8)
    left.set_xlabel("mean shift (0 = none)")
    right.set_xlabel("covariance ratio (1 = unchanged)")
    left.tick_params(axis="y", labelsize=7)
    left.set_ylim(len(shifts) - 0.4, -0.6)
    return draw(figure)


def plot_reconstruction(found: Reconstruction) -> Tensor:
    """Plot what a reconstruction lost, by frame and by step; returns an image of shape (1, 480, 800, 3) in 0 ... 1."""
    figure = Figure(figsize=(8, 4.8), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(found.psnr, "o-", color="tab:blue")
    left.set_xlabel("frame")
    left.set_ylabel("PSNR against the autoencoder, dB", color="tab:blue")
    similarity = left.twinx()
    similarity.plot(found.ssim, "s--", color="tab:orange")
    similarity.set_ylabel("SSIM", color="tab:orange")
    right.plot(range(1, len(found.drift) + 1), found.drift)
    right.set_xlabel("step of sampling")
    right.set_ylabel("drift from the inversion's state")
    return draw(figure)


def plot_scorecard(card: Scorecard) -> Tensor:
    """Plot each measure of a scorecard in a panel, a bar for each row; returns (1, 480, 1000, 3) in 0 ... 1."""
    names = list(next(iter(card.rows.values())))
    figure = Figure(figsize=(10, 4.8), dpi=100, layout="constrained")
    panels = figure.subplots(2, -(-len(names) // 2), squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        values = [row[name] for row in card.rows.values()]
        axes.bar(list(card.rows), values, color=["tab:blue", "tab:gray"])
        better = MEASURES[name].better
        axes.set_title(f"{name}\n{better} is better" if better else f"{name}\n1 is the source's", fontsize=8)
        axes.tick_params(labelsize=7)
    return draw(figure)


def plot_stability(found: Stability) -> Tensor:
    """Plot how far the way back strays, bound and measured, and L; returns an image of shape (1, 480, 800, 3)."""
    figure = Figure(figsize=(8, 4.8), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(len(found.sigmas))
    left.plot(steps, found.bound, label="bound (ours)")
    left.plot(steps, found.measured, label="measured")
    left.set_yscale("symlog", linthresh=1e-3)
    left.set_xlabel("step of the inversion; the way back goes left")
    left.set_ylabel("distance from the inversion")
    left.legend()
    right.plot(steps[1:], found.lipschitz, label="L of the noise in the latent")
    right.plot(steps[1:], found.kappa, label="kappa: what prompt or model changes")
    right.set_yscale("symlog", linthresh=1e-3)
    right.set_xlabel("step of the inversion")
    right.legend()
    return draw(figure)
