"""What the systems that control attention by prompt-to-prompt decide differently, as their code does it."""

from dataclasses import dataclass
from typing import Literal, get_args

Name = Literal["general", "FateZero", "Video-P2P"]


@dataclass(frozen=True)
class Recipe:
    """What an Attention Control does that its other settings leave open.

    Attributes:
        calls: of which calls of the UNet the source's attention is: "sampling" = of one at the state and noise level
            of each step, "inversion" = of those that the inversion itself made, at its states and as it was told.
        follows: the self-attention that follows the source's: within frames, or over frames in temporal modules.
        fine_cross: whether cross-attention follows in all layers, and not only where self-attention does.
        whole_steps: whether ends are rounded down to whole steps: int(end steps) of self-attention, int(end (steps +
            1)) of cross-attention, whose table in prompt-to-prompt's code has a row more.
        by_position: whether what follows the text, in "replace" what follows the last word that differs, is paired by
            position instead of the distance from the end of the text.
        resize: how masks are resized.
        sums_source: whether the source's part of a mask is of its maps summed over the steps so far, as the edit's
            always is, or of the step's alone.
        edit_after: whether the edit's part of a mask is of its maps after control.
        blend: parts of the steps between which local blend acts; an end above 1 = to the last.
        blends_noisier: whether local blend keeps the source's state of the noise level before the step, rescaled,
            instead of that after it.
    """

    calls: Literal["sampling", "inversion"] = "sampling"
    follows: Literal["frames", "temporal"] = "frames"
    fine_cross: bool = True
    whole_steps: bool = True
    by_position: bool = True
    resize: Literal["bilinear", "nearest"] = "nearest"
    sums_source: bool = True
    edit_after: bool = False
    blend: tuple[float, float] = (0.2, 2.0)
    blends_noisier: bool = False

    def acts_on_self(self, step: int, steps: int, end: float) -> bool:
        """Whether self-attention follows in a step, until a part of the steps."""
        return step < int(end * steps) if self.whole_steps else step / steps < end

    def acts_on_cross(self, step: int, steps: int, end: float) -> bool:
        """Whether cross-attention follows in a step, until a part of the steps."""
        return step < int(end * (steps + 1)) if self.whole_steps else step / steps < end

    def blends(self, step: int, steps: int) -> bool:
        """Whether local blend acts after a step."""
        first, end = (part * steps for part in self.blend)
        return int(first) <= step < int(end) - 1 if self.whole_steps else first <= step


# Prompt-to-prompt as this pack reads it: nothing jumps with the number of steps, and the text's end meets the text's.
GENERAL = Recipe(whole_steps=False, by_position=False, resize="bilinear")

# FateZero's code (Qi et al., ICCV 2023, arXiv 2303.09535) keeps the maps of the inversion's own calls, step n of N
# taking those of its call N - 1 - n; controls self- and cross-attention where a frame has 32 x 32 positions or fewer;
# makes the source's mask of the call's maps alone, at 16 x 16, and for local blend adds one of the edit's maps, summed
# over its steps; and blends after steps int(0.2 N) to int(0.8 N) - 2 the state that the inversion had before the step.
FATEZERO = Recipe(calls="inversion", fine_cross=False, sums_source=False, blend=(0.2, 0.8), blends_noisier=True)

# Video-P2P's code (Liu et al., CVPR 2024, arXiv 2303.04761) samples the source together with the edit; lets
# cross-attention and attention over frames follow in layers of all sizes and attention within frames nowhere; and makes
# its masks of maps at 16 x 16, summed over the steps of both, the edit's after control, for a blend from step
# int(0.2 N) on.
# Its guidance is decoupled: the embedding that null-text optimisation finds, which takes the source's branch along the
# states of its inversion, is the source's alone, and the edit's branch has that of the empty text. Here the source is
# at these states exactly, without an optimisation, and the edit has the negative prompt that it is sampled with.
VIDEO_P2P = Recipe(follows="temporal", edit_after=True)

RECIPES: dict[Name, Recipe] = dict(zip(get_args(Name), (GENERAL, FATEZERO, VIDEO_P2P), strict=True))
