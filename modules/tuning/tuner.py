"""One-shot tuning: a few weights of a clip UNet, or tokens of its prompt, learned on one clip."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parametrize

from ..diffusion.ddim import Prediction, output_to_eps, unet_output
from .learning_rate import learning_rate_factor
from .losses.consistency import mean_consistency_loss
from .losses.diffusion import diffusion_loss, min_snr_weights
from .losses.smoothing import LEAST_FRAMES, inr_loss, smooth_video_loss
from .settings import TuneSettings, make_optimizer
from .state import flat_name, unflatten

Denoise = Callable[[Tensor, Tensor, slice], Tensor]
Features = Callable[[], list[Tensor]]
LEAST_SCALE = 2.0**-10  # of float16 gradients; what is not finite below it will not become so
ROUNDING = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}  # part of a loss by which it may rise without having risen
KEPT = 20  # how often in a tuning the last good weights are noted


@dataclass(frozen=True)
class Draw:
    """What a step is taken on: a training timestep, frames of the clip, and noise for them."""

    t: Tensor
    frames: slice
    eps: Tensor


@dataclass(frozen=True)
class Losses:
    """The losses of a draw, scalars: diffusion, smoothing, temporal consistency, each without its weight."""

    diffusion: Tensor
    smoothing: Tensor
    consistency: Tensor


class Tuner:
    """A one-shot tuning, step by step, that can be saved and continued to the bit.

    Args:
        denoise: (state x_0 + sigma * eps of some frames, sigma as a scalar tensor, which frames) -> prediction of x_0.
        learned: holds the parameters that are learned, float32, and nothing else that changes.
        x_0: clean model latent of the clip, shape (f, c, h, w).
        sigma_table: sigma of each training timestep, ascending.
        prediction: what the UNet predicts.
        settings: see TuneSettings.
        mask: weight of each position in the loss, shape (f, 1, h, w); None = all alike.
        scale_gradients: scale the loss so that float16 gradients neither vanish nor overflow.
        features: returns the features of what `denoise` did last, one tensor for each block, frames first; for the
            temporal consistency loss.

    Attributes:
        losses: of each step done: mean squared error of the UNet output, without min-SNR's weight.
        smoothing_losses: of each step done, without lambda; 0 without smoothing.
        consistency_losses: of each step done, without its weight; 0 without that loss.
        rises: steps of gradient descent that raised the very loss that they were taken on.
        is_applying: whether a step was left while it changed the weights or the optimiser.
        last_good: number of steps and state of `learned`, on the CPU, for which the loss was finite.

    Raises:
        ValueError: settings that do not fit each other or the clip.
        ImportError: a package that the settings need is absent.
    """

    def __init__(
        self,
        denoise: Denoise,
        learned: nn.Module,
        x_0: Tensor,
        sigma_table: Tensor,
        prediction: Prediction,
        settings: TuneSettings,
        mask: Tensor | None = None,
        scale_gradients: bool = False,
        features: Features | None = None,
        rounding: float = ROUNDING["fp32"],
    ):
        self.features, self.rounding = features, rounding
        self.denoise, self.learned, self.x_0, self.mask = denoise, learned, x_0, mask
        self.sigma_table, self.prediction, self.settings = sigma_table, prediction, settings
        self.parameters = list(learned.parameters())
        self.optimizer = make_optimizer(self.parameters, settings)
        self.scaler = torch.amp.GradScaler(x_0.device.type, enabled=scale_gradients)
        self.factor = learning_rate_factor(settings.schedule, settings.warmup_steps, settings.steps)
        gamma = settings.min_snr_gamma
        self.weights = min_snr_weights(sigma_table, gamma, prediction) if gamma else torch.ones(len(sigma_table))
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.losses: list[float] = []
        self.smoothing_losses: list[float] = []
        self.consistency_losses: list[float] = []
        self.rises: list[int] = []
        self.is_applying = False
        self.check_smoothing()
        self.last_good: tuple[int, dict[str, Tensor]] = (0, {})

    def steps(self) -> Iterator[int]:
        """Do the steps that are left; yields the number of those done after each."""
        while len(self.losses) < self.settings.steps:
            with self.whole_step():
                self.advance()
            yield len(self.losses)

    @contextmanager
    def whole_step(self) -> Iterator[None]:
        """Put back what a step moves besides the weights where it is left in its middle, as by an interrupt."""
        drawn, iterated = self.generator.get_state(), [buffer.clone() for buffer in self.learned.buffers()]
        done = len(self.losses)
        try:
            yield
        finally:
            if len(self.losses) == done:
                self.generator.set_state(drawn)
                for buffer, value in zip(self.learned.buffers(), iterated, strict=True):
                    buffer.copy_(value)

    def advance(self) -> None:
        """Do one step.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; the weights stay as they were.
        """
        done, settings = len(self.losses), self.settings
        self.optimizer.zero_grad(set_to_none=True)
        drawn = self.draw()
        with parametrize.cached():  # one spectral norm a step, also where the forward is computed twice
            losses = self.evaluate(drawn)
            value, smoothing, consistency = torch.stack(
                [losses.diffusion, losses.smoothing, losses.consistency]
            ).tolist()
            if not math.isfinite(value + smoothing + consistency):
                raise self.failure(f"loss became {value + smoothing + consistency}")
            total = self.total(losses, drawn)
            self.scaler.scale(total).backward()
        if done % max(1, settings.steps // KEPT) == 0:
            self.last_good = (
                done,
                {key: value.detach().cpu().clone() for key, value in self.learned.state_dict().items()},
            )
        self.is_applying = True  # from here on the step cannot be taken again
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.parameters, settings.max_grad_norm or math.inf)
        if not norm.isfinite() and (not self.scaler.is_enabled() or self.scaler.get_scale() < LEAST_SCALE):
            raise self.failure(f"gradient's norm became {norm.item()}")
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * self.factor(done)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.append(value)
        self.smoothing_losses.append(smoothing)
        self.consistency_losses.append(consistency)
        self.is_applying = False
        if settings.optimizer == "gradient descent" and self.has_risen(total.item(), drawn, done):
            self.rises.append(done + 1)

    def draw(self, t: int | None = None) -> Draw:
        """Draw what to take a step on, at a training timestep if one is given."""
        random = torch.randint(len(self.sigma_table), (), generator=self.generator)
        frames = self.draw_frames()
        eps = torch.randn(self.x_0[frames].shape, generator=self.generator).to(self.x_0)
        return Draw(random if t is None else torch.tensor(t), frames, eps)

    def output(self, drawn: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """Return the noisy state of a draw, its noise level and what the UNet says of it."""
        x_0 = self.x_0[drawn.frames]
        sigma = self.sigma_table[drawn.t].to(x_0)
        x = x_0 + sigma * drawn.eps
        return x, sigma, unet_output(x, self.denoise(x, sigma, drawn.frames), sigma, self.prediction)

    def evaluate(self, drawn: Draw) -> Losses:
        """Return the losses of a draw with what is learned as it is."""
        x_0, mask = self.x_0[drawn.frames], None if self.mask is None else self.mask[drawn.frames]
        x, sigma, output = self.output(drawn)
        loss = diffusion_loss(output, unet_output(x, x_0, sigma, self.prediction), mask)
        smoothing = self.smoothing_loss(output_to_eps(x, output, sigma, self.prediction), drawn.eps, mask)
        return Losses(loss, smoothing, self.consistency_loss(loss))

    def total(self, losses: Losses, drawn: Draw, done: int | None = None) -> Tensor:
        """Return what a step minimises, after some steps; None = those that are done."""
        total = losses.diffusion * self.weights[drawn.t].to(losses.diffusion)
        total = total + self.smoothing_weight(len(self.losses) if done is None else done) * losses.smoothing
        if not self.settings.consistency_weight:
            return total
        return total + self.settings.consistency_weight * losses.consistency

    def has_risen(self, before: float, drawn: Draw, done: int) -> bool:
        """Whether a step, taken after some others, raised the loss that it was taken on."""
        with torch.no_grad(), parametrize.cached():
            after = self.total(self.evaluate(drawn), drawn, done).item()
        return after > before + self.rounding * abs(before)

    def consistency_loss(self, like: Tensor) -> Tensor:
        """Return the temporal consistency loss of what the UNet did last, without its weight."""
        if not self.settings.consistency_weight:
            return like.new_zeros(())
        assert self.features is not None, "given where it is weighted"
        return mean_consistency_loss(self.features())

    def smoothing_loss(self, predicted: Tensor, eps: Tensor, mask: Tensor | None) -> Tensor:
        """Return the smoothing loss of a step from the predicted noise and the true one, without its weight."""
        settings = self.settings
        if settings.smoothing == "INR":
            weights = settings.backward_weight, settings.forward_weight
            return inr_loss(eps - predicted.float(), *weights, settings.coupling, mask)
        if settings.smoothing == "SmoothVideo":
            return smooth_video_loss(predicted.float(), mask)
        return predicted.new_zeros((), dtype=torch.float32)

    def check_smoothing(self) -> None:
        """Raise ValueError where a step has too few frames to be smoothed."""
        smoothing, frames = self.settings.smoothing, min(self.settings.frames_per_step or len(self.x_0), len(self.x_0))
        if frames < LEAST_FRAMES[smoothing]:
            raise ValueError(
                f"smoothing {smoothing} compares neighbouring frames and needs {LEAST_FRAMES[smoothing]} in each step; "
                f"there {'is' if frames == 1 else 'are'} {frames}. Set frames_per_step higher, or smoothing to none."
            )

    def smoothing_weight(self, done: int) -> float:
        """Return lambda at a step, from 0."""
        start, end = self.settings.smoothing_weight, self.settings.smoothing_end
        if end is None or self.settings.steps == 1:
            return start
        return start + (end - start) * done / (self.settings.steps - 1)

    def draw_frames(self) -> slice:
        """Return the frames of a step: all, or consecutive ones at random."""
        frames, window = len(self.x_0), self.settings.frames_per_step
        if not 0 < window < frames:
            return slice(0, frames)
        first = int(torch.randint(frames - window + 1, (), generator=self.generator))
        return slice(first, first + window)

    def failure(self, what: str) -> FloatingPointError:
        """Return the error that ends a tuning that diverged."""
        return FloatingPointError(
            f"The {what} at step {len(self.losses) + 1}; lower learning_rate = {self.settings.learning_rate:g}."
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that continuing to the bit needs, copied to the CPU; tensors by flat names, as files hold them."""
        state = {f"learned.{key}": value for key, value in self.learned.state_dict().items()}
        for i, parameter in enumerate(self.parameters):
            values = self.optimizer.state[parameter]  # not of its state_dict, where bitsandbytes nests them
            state |= {f"optimizer.{i}.{flat_name(name, value)}": value for name, value in values.items()}
        state |= {f"scaler.{flat_name(name, value)}": value for name, value in self.scaler.state_dict().items()}
        state["generator"] = self.generator.get_state()
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        state["smoothing_losses"] = torch.tensor(self.smoothing_losses, dtype=torch.float64)
        state["consistency_losses"] = torch.tensor(self.consistency_losses, dtype=torch.float64)
        state["rises"] = torch.tensor(self.rises, dtype=torch.int64)
        return {key: torch.as_tensor(value).detach().cpu().clone() for key, value in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: that was another tuning: other weights, or no steps are left.
        """
        learned = unflatten(state, "learned.")
        expected = self.learned.state_dict()
        for key in [*expected, *learned]:
            shapes = [tuple(held[key].shape) if key in held else "absent" for held in (learned, expected)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"resume does not fit this model: {key} is {shapes[0]} in the tune and {shapes[1]} here. Connect "
                    "the model and patch that the tune was made with."
                )
        losses = state["losses"].tolist()
        if len(losses) >= self.settings.steps:
            raise ValueError(
                f"resume has {len(losses)} steps done and steps is {self.settings.steps}, counted from the beginning. "
                "Set steps higher to continue."
            )
        self.learned.load_state_dict(learned)
        states: dict[int, dict] = {}
        for key, value in unflatten(state, "optimizer.").items():
            i, name = key.split(".", 1)
            states.setdefault(int(i), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict({**self.scaler.state_dict(), **unflatten(state, "scaler.")})
        self.generator.set_state(state["generator"])
        self.losses = losses
        self.smoothing_losses = state["smoothing_losses"].tolist()
        self.consistency_losses = state["consistency_losses"].tolist()
        self.rises = state["rises"].tolist()
