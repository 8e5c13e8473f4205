"""Judges that work from pixels: colour and place by rule, the shape by a small network."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .palette import COLOURS, RGB, WORDS, get_chroma, get_hues
from .world import get_centroid

VIVID = 0.2  # grounds stay below, objects above
NOTHING = "nothing"
NAMES = {name: words for name, words in WORDS.items() if name != "colour"}


def get_vividness(frames: torch.Tensor) -> torch.Tensor:
    """Return how strongly each pixel is coloured, (f, h, w).

    The chroma is divided by the brightness plus 0.3, so that dark shades of the object count and
    the nearly black night does not.

    Args:
        frames: (f, 3, h, w) in [0, 1].
    """
    rgb = frames.movedim(1, -1)
    return get_chroma(rgb) / (rgb.amax(-1) + 0.3)


def find_object(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the coloured object in each frame.

    Args:
        frames: (f, 3, h, w) in [0, 1].

    Returns:
        Its mask (f, h, w) in [0, 1], and its centroid (f, 2) as x, y in pixels; NaN where a frame
        has no coloured object.
    """
    smooth = F.avg_pool2d(get_vividness(frames).unsqueeze(1), 3, 1, 1, count_include_pad=False)
    mask = ((smooth.squeeze(1) - VIVID) / 0.1 + 0.5).clamp(0, 1)
    return mask, get_centroid(mask)


def read_colour(frames: torch.Tensor) -> list[str]:
    """Name the object's colour in each frame.

    Every vivid pixel votes for the colour with the nearest hue.

    Args:
        frames: (f, 3, h, w) in [0, 1].

    Returns:
        f of COLOURS, or "nothing" for a frame without vivid pixels.
    """
    vivid = (get_vividness(frames) - VIVID).clamp(min=0)
    known = get_hues(RGB.to(frames.device))
    apart = get_hues(frames.movedim(1, -1)).unsqueeze(-1) - known
    nearest = apart.cos().argmax(-1)
    votes = torch.stack([(vivid * (nearest == index)).sum((-2, -1)) for index in range(len(COLOURS))], -1)
    names = [COLOURS[index] for index in votes.argmax(-1).tolist()]
    return [name if total > 0 else NOTHING for name, total in zip(names, votes.sum(-1).tolist(), strict=True)]


class ShapeReader(nn.Module):
    """A small network that names the shape, and loosely texture, background and style."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 48, 64, 96, 96)
        strides = (2, 2, 2, 2, 1)
        layers: list[nn.Module] = []
        for narrow, wide, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers += [nn.Conv2d(narrow, wide, 3, stride, 1), nn.GroupNorm(8, wide), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * widths[-1], len(words)) for name, words in NAMES.items()})

    @classmethod
    def load(cls, path: Path) -> "ShapeReader":
        """Read the weights that training wrote."""
        reader = cls()
        reader.load_state_dict(load_file(path))
        return reader.eval().requires_grad_(False)

    def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits (f, names) for each attribute.

        Args:
            frames: (f, 3, 128, 128) in [0, 1].
        """
        features = self.trunk(2 * frames - 1)
        pooled = torch.cat([features.mean((-2, -1)), features.amax((-2, -1))], -1)
        return {name: head(pooled) for name, head in self.heads.items()}

    @torch.no_grad()
    def get_probabilities(self, frames: torch.Tensor, attribute: str = "shape") -> torch.Tensor:
        """Return the probability (f, names) of every name of one attribute."""
        return self(frames)[attribute].float().softmax(-1)

    def read(self, frames: torch.Tensor, attribute: str = "shape") -> list[str]:
        """Name one attribute of each frame."""
        best = self.get_probabilities(frames, attribute).argmax(-1).tolist()
        return [NAMES[attribute][index] for index in best]
