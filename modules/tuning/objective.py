"""What a step of a tuning is taken on, and what it minimises."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..clip_model.methods import Part
from ..diffusion.ddim import Prediction, output_to_eps, unet_output
from .losses.term import Forward, LossTerm, Moment

Denoise = Callable[[Tensor, Tensor, slice], Tensor]
Features = Callable[[], Mapping[Part, list[Tensor]]]


@dataclass(frozen=True)
class Clip:
    """A clip to tune on.

    Attributes:
        x_0: clean model latent, shape (f, c, h, w).
        sigma_table: sigma of each training timestep, ascending.
        prediction: what the UNet predicts.
        mask: weight of each position in the loss, shape (f, 1, h, w); None = all alike.
    """

    x_0: Tensor
    sigma_table: Tensor
    prediction: Prediction
    mask: Tensor | None = None


@dataclass(frozen=True)
class Draw:
    """What a step is taken on: a training timestep, frames of the clip, and noise for them."""

    t: Tensor
    frames: slice
    eps: Tensor


@dataclass(frozen=True)
class Objective:
    """What a tuning minimises, as a function of what is drawn.

    Attributes:
        clip: what is tuned on.
        denoise: (state x_0 + sigma * eps of some frames, sigma as a scalar tensor, which frames) -> prediction of x_0.
        terms: losses by name.
        steps: of the whole tuning.
        features: returns the features of what `denoise` did last, of all parts that the losses look at.
    """

    clip: Clip
    denoise: Denoise
    terms: Mapping[str, LossTerm]
    steps: int
    features: Features = dict

    def forward(self, drawn: Draw) -> Forward:
        """Return what the UNet makes of a draw."""
        clip, x_0 = self.clip, self.clip.x_0[drawn.frames]
        sigma = clip.sigma_table[drawn.t].to(x_0)
        x = x_0 + sigma * drawn.eps
        output = unet_output(x, self.denoise(x, sigma, drawn.frames), sigma, clip.prediction)
        return Forward(
            output,
            unet_output(x, x_0, sigma, clip.prediction),
            drawn.eps,
            output_to_eps(x, output, sigma, clip.prediction),
            x,
            sigma,
            clip.sigma_table[drawn.t - 1].to(x_0),
            None if clip.mask is None else clip.mask[drawn.frames],
            self.features(),
        )

    def evaluate(self, drawn: Draw, done: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses of a draw by name, scalars without their weights, and their weighted sum."""
        made = self.forward(drawn)
        moment = Moment(done, self.steps, self.clip.sigma_table[drawn.t], self.clip.prediction)
        losses = {name: term.value(made) for name, term in self.terms.items()}
        first, *others = (term.weight(moment) * losses[name] for name, term in self.terms.items())
        return losses, sum(others, first)
