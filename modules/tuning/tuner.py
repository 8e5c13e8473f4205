"""One-shot tuning: a few weights of a clip UNet, or tokens of its prompt, learned on one clip."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..diffusion.seed import seeded
from .noise import draw_noise
from .objective import Clip, Denoise, Draw, Features, Objective
from .settings import Precision, TuneSettings
from .updates import Updates, unflatten

ROUNDING = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}  # part of a loss by which it may rise without having risen
KEPT = 20  # how often in a tuning the last good weights are noted


class Tuner:
    """A one-shot tuning, step by step, that can be saved and continued to the bit.

    Args:
        denoise, features: see Objective.
        learned: holds the parameters that are learned, float32, and nothing else that changes.
        clip: what is tuned on.
        settings: see TuneSettings.
        precision: what `denoise` computes in; for "fp16" the gradients are scaled.

    Attributes:
        losses: of each step done, by name and without their weights; 0 where they were off.
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
        clip: Clip,
        settings: TuneSettings,
        precision: Precision = "fp32",
        features: Features = dict,
    ):
        for term in settings.terms.values():
            term.check(settings.memory.frames_of(len(clip.x_0)))
        self.learned, self.settings, self.precision = learned, settings, precision
        self.objective = Objective(clip, denoise, settings.terms, settings.steps, features)
        self.updates = Updates(learned.parameters(), settings.optimization, settings.steps, precision == "fp16")
        self.generator = seeded(settings.seed)
        self.losses: dict[str, list[float]] = {loss.name: [] for loss in settings.losses}
        self.rises: list[int] = []
        self.is_applying = False
        self.last_good: tuple[int, dict[str, Tensor]] = (0, {})

    @property
    def done(self) -> int:
        """Return the number of steps done."""
        return len(self.losses["loss"])

    def steps(self) -> Iterator[int]:
        """Do the steps that are left; yields the number of those done after each."""
        while self.done < self.settings.steps:
            with self.whole_step():
                self.advance()
            yield self.done

    @contextmanager
    def whole_step(self) -> Iterator[None]:
        """Put back what a step moves besides the weights where it is left in its middle, as by an interrupt."""
        drawn, iterated = self.generator.get_state(), [buffer.clone() for buffer in self.learned.buffers()]
        done = self.done
        try:
            yield
        finally:
            if self.done == done:
                self.generator.set_state(drawn)
                for buffer, value in zip(self.learned.buffers(), iterated, strict=True):
                    buffer.copy_(value)

    def advance(self) -> None:
        """Do one step.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; the weights stay as they were.
        """
        done = self.done
        self.updates.optimizer.zero_grad()
        drawn = self.draw()
        with parametrize.cached():  # one spectral norm a step, also where the forward is computed twice
            # Predict.
            losses, total = self.objective.evaluate(drawn, done)
            values = torch.stack(list(losses.values())).tolist()
            if not math.isfinite(sum(values)):
                raise self.updates.failure(f"loss became {sum(values)}", done)
            # Differentiate.
            self.updates.scaler.scale(total).backward()
        if done % max(1, self.settings.steps // KEPT) == 0:
            self.last_good = done, {key: copied(value) for key, value in self.learned.state_dict().items()}
        # Step.
        self.is_applying = True  # from here on the step cannot be taken again
        self.updates.apply(done)
        noted = dict(zip(losses, values, strict=True))
        for name, history in self.losses.items():
            history.append(noted.get(name, 0.0))
        self.is_applying = False
        # Check.
        if self.settings.optimization.optimizer == "gradient descent" and self.has_risen(total.item(), drawn, done):
            self.rises.append(done + 1)

    def draw(self, t: int | None = None) -> Draw:
        """Draw what to take a step on, at a training timestep if one is given; as much is drawn either way."""
        clip, generator, settings = self.objective.clip, self.generator, self.settings
        wanted = settings.memory.frames_per_step
        random, frames = torch.randint(len(clip.sigma_table), (), generator=generator), len(clip.x_0)
        taken = slice(0, frames)
        if 0 < wanted < frames:
            first = int(torch.randint(frames - wanted + 1, (), generator=generator))
            taken = slice(first, first + wanted)
        eps = draw_noise(clip.x_0[taken].shape, generator, settings.noise, settings.noise_correlation)
        return Draw(random if t is None else torch.tensor(t), taken, eps.to(clip.x_0))

    def has_risen(self, before: float, drawn: Draw, done: int) -> bool:
        """Whether a step, taken after some others, raised the loss that it was taken on."""
        with torch.no_grad(), parametrize.cached():
            _, after = self.objective.evaluate(drawn, done)
        return after.item() > before + ROUNDING[self.precision] * abs(before)

    def notes(self, done: int) -> dict[str, list]:
        """Return what is to be noted of the first steps: losses, and the steps that raised theirs."""
        firsts = {name: values[:done] for name, values in self.losses.items()}
        on = self.settings.terms
        noted: dict[str, list] = {
            name: values for name, values in firsts.items() if values and (name in on or any(values))
        }
        if self.settings.optimization.optimizer == "gradient descent":
            noted["rises"] = [step for step in self.rises if step <= done]
        return noted

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that continuing to the bit needs, copied to the CPU; tensors by flat names, as files hold them."""
        state = {f"learned.{key}": value for key, value in self.learned.state_dict().items()}
        state |= self.updates.state_dict() | {"generator": self.generator.get_state()}
        state |= {f"{name}es": torch.tensor(values, dtype=torch.float64) for name, values in self.losses.items()}
        state["rises"] = torch.tensor(self.rises, dtype=torch.int64)
        return {key: copied(torch.as_tensor(value)) for key, value in state.items()}

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
        done = len(state["losses"])
        if done >= self.settings.steps:
            raise ValueError(
                f"resume has {done} steps done and steps is {self.settings.steps}, counted from the beginning. "
                "Set steps higher to continue."
            )
        self.learned.load_state_dict(learned)
        self.updates.load_state_dict(state)
        self.generator.set_state(state["generator"])
        never = torch.zeros(done)  # of a loss that the tuning did not know
        self.losses = {name: state.get(f"{name}es", never).tolist() for name in self.losses}
        self.rises = state["rises"].tolist()


def copied(value: Tensor) -> Tensor:
    """Return a copy of a tensor on the CPU."""
    return value.detach().cpu().clone()
