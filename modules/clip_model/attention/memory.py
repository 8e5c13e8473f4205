"""Coarse tokens of a clip's frames, from calls that each see a window of them."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from .fine_coarse import Coarse

WHOLE_FRAMES = 4  # of which the coarse tokens of a clip may be as many


class ClipMemory:
    """The memory by which fine-coarse attention in windows sees the whole clip; ours.

    Each call leaves the coarse keys and values of its frames here and takes those of the frames that it does not see,
    as the last call that saw them left them: in this step or in the one before. A window that holds the whole clip
    takes nothing, so that its attention is the one without windows. Of the other frames it is that attention but for
    what their tokens changed since, which is exact where nothing does. Of a clip of more than WHOLE_FRAMES r^2 frames
    evenly spaced ones are held, so that memory and time of a call do not grow further with the clip.

    Args:
        frames: of the clip.
        r: downsampling factor of the attention.
    """

    def __init__(self, frames: int, r: int):
        self.kept = frozenset(range(0, frames, -(-frames // (WHOLE_FRAMES * r**2))))
        self.held: dict[Hashable, dict[int, tuple[Tensor, Tensor]]] = {}

    def complete(self, layer: Hashable, sides: Sequence[Hashable], window: Sequence[int], coarse: Coarse) -> Coarse:
        """Hold the coarse tokens of a call's frames, and return them followed by those of the others.

        Args:
            layer: that calls.
            sides: its conditionings, one for each of the b rows of the coarse tokens.
            window: numbers of the frames in the clip.
            coarse: their tokens, each of shape (b, p, heads*d).
        """
        held = [self.held.setdefault((layer, side), {}) for side in sides]
        for frame, k, v in zip(window, *coarse, strict=True):
            for row, of_side in enumerate(held):
                if frame in self.kept:
                    of_side[frame] = k[row], v[row]
        others = sorted(set.intersection(*map(set, held)) - set(window))
        further = ([torch.stack([of_side[frame][i] for of_side in held]) for frame in others] for i in range(2))
        return Coarse(*(own + more for own, more in zip(coarse, further, strict=True)))
