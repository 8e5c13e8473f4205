"""Coarse tokens of a clip's frames, for attention that is given a window of them at a time."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from .fine_coarse import Coarse

WHOLE_FRAMES = 4  # of which the coarse tokens of a clip may be as many


class ClipMemory:
    """The memory by which fine-coarse attention in windows sees the whole clip; ours.

    At each step it is filled by calls for windows that are spread over the clip, each of which sees its own frames
    alone. Afterwards every window attends to its own frames as they are and to the coarse tokens held of the others.

    A window of the whole clip takes nothing, so that its attention is the one without windows. In the first block the
    tokens of the others are exact, too; in later ones they come of activations that saw a part of the clip. Of a clip
    of more than WHOLE_FRAMES r^2 frames evenly spaced ones are held, so that what a call needs of memory and time does
    not grow further with the clip.

    Attributes:
        is_filling: whether calls leave their tokens here, or take those of the others.
    """

    def __init__(self, frames: int, r: int):
        self.kept = range(0, frames, -(-frames // (WHOLE_FRAMES * r**2)))
        self.held: dict[Hashable, dict[int, tuple[Tensor, Tensor]]] = {}
        self.is_filling = False

    def begin(self) -> None:
        """Forget the step before, and let the calls that follow fill the memory."""
        self.held, self.is_filling = {}, True

    def windows(self, length: int) -> list[list[int]]:
        """Return the windows of at most so many frames that fill the memory, each evenly spread over the clip."""
        count = -(-len(self.kept) // length)
        return [list(self.kept[i::count]) for i in range(count)]

    def complete(self, layer: Hashable, sides: Sequence[Hashable], window: Sequence[int], coarse: Coarse) -> Coarse:
        """Hold the coarse tokens of a call's frames, or return them followed by those of the other frames.

        What comes first of a frame is held: guidance that perturbs the model calls it again in the same step.

        Args:
            layer: that calls.
            sides: its conditionings, one for each of the b rows of the coarse tokens.
            window: numbers of the frames in the clip.
            coarse: their tokens.
        """
        held = [self.held.setdefault((layer, side), {}) for side in sides]
        if self.is_filling:
            for frame, k, v in zip(window, *(tokens.unbind(-3) for tokens in coarse), strict=True):
                for row, of_side in enumerate(held):
                    of_side.setdefault(frame, (k[row], v[row]))
            return coarse
        others = sorted(set.intersection(*map(set, held)) - set(window))
        if not others:
            return coarse
        further = (
            torch.stack([torch.stack([of_side[frame][i] for frame in others], dim=-3) for of_side in held])
            for i in range(2)
        )
        return Coarse(*(torch.cat(both, dim=-3) for both in zip(coarse, further, strict=True)))
