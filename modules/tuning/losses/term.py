"""What a tuning minimises: the sum of some losses, each with a weight of its own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from ...diffusion.ddim import Prediction

Part = Literal["all", "input", "middle", "output"]


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
        mask: weight of each position, shape (f, 1, h, w); None = all alike.
        features: of self-attention, by the part of the UNet, one tensor of shape (f, l, d) for each block.
    """

    output: Tensor
    target: Tensor
    eps: Tensor
    predicted_eps: Tensor
    mask: Tensor | None = None
    features: Mapping[Part, Sequence[Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class LossTerm(ABC):
    """One of the losses that a tuning minimises, with its settings: subclasses are frozen dataclasses.

    Names of settings stand in files, each by itself, and therefore differ from those of all other settings.

    Attributes:
        name: in files; in plots with spaces.
    """

    name: ClassVar[str]

    @property
    def label(self) -> str:
        """Return what a user knows it by."""
        return self.name.replace("_", " ")

    @property
    def is_on(self) -> bool:
        """Whether it is computed at all."""
        return True

    @property
    def is_even(self) -> bool:
        """Whether its weight is the same however many steps there are."""
        return True

    @property
    def least_frames(self) -> int:
        """Return how many frames a step needs."""
        return 1

    @property
    def part(self) -> Part | None:
        """Return of which part of the UNet it needs the self-attention features; None = of none."""
        return None

    @abstractmethod
    def weight(self, moment: Moment) -> float:
        """Return the factor that it is added with; the diffusion loss without min-SNR has 1."""

    @abstractmethod
    def value(self, forward: Forward) -> Tensor:
        """Return the loss without its weight, a scalar."""

    def check(self, frames: int) -> None:
        """Raise ValueError where a step has too few frames; a loss that is merely 0 there allows it."""
        if frames < self.least_frames:
            raise ValueError(
                f"{self.label} compares neighbouring frames and needs {self.least_frames} in each step; there "
                f"{'is' if frames == 1 else 'are'} {frames}. Set frames_per_step higher, or turn that loss off."
            )

    def warnings(self, frames: int) -> list[str]:
        """Return what to tell a user whose steps have so many frames."""
        return []
