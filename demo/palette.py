"""Names of everything that can be drawn, and the colours they are drawn with."""

import torch

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = ("white", "grey", "night", "meadow", "sand", "brick", "sea")
STYLES = ("flat", "outlined", "pencil", "mosaic")
WORDS = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "background": BACKGROUNDS, "style": STYLES}

RGB = torch.tensor(
    [
        (0.88, 0.12, 0.14),
        (0.96, 0.53, 0.08),
        (0.96, 0.87, 0.12),
        (0.16, 0.67, 0.24),
        (0.12, 0.78, 0.84),
        (0.16, 0.27, 0.88),
        (0.53, 0.20, 0.80),
        (0.98, 0.36, 0.71),
    ]
)  # (8, 3): one fill colour for each of COLOURS

GROUND = torch.tensor(
    [
        (0.97, 0.97, 0.97),
        (0.62, 0.62, 0.62),
        (0.07, 0.08, 0.13),
        (0.67, 0.74, 0.61),
        (0.85, 0.80, 0.72),
        (0.66, 0.56, 0.53),
        (0.61, 0.69, 0.74),
    ]
)  # (7, 3): the base tone of each of BACKGROUNDS, saturation low on purpose

DETAIL = torch.tensor(
    [
        (0.97, 0.97, 0.97),
        (0.62, 0.62, 0.62),
        (0.95, 0.95, 0.90),
        (0.50, 0.58, 0.46),
        (0.69, 0.64, 0.57),
        (0.82, 0.81, 0.79),
        (0.86, 0.89, 0.91),
    ]
)  # (7, 3): stars, blades of grass, grains, mortar and wave crests


def get_hues(rgb: torch.Tensor) -> torch.Tensor:
    """Return the hue angle of colours.

    Args:
        rgb: (..., 3) in [0, 1].

    Returns:
        (...) hue in radians, in (-pi, pi]; 0 for greys.
    """
    red, green, blue = rgb.unbind(-1)
    return torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue)


def get_chroma(rgb: torch.Tensor) -> torch.Tensor:
    """Return the largest minus the smallest of the three channels, (...) in [0, 1]."""
    return rgb.amax(-1) - rgb.amin(-1)
