"""Figures as images."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from .covariate_shift import Shift


def draw(figure: Figure) -> Tensor:
    """Return a figure as an image, shape (1, height, width, 3) in 0 ... 1."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).float()[None] / 255


def plot_loss(losses: Sequence[float]) -> Tensor:
    """Plot the loss of each step and its running mean; returns an image of shape (1, 480, 800, 3) in 0 ... 1.

    One-shot tuning draws a new noise level at each step, so that single losses scatter; the running mean over a tenth
    of the steps shows where they go.
    """
    figure = Figure(figsize=(8, 4.8), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (mean squared error)", yscale="log")
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, ".", markersize=3, alpha=0.4, label="each step")
    window = max(1, len(losses) // 10)
    means = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], means, label=f"mean of {window}")
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
