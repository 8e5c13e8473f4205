"""Measure what a run of the demo workflow did to a clip, and say what it did not manage."""

import math
import re
from typing import Any

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from ..demo.palette import COLOURS, SHAPES
from ..demo.reader import ShapeReader, find_object, read_colour

LOST_DB = 3.0  # how far a reconstruction may stay below the autoencoder before it is remarked
SYMMETRY = {"square": 4, "cross": 4, "triangle": 3, "star": 5, "heart": 2}  # turns by 360 / k degrees look alike
STILL_DEGREES = 5.0  # how far the edited object may turn from frame to frame before it is remarked
LOST_PIXELS = 2.0  # how far the edited object may be off the source's path before it is remarked


def get_psnr(frames: torch.Tensor, source: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio of frames against their source, both (f, 3, h, w) in [0, 1], in dB."""
    return round(peak_signal_noise_ratio(frames, source, data_range=1.0).item(), 2)


def read_edit(frames: torch.Tensor, prompt: str, reader: ShapeReader) -> dict[str, Any]:
    """Read the object's colour and shape back from each frame, and what the prompt asks for.

    Args:
        frames: (f, 3, 128, 128) in [0, 1].
        prompt: the edited prompt; the first colour and shape that it names are wanted.
        reader: the trained shape reader.
    Returns:
        "wanted": colour and shape, None where the prompt names none; "colour", "shape": one name for each frame.
    """
    words = re.findall(r"\w+", prompt.lower())
    wanted = {
        "colour": next((word for word in words if word in COLOURS), None),
        "shape": next((word for word in words if word in SHAPES), None),
    }
    return {"wanted": wanted, "colour": read_colour(frames), "shape": reader.read(frames)}


def get_motion_errors(frames: torch.Tensor, source: torch.Tensor) -> list[float | None]:
    """Return how far the object's centroid is from where it is in the source, in pixels, for each frame.

    Args:
        frames, source: (f, 3, h, w) in [0, 1].
    Returns:
        One distance for each frame, None where either has no object.
    """
    apart = (find_object(frames)[1] - find_object(source)[1]).norm(dim=-1)
    return [round(distance, 2) if math.isfinite(distance) else None for distance in apart.tolist()]


def get_turns(frames: torch.Tensor, shape: str | None) -> list[float | None]:
    """Return by how many degrees the object turns from each frame to the next.

    The orientation of a shape with k-fold symmetry is the angle of the k-th moment of its mask about its centroid,
    divided by k; turns are therefore known within 180 / k degrees.

    Args:
        frames: (f, 3, h, w) in [0, 1].
        shape: of the object; one without an orientation, such as a circle, has no turns.
    Returns:
        f - 1 of them, None where either frame has no object or the shape no orientation.
    """
    if shape not in SYMMETRY:
        return [None] * (len(frames) - 1)
    k, (mask, centroid) = SYMMETRY[shape], find_object(frames)
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in mask.shape[1:]), indexing="ij")
    place = torch.complex(columns - centroid[:, 0, None, None], rows - centroid[:, 1, None, None])
    angles = torch.angle((mask * place**k).sum(dim=(1, 2)))
    apart = torch.remainder(angles.diff() + math.pi, 2 * math.pi) - math.pi
    return [round(turn, 2) if math.isfinite(turn) else None for turn in (apart / k).rad2deg().tolist()]


def get_mean(values: list[float | None]) -> float | None:
    """Return the mean of the values that are there, None where none is."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 2) if known else None


def list_remarks(report: dict[str, Any]) -> list[str]:
    """Return, in words, what the measurements of a report say that the run did not manage.

    Args:
        report: with "frames", "reconstruction_psnr", "autoencoder_psnr", and where they were measured "loss", "edited",
            "motion_errors" and "turns".
    """
    remarks = ["Every figure is measured on the saved H.264 files, so their compression is part of it."]
    if len(set(report["frames"].values())) > 1:
        remarks.append(f"The clips differ in length and are compared from their start: {report['frames']}.")
    loss = report.get("loss", [])
    tenth = max(1, len(loss) // 10)
    if len(loss) > 1 and sum(loss[-tenth:]) >= sum(loss[:tenth]):
        remarks.append("The tuning loss did not fall.")
    lost = report["autoencoder_psnr"] - report["reconstruction_psnr"]
    if lost > LOST_DB:
        remarks.append(f"The reconstruction is {lost:.1f} dB below the autoencoder's own round trip.")
    for what, name in report.get("edited", {}).get("wanted", {}).items():
        read = report["edited"][what]
        wrong: dict[str, list[str]] = {}
        for frame, found in enumerate(read):
            if name is not None and found != name:
                wrong.setdefault(found, []).append(str(frame))
        listed = "; ".join(f"{found} in {', '.join(frames)}" for found, frames in wrong.items())
        if wrong:
            count = sum(map(len, wrong.values()))
            remarks.append(f"The {what} does not read as {name} in {count} of {len(read)} frames but as {listed}.")
    errors = report.get("motion_errors", [])
    if None in errors:
        lost_in = ", ".join(str(frame) for frame, error in enumerate(errors) if error is None)
        remarks.append(f"No object is found in frames {lost_in}.")
    far = [frame for frame, error in enumerate(errors) if error is not None and error > LOST_PIXELS]
    if far:
        listed = ", ".join(map(str, far))
        remarks.append(f"The object is over {LOST_PIXELS:.0f} pixels off the source's path in frames {listed}.")
    turned = [frame for frame, turn in enumerate(report.get("turns", []), 1) if abs(turn or 0.0) > STILL_DEGREES]
    if turned:
        listed = ", ".join(map(str, turned))
        remarks.append(f"The object turns by over {STILL_DEGREES:.0f} degrees on the way to frames {listed}.")
    return remarks
