"""Figures as images."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor


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
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).float()[None] / 255
