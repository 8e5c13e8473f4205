"""An edited clip against its source, by measures that are read together: none of them alone tells a good edit.

Frames have the shape (f, 3, h, w), 0 ... 1. What a measure needs beside them, a CLIP model, an optical flow or weights,
comes in as a function; a measure that lacks it is left out, with the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..motion.flow import Motion, warp
from ..sampling.texture import texture_energy
from .reconstruction import to_decibel

DO_NOTHING = "do nothing"
EDIT = "edit"


@dataclass(frozen=True)
class Measure:
    """A column of the scorecard.

    Attributes:
        needs: what it is measured by, a field of `Judges`; empty = the frames alone.
        better: "higher", "lower", or "" where the source's own value is best.
        says: what it is.
    """

    needs: str
    better: str
    says: str


MEASURES = {
    "CLIP-T": Measure("text", "higher", "100 times the cosine of each frame and the edited prompt, mean"),
    "CLIP-T source": Measure("text", "lower", "the same with the source prompt: what the edit leaves behind"),
    "CLIP-F consecutive": Measure("images", "higher", "100 times the cosine of neighbouring frames, mean"),
    "CLIP-F all pairs": Measure("images", "higher", "the same over every two frames"),
    "warp error": Measure("flow", "lower", "1000 times the mean squared change along the source's motion"),
    "motion alignment": Measure("flow", "higher", "cosine of the edit's flow and the source's, -1 to 1"),
    "flow distance": Measure("flow", "lower", "mean length of the difference of the two flows, pixels"),
    "background PSNR": Measure("", "higher", "against the source outside of the mask, dB, mean over frames"),
    "LPIPS": Measure("lpips", "lower", "perceptual distance to the source, mean over frames"),
    "texture": Measure("", "", "energy of fine structure against the source's; well below 1 is over-smoothed"),
}


def clip_text_score(images: Tensor, text: Tensor) -> float:
    """Return CLIP-T: 100 times the mean cosine of embedded frames (f, d) and an embedded prompt (d), as papers give."""
    return 100 * F.cosine_similarity(images.float(), text.float()[None]).mean().item()


def clip_frames_consecutive(images: Tensor) -> float:
    """Return CLIP-F as INR Smooth has it: 100 times the mean cosine of neighbouring frames; embeddings (f, d)."""
    return 100 * F.cosine_similarity(images[:-1].float(), images[1:].float()).mean().item()


def clip_frames_all_pairs(images: Tensor) -> float:
    """Return CLIP-F as EI² and LOVEU-TGVE have it: 100 times the mean cosine of any two frames; embeddings (f, d)."""
    unit = F.normalize(images.float(), dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1)
    return 100 * (unit[first] * unit[second]).sum(dim=1).mean().item()


def warp_error(edit: Tensor, motion: Motion) -> float:
    """Return the mean squared difference of each frame and the next one led back along the source's motion.

    Args:
        edit: frames (f, 3, h, w) in 0 ... 1.
        motion: of the source clip; only what is seen in both frames counts.
    """
    errors, seen = warp_errors(edit, motion)
    return (errors.sum() / seen.sum().clamp(min=1)).item()


def warp_errors(edit: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
    """Return the sum of the squared differences of each frame and the next, and the number of points it is over."""
    apart = (warp(edit[1:], motion.forward) - edit[:-1]).square().mean(dim=1, keepdim=True)
    return (motion.seen_forward * apart).sum(dim=(1, 2, 3)), motion.seen_forward.sum(dim=(1, 2, 3))


def seam_score(edit: Tensor, motion: Motion, windows: Sequence[Sequence[int]]) -> float | None:
    """Return the warp error at the joints of windows over the one elsewhere: 1 = the joints do not show.

    A joint lies between two frames of which a window holds only one.

    Returns:
        The ratio, None where one of the two has nothing to measure or there is no error elsewhere.
    """
    joints = torch.tensor([any((n in one) != (n + 1 in one) for one in windows) for n in range(len(edit) - 1)])
    errors, seen = warp_errors(edit, motion)
    if not (seen[joints].sum() > 0 and errors[~joints].sum() > 0):
        return None
    return (errors[joints].sum() / seen[joints].sum() * seen[~joints].sum() / errors[~joints].sum()).item()


def motion_alignment(edit: Motion, source: Motion) -> float | None:
    """Return the cosine of two motions, all their vectors as one: 1 the same up to a factor, -1 reversed, 0 none.

    Args:
        edit, source: of the same size; what is seen in the source counts.

    Returns:
        The cosine, None where the source does not move.
    """
    own, given = ((source.seen_forward * motion.forward).double() for motion in (edit, source))
    if not given.any():
        return None
    return F.cosine_similarity(own.flatten(), given.flatten(), dim=0).item()


def flow_distance(edit: Motion, source: Motion) -> float:
    """Return the mean distance of two motions' vectors in pixels, where the source's points are seen."""
    apart = (edit.forward - source.forward).norm(dim=1, keepdim=True)
    return ((source.seen_forward * apart).sum() / source.seen_forward.sum().clamp(min=1)).item()


def background_psnr(edit: Tensor, source: Tensor, mask: Tensor) -> float | None:
    """Return the mean over frames of the PSNR outside of a mask, in dB; equal frames have 100.

    Args:
        edit, source: frames (f, c, h, w) in 0 ... 1.
        mask: what is edited, shape (f or 1, h, w), 0 ... 1; partly masked pixels count for their rest.

    Returns:
        The mean, None where a mask leaves nothing of a frame.
    """
    kept = (1 - mask[:, None]).expand(len(edit), 1, *edit.shape[2:])
    amount = kept.sum(dim=(1, 2, 3))
    if (amount == 0).any():
        return None
    errors = (kept * (edit - source).square().mean(dim=1, keepdim=True)).sum(dim=(1, 2, 3)) / amount
    return to_decibel(errors).mean().item()


def texture_kept(edit: Tensor, source: Tensor) -> float | None:
    """Return the texture energy of an edit as a part of the source's, None where that has none."""
    energy = texture_energy(source).mean()
    return (texture_energy(edit).mean() / energy).item() if energy > 0 else None


@dataclass(frozen=True)
class Judges:
    """What the measures are made by; None where it is absent.

    Attributes:
        images: frames -> CLIP embeddings (f, d).
        text: prompt -> CLIP embedding (d) in the same space.
        flow: frames -> motion.
        lpips: frames and frames -> distance of each pair (f).
        models: what each one is, by its name here.
        absent: why one is None, by its name here.
    """

    images: Callable[[Tensor], Tensor] | None = None
    text: Callable[[str], Tensor] | None = None
    flow: Callable[[Tensor], Motion] | None = None
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scorecard:
    """What was measured.

    Attributes:
        rows: values by measure, of the edit and of the source taken as its own edit.
        left_out: measures that are missing, and why.
        models: what measured.
    """

    rows: dict[str, dict[str, float]]
    left_out: dict[str, str]
    models: dict[str, str]

    def data(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def check_pair(source: Tensor, edit: Tensor) -> None:
    """Raise ValueError where an edit cannot be compared with its source frame by frame."""
    if len(source) != len(edit):
        raise ValueError(
            f"source has {len(source)} frames and edited has {len(edit)}. Cut the longer one, with ImageFromBatch."
        )
    if source.shape[1:] != edit.shape[1:]:
        sizes = " and ".join(f"{frames.shape[-1]} x {frames.shape[-2]}" for frames in (source, edit))
        raise ValueError(f"source and edited have different sizes, {sizes}. Scale one to the other, with ImageScale.")


def fit_mask(mask: Tensor, source: Tensor) -> Tensor:
    """Return a mask at the size of the source's frames; ValueError where it has another number of them."""
    if len(mask) not in (1, len(source)):
        raise ValueError(f"mask has {len(mask)} frames and source has {len(source)}. Give one, or one for each.")
    return F.interpolate(mask[:, None].float(), size=source.shape[2:], mode="bilinear")[:, 0]


def judge_edit(
    source: Tensor, edit: Tensor, edit_text: str, source_text: str, mask: Tensor | None, judges: Judges
) -> Scorecard:
    """Measure an edit, and the source as its own edit.

    Args:
        source, edit: frames (f, 3, h, w) in 0 ... 1.
        edit_text, source_text: prompts; empty = what compares with them is left out.
        mask: what is edited, shape (f or 1, h, w), 0 ... 1; None = no background is known.
        judges: what the measures are made by.

    Raises:
        ValueError: the clips, or the mask, have other frames or another size.
    """
    check_pair(source, edit)
    mask = fit_mask(mask, source) if mask is not None else None
    prompts = {"CLIP-T": edit_text, "CLIP-T source": source_text}
    texts = {name: judges.text(text) for name, text in prompts.items() if judges.text and text.strip()}
    motion = judges.flow(source) if judges.flow and len(source) > 1 else None

    def measure(frames: Tensor, own: Motion | None) -> dict[str, float]:
        found: dict[str, float | None] = {"texture": texture_kept(frames, source)}
        if judges.images:
            embedded = judges.images(frames)
            found |= {name: clip_text_score(embedded, text) for name, text in texts.items()}
            if len(embedded) > 1:
                found["CLIP-F consecutive"] = clip_frames_consecutive(embedded)
                found["CLIP-F all pairs"] = clip_frames_all_pairs(embedded)
        if own and motion:
            found["warp error"] = 1000 * warp_error(frames, motion)
            found["motion alignment"] = motion_alignment(own, motion)
            found["flow distance"] = flow_distance(own, motion)
        if mask is not None:
            found["background PSNR"] = background_psnr(frames, source, mask)
        if judges.lpips:
            found["LPIPS"] = judges.lpips(frames, source).mean().item()
        return {name: value for name in MEASURES if (value := found.get(name)) is not None}

    rows = {EDIT: measure(edit, judges.flow(edit) if judges.flow and motion else None)}
    rows[DO_NOTHING] = measure(source, motion)
    missing = [name for name in MEASURES if name not in rows[EDIT]]
    reasons = {name: judges.absent.get(MEASURES[name].needs) or UNDEFINED[name] for name in missing}
    return Scorecard(rows, reasons, dict(judges.models))


UNDEFINED = {
    "CLIP-T": "edit_text is empty",
    "CLIP-T source": "source_text is empty",
    "CLIP-F consecutive": "the clip has one frame",
    "CLIP-F all pairs": "the clip has one frame",
    "warp error": "the clip has one frame",
    "motion alignment": "the clip has one frame, or the source does not move",
    "flow distance": "the clip has one frame",
    "background PSNR": "no mask is connected, or it covers a whole frame",
    "texture": "the source has no fine structure",
}


def report_text(card: Scorecard) -> str:
    """Return the scorecard as a Markdown table, then what it means, what is missing and what measured."""
    arrows = {"higher": " ↑", "lower": " ↓", "": ""}
    columns = list(card.rows[EDIT])
    table = [["", *(f"{name}{arrows[MEASURES[name].better]}" for name in columns)], ["---"] * (1 + len(columns))]
    table += [[name, *(f"{row[key]:.4g}" for key in columns)] for name, row in card.rows.items()]
    lines = [f"| {' | '.join(row)} |" for row in table]
    lines += ["", f"*{DO_NOTHING}* is the source as its own edit. What it does as well as the edit tells nothing."]
    lines += [f"- {name}: {MEASURES[name].says}." for name in columns]
    lines += [f"- Left out: {name}, {reason}." for name, reason in card.left_out.items()]
    lines += [f"- Measured by: {what}." for what in dict.fromkeys(card.models.values())]
    return "\n".join(lines)
