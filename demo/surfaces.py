"""Textures on the object, patterns on the ground, and the styles of a whole picture.

Patterns are anti-aliased coverages in [0, 1] over coordinates in pixels.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange

from .palette import TEXTURES
from .shapes import choose

CELL = 16  # pixels between the scattered details of night, meadow and sand
TABLE = 8  # the scatter repeats after this many cells
TILE = 4  # pixels along a tile of the mosaic


def cover(depth: torch.Tensor) -> torch.Tensor:
    """Return how much of a pixel lies inside an edge `depth` pixels away, in [0, 1]."""
    return (0.5 + depth).clamp(0, 1)


def scatter(x: torch.Tensor, y: torch.Tensor, phase: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the offset of every point from the one mark of its cell, in pixels."""
    column, row = torch.floor(x / CELL), torch.floor(y / CELL)
    number = torch.remainder(column, TABLE) * 3 + torch.remainder(row, TABLE) * 5
    mark_x = CELL * (0.5 + 0.2 * torch.sin(2.4 * number + phase))
    mark_y = CELL * (0.5 + 0.2 * torch.sin(3.9 * number + phase))
    return x - column * CELL - mark_x, y - row * CELL - mark_y


def stars(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the coverage of scattered round stars."""
    dx, dy = scatter(x, y, 0.3)
    return cover(1.6 - torch.hypot(dx, dy))


def grass(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the coverage of short upright blades."""
    dx, dy = scatter(x, y, 1.1)
    return cover(1.5 - (dx - 0.2 * dy).abs()) * cover(5.0 - dy.abs())


def grains(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the coverage of low ripples of sand."""
    crest = torch.sin(2 * math.pi * y / CELL + 1.2 * torch.sin(2 * math.pi * x / (4 * CELL)))
    return cover(3 * crest - 1.5) * 0.6


def mortar(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the coverage of the joints between bricks of 32 by 16 pixels."""
    row = torch.floor((y - 8) / 16)
    across = torch.remainder(x + 16 * torch.remainder(row, 2), 32)
    down = torch.remainder(y, 16)
    return torch.maximum(cover(1.25 - (down - 8).abs()), cover(1.25 - (across - 16).abs()))


def waves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the coverage of rows of pointed waves."""
    height = 5 * torch.sin(math.pi * torch.remainder(x, 32) / 32)
    return cover(1.5 - (torch.remainder(y + height, CELL) - 8).abs())


def bare(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return no coverage at all."""
    return torch.zeros_like(x)


PATTERNS = {
    "white": bare,
    "grey": bare,
    "night": stars,
    "meadow": grass,
    "sand": grains,
    "brick": mortar,
    "sea": waves,
}


def get_shade(texture: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return where an object shows its second shade.

    Args:
        texture: (b) index into TEXTURES.
        x, y: (b, h, w) coordinates on the object, pixels.

    Returns:
        (b, h, w) in [0, 1].
    """
    u, v = 2 * math.pi * x / 14, 2 * math.pi * y / 14
    dots_x, dots_y = torch.remainder(x, 12) - 6, torch.remainder(y, 12) - 6
    kinds = {
        "plain": bare(x, y),
        "striped": cover(2.2 * u.sin()),
        "dotted": cover(3.4 - torch.hypot(dots_x, dots_y)),
        "checkered": cover(3.0 * (u / 1.3).sin() * (v / 1.3).sin()),
    }
    return choose([kinds[name] for name in TEXTURES], texture)


def outline(picture: torch.Tensor, distance: torch.Tensor, width: float, ink: float) -> torch.Tensor:
    """Draw a line along the object's edge.

    Args:
        picture: (b, 3, h, w) in [0, 1].
        distance: (b, h, w) signed distance to the edge, pixels.
        width: half the line's width, pixels.
        ink: the line's grey value in [0, 1].
    """
    line = cover(width - distance.abs()).unsqueeze(1)
    return picture + line * (ink - picture)


def pencil(picture: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Redraw pictures on paper with diagonal hatching and a thin grey outline."""
    height, width = picture.shape[-2:]
    y = torch.arange(height, device=picture.device, dtype=picture.dtype).view(-1, 1)
    x = torch.arange(width, device=picture.device, dtype=picture.dtype).view(1, -1)
    hatch = cover(2.0 * torch.cos(2 * math.pi * (x + y) / 8) - 0.6)
    paper = 0.80 * picture + 0.20
    return outline(paper * (1 - 0.30 * hatch), distance, 1.1, 0.30)


def mosaic(picture: torch.Tensor) -> torch.Tensor:
    """Redraw pictures with one flat colour for each tile of TILE pixels, and grey grout."""
    tiles = F.avg_pool2d(picture, TILE).repeat_interleave(TILE, -1).repeat_interleave(TILE, -2)
    joint = torch.zeros(TILE, TILE, device=picture.device, dtype=picture.dtype)
    joint[0, :] = 0.25
    joint[:, 0] = 0.25
    split = rearrange(tiles, "b c (h i) (w j) -> b c h w i j", i=TILE, j=TILE)
    return rearrange(split + joint * (0.45 - split), "b c h w i j -> b c (h i) (w j)")
