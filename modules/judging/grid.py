"""Clips side by side, and as a strip, with labels and frame numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from matplotlib import colormaps
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import flow_to_image

from ..motion.flow import Motion

GAP = 2  # pixels between pictures
LEAST_LETTER, PART_OF_HEIGHT = 10, 16  # a letter is a sixteenth of a frame high
LONGEST_LABEL, WIDEST_LABEL = 100, 40  # in signs, and in heights of a letter
WIDEST_FRAME = 8  # in its heights; wider ones are squeezed in a strip
HEATMAP = "inferno"


def letter_height(side: int) -> int:
    """Return the height of letters beside frames of a height, in pixels."""
    return max(LEAST_LETTER, side // PART_OF_HEIGHT)


def load_font(letter: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font, which has the letters of method names, in a height of pixels."""
    return ImageFont.truetype(findfont("DejaVu Sans"), letter)


def fit_label(text: str, width: int, letter: int) -> str:
    """Return a text as one line, cut to a width of pixels; what cannot be printed becomes a space."""
    shown = text[: LONGEST_LABEL + 1]
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in shown).split())
    font = load_font(letter)
    if len(text) <= LONGEST_LABEL and font.getlength(line) <= width:
        return line
    line = line[:LONGEST_LABEL]
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


def draw_label(text: str, height: int, width: int, letter: int) -> Tensor:
    """Return a text in black on white, in the middle of a picture and cut to it, (3, height, width) in 0 ... 1."""
    text = fit_label(text, width, letter)
    picture = Image.new("RGB", (width, height), "white")
    place = width / 2, height / 2
    ImageDraw.Draw(picture).text(place, text, fill="black", font=load_font(letter), anchor="mm")
    return torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0).float() / 255


def difference_map(edit: Tensor, source: Tensor) -> Tensor:
    """Return where an edit differs from its source as a heat map, black = equal, yellow = by half of the range or more.

    Args:
        edit, source: frames (f, 3, h, w) in 0 ... 1.

    Returns:
        Frames of the same shape.
    """
    apart = 2 * (edit - source).abs().mean(dim=1)
    coloured = colormaps[HEATMAP](apart.clamp(0, 1).cpu().numpy())[..., :3]
    return torch.from_numpy(coloured).movedim(-1, 1).float()


def flow_maps(motions: Sequence[Motion]) -> list[Tensor]:
    """Return the flow to the next frame of each clip as colours, hue = direction, all to the same scale; white = still.

    The last frame shows the flow that leads to it.

    Returns:
        Frames (f, 3, h, w) in 0 ... 1 of each clip.
    """
    flows = torch.cat([torch.cat([motion.forward, motion.forward[-1:]]) for motion in motions])
    if not flows.any():
        return list(torch.ones(len(flows), 3, *flows.shape[2:]).chunk(len(motions)))
    return list((flow_to_image(flows).float() / 255).chunk(len(motions)))


def side_by_side(rows: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return clips beside each other as one clip, a label above each.

    Args:
        rows: from the top; in each, frames (f, 3, h, w) in 0 ... 1 by label, of one size and in the order of columns.

    Returns:
        Frames (f, 3, height, width), of even height and width, as video codecs want them.
    """
    first = next(iter(rows[0].values()))
    num_frames, _, side, width = first.shape
    letter = letter_height(side)
    lines = []
    for row in rows:
        cells = []
        for label, frames in row.items():
            title = draw_label(label, 2 * letter, width, letter).expand(num_frames, -1, -1, -1)
            cells.append(F.pad(torch.cat([title, frames.clamp(0, 1)], dim=2), (0, GAP), value=0.5))
        line = torch.cat(cells, dim=3)
        lines.append(F.pad(line, (0, 0, 0, GAP), value=0.5))
    widest = max(line.shape[3] for line in lines)
    whole = torch.cat([F.pad(line, (widest - line.shape[3], 0), value=1.0) for line in lines], dim=2)
    return F.pad(whole, (0, whole.shape[3] % 2, 0, whole.shape[2] % 2), value=0.5)


def draw_strip(rows: Mapping[str, Tensor], columns: int = 8, side: int = 160) -> Tensor:
    """Return clips below each other as one picture: a label before each, the numbers of the frames above.

    Args:
        rows: frames (f, 3, h, w) in 0 ... 1 by label, from the top; all clips have as many frames as the first.
        columns: how many frames to show, spread evenly over the clip.
        side: height of a shown frame in pixels.

    Returns:
        Picture (3, height, width) in 0 ... 1.
    """
    num_frames = len(next(iter(rows.values())))
    shown = torch.linspace(0, num_frames - 1, min(columns, num_frames)).round().long()
    letter = letter_height(side)
    font, widest = load_font(letter), 0
    labels = [fit_label(label, WIDEST_LABEL * letter, letter) for label in rows]
    margin = letter + max(int(np.ceil(font.getlength(label))) for label in labels)
    lines = []
    for label, frames in rows.items():
        width = min(max(1, round(side * frames.shape[-1] / frames.shape[-2])), WIDEST_FRAME * side)
        widest = max(widest, width)
        resized = F.interpolate(frames[shown].float().cpu(), size=(side, width), mode="bilinear", antialias=True)
        strip = rearrange(F.pad(resized.clamp(0, 1), (0, GAP, 0, GAP), value=0.5), "f c h w -> c h (f w)")
        lines.append(torch.cat([draw_label(label, side + GAP, margin, letter), strip], dim=2))
    numbers = [draw_label(str(number), 2 * letter, widest + GAP, letter) for number in shown.tolist()]
    lines.insert(0, torch.cat([torch.ones(3, 2 * letter, margin), *numbers], dim=2))
    length = max(line.shape[2] for line in lines)
    return torch.cat([F.pad(line, (0, length - line.shape[2]), value=1.0) for line in lines], dim=1)
