"""What a tuning minimises: the sum of some losses, each with a weight of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ...clip_model.methods import Part
from ...diffusion.ddim import Prediction


@dataclass(frozen=True)
class Moment:
    """Where a tuning stands, as far as the weight of a loss may depend on it.

    Attributes:
        done, steps: steps done before, and in all.
        sigma: noise level of the step, scalar.
        prediction: what the UNet predicts.
    """

    done: int
    steps: int
    sigma: Tensor
    prediction: Prediction


@dataclass(frozen=True)
class Forward:
    """What the UNet made of some frames with noise.

    Attributes:
        output, target: of the UNet (eps or v), shape (f, c, h, w).
        eps, predicted_eps: the noise that was added, and the output as noise.
        x, sigma, earlier_sigma: state x_0 + sigma * eps, its noise level as a scalar, and that of the timestep before
            it; of the first timestep, that of the last.
        mask: weight of each position, shape (f, 1, h, w); None = all alike.
        features: of self-attention, by the part of the UNet, one tensor of shape (f, l, d) for each block.
    """

    output: Tensor
    target: Tensor
    eps: Tensor
    predicted_eps: Tensor
    x: Tensor
    sigma: Tensor
    earlier_sigma: Tensor
    mask: Tensor | None = None
    features: Mapping[Part, Sequence[Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class LossTerm:
    """A loss as it is computed and weighted.

    Attributes:
        value: the loss without its weight, a scalar.
        weight: factor that it is added with; the diffusion loss without min-SNR has 1.
        label: what a user knows it by.
        least_frames: frames that a step needs.
        is_vital: whether fewer are refused; else it is 0 of them.
        part: of the UNet, whose self-attention features it needs; None = of none.
        is_even: whether its weight is the same however many steps there are.
        remark: what to tell the user; empty = nothing.
    """

    value: Callable[[Forward], Tensor]
    weight: Callable[[Moment], float]
    label: str
    least_frames: int = 1
    is_vital: bool = True
    part: Part | None = None
    is_even: bool = True
    remark: str = ""

    def check(self, frames: int) -> str:
        """Return what to tell the user where a step has so many frames.

        Raises:
            ValueError: they are too few.
        """
        if frames >= self.least_frames:
            return self.remark
        lack = f"compares neighbouring frames and needs {self.least_frames} in each step"
        if not self.is_vital:
            return f"The {self.label} is 0: it {lack}, and a step has {frames}."
        raise ValueError(
            f"{self.label} {lack}; there {'is' if frames == 1 else 'are'} {frames}. Set frames_per_step higher, or "
            "turn that loss off."
        )


@dataclass(frozen=True)
class Loss(ABC):
    """Settings of a loss. Files have them by their names, which therefore differ from those of all other settings.

    Attributes:
        name: of its values in files; in plots with spaces.
    """

    name: ClassVar[str]

    @abstractmethod
    def term(self) -> LossTerm | None:
        """Return the loss as these settings want it, None = not at all."""
