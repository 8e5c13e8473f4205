"""Inputs of the losses that a tuning minimises."""

from typing import get_args

from comfy_api.latest import io

from ..modules.tuning.losses.smoothing import Smoothing
from ..modules.tuning.losses.term import Part


def loss_inputs() -> list[io.Input]:
    """Return the inputs of all losses, named as their settings but for `consistency_blocks`."""
    return [
        io.Combo.Input(
            "smoothing",
            options=list(get_args(Smoothing)),
            default="none",
            optional=True,
            tooltip="Loss added that ties neighbouring frames to each other. INR (INR Smooth, PLoS One 2025): "
            "what UNet and noise differ by is to be equal in neighbours. SmoothVideo: the predicted noise is "
            "to change evenly, which also takes texture away.",
        ),
        io.Float.Input(
            "smoothing_weight",
            default=2.0,
            min=0.0,
            max=100.0,
            step=0.01,
            optional=True,
            tooltip="Weight lambda of the smoothing loss against the diffusion loss: 2 on Tune-A-Video and "
            "0.2 on ControlVideo in INR Smooth; 0.2 in SmoothVideo.",
        ),
        *consistency_inputs(),
    ]


def consistency_inputs() -> list[io.Input]:
    """Return the inputs of the temporal consistency loss."""
    return [
        io.Float.Input(
            "consistency_weight",
            default=0.0,
            min=0.0,
            max=1000000.0,
            step=0.01,
            optional=True,
            advanced=True,
            tooltip="Weight of the temporal consistency loss against the diffusion loss: the similarity of "
            "neighbouring frames is to change evenly. Its values are small, about 1e-4 beside a diffusion "
            "loss of 1e-2: try 1 to 100. 0 = none.",
        ),
        io.Combo.Input(
            "consistency_blocks",
            options=list(get_args(Part)),
            default="middle",
            optional=True,
            advanced=True,
            tooltip="Whose self-attention features the temporal consistency loss compares: those of the whole UNet, or "
            "of its encoder blocks (input), its middle block or its decoder blocks (output).",
        ),
    ]
