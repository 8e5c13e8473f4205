"""How well a clip comes back from its inversion."""

from dataclasses import dataclass

import torch
from kornia.metrics import ssim as ssim_map
from torch import Tensor


@dataclass(frozen=True)
class Reconstruction:
    """What a reconstruction loses, by frame and by step.

    Attributes:
        psnr, ssim: of each frame of the reconstruction against the autoencoder's round trip, dB and 0 ... 1.
        drift: distance of sampling's state from inversion's after each step, relative to the inversion's.
    """

    psnr: list[float]
    ssim: list[float]
    drift: list[float]

    @property
    def worst(self) -> int:
        """The frame that lost most."""
        return min(range(len(self.psnr)), key=self.psnr.__getitem__)


def to_decibel(errors: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratios of mean squared errors of values in 0 ... 1, in dB, 100 at most."""
    return -10 * errors.clamp(min=1e-10).log10()


def psnr(frames: Tensor, reference: Tensor) -> list[float]:
    """Return each frame's peak signal-to-noise ratio in dB; shapes (f, c, h, w), 0 ... 1. Equal frames have 100."""
    return to_decibel((frames - reference).square().mean(dim=(1, 2, 3))).tolist()


def ssim(frames: Tensor, reference: Tensor) -> list[float]:
    """Return each frame's structural similarity (Wang et al., 2004; windows of 11 pixels); shapes (f, c, h, w)."""
    return ssim_map(frames, reference, window_size=11).mean(dim=(1, 2, 3)).tolist()


def drift(states: Tensor, expected: Tensor) -> list[float]:
    """Return ||x - x'|| / ||x'|| of each step's state x and the inversion's x', shapes (steps, ...)."""
    apart = (states - expected).flatten(1).norm(dim=1)
    return (apart / expected.flatten(1).norm(dim=1)).tolist()


def remedies(
    found: Reconstruction,
    cfg: float,
    inverted_cfg: float,
    is_plain: bool,
    refinements: int,
    steps: int,
    method: str = "DDIM",
    solver: str = "DDIM",
) -> list[str]:
    """Return what would make a reconstruction better, the likeliest first; empty where it is good (35 dB and more).

    Args:
        found: the reconstruction.
        cfg: guidance it was sampled with.
        inverted_cfg: guidance of the inversion.
        is_plain: whether the inversion was without the noise relation.
        refinements, steps, method, solver: of the inversion.
    """
    if min(found.psnr) >= 35:
        return []
    advice = []
    if method == "STEM":
        advice.append("set method of the inversion to DDIM: STEM inverts with other attention than it is sampled with")
    if not is_plain:
        advice.append("set direction of the inversion to none: the noise relation gives up the exact way back")
    if cfg != inverted_cfg:
        negative = " and connect its negative" if inverted_cfg > 1 else ""
        advice.append(f"set cfg to {inverted_cfg:g}{negative}: the inversion was made with it, not with {cfg:g}")
        if cfg > 1:
            advice.append(f"for cfg {cfg:g} connect the source prompt as negative, or that of Null-Text Optimization")
    elif cfg > 1:
        advice.append(f"set cfg to 1 in the inversion and here: guidance of {cfg:g} is hard to invert")
    if refinements == 0 and solver == "DDIM":
        advice.append("set refinements of the inversion to 2, or its solver to midpoint")
    if steps < 100:
        advice.append(f"raise steps of the inversion from {steps} to {2 * steps}")
    return [*advice, "use the prompt that the clip was inverted with"]


def report_text(found: Reconstruction, advice: list[str]) -> str:
    """Return the report as text."""
    worst, mean = found.worst, torch.tensor(found.psnr).mean().item()
    lines = [
        f"Against the autoencoder's round trip: {mean:.1f} dB on average, {found.psnr[worst]:.1f} dB in the worst "
        f"frame ({worst}), SSIM {min(found.ssim):.3f} at least.",
        f"The states of sampling are {found.drift[-1]:.1%} off those of the inversion at the end, "
        f"{max(found.drift):.1%} at most.",
    ]
    return "\n".join([*lines, *(f"- {step}." for step in advice)])
