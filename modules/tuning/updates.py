"""What an optimiser does with a gradient: scaling, clipping, the learning rate of each step."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from .learning_rate import learning_rate_factor
from .settings import FACTOR, Optimization, OptimizerName

NUMBER = ":number"  # ends the flat name of a value that is no tensor
FUSED = ("cpu", "cuda")  # where AdamW's element-wise passes are one: a third of their time
LEAST_IN_8_BITS, BLOCK, LEVELS = 4096, 256, 256  # bitsandbytes' numbers of a parameter, of a block, of a byte
LEAST_SCALE = 2.0**-10  # of float16 gradients; what is not finite below it will not become so

FIRST = (
    "nothing has been learned yet, so that the model itself gives what is not finite: load another checkpoint, remove "
    "its LoRA or tune, or set precision to bf16 or fp32 in Tuning Options"
)


def flat_name(name: str, value: object) -> str:
    """Return the name that a value is saved under."""
    return name if isinstance(value, Tensor) else name + NUMBER


def unflatten(state: dict[str, Tensor], prefix: str) -> dict:
    """Return copies of the values under a prefix, numbers as numbers; what a node read takes no gradients itself."""
    found = {key.removeprefix(prefix): value.clone() for key, value in state.items() if key.startswith(prefix)}
    return {key.removesuffix(NUMBER): value.item() if key.endswith(NUMBER) else value for key, value in found.items()}


class Updates:
    """The updates of some parameters.

    Args:
        parameters: float32.
        settings: see Optimization.
        steps: of the whole tuning.
        scales: scale the loss so that float16 gradients neither vanish nor overflow.

    Raises:
        ValueError: settings that do not fit each other.
        ImportError: a package that the settings need is absent.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Optimization, steps: int, scales: bool):
        self.parameters, self.settings = list(parameters), settings
        self.optimizer = make_optimizer(self.parameters, settings)
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, enabled=scales)
        self.factor = learning_rate_factor(settings.schedule, settings.warmup_steps, steps)

    def apply(self, done: int) -> None:
        """Change the parameters, after some steps.

        Raises:
            FloatingPointError: the gradient is not finite; the parameters stay.
        """
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.parameters, self.settings.max_grad_norm or math.inf)
        if not norm.isfinite() and (not self.scaler.is_enabled() or self.scaler.get_scale() < LEAST_SCALE):
            raise self.failure(f"gradient's norm became {norm.item()}", done)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate_taken * self.factor(done)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def failure(self, what: str, done: int) -> FloatingPointError:
        """Return the error that ends a tuning that diverged, after some steps."""
        remedy = f"lower learning_rate, {self.settings.learning_rate:g} was set" if done else FIRST
        if done and self.settings.recipe == "fast":
            remedy += f" and recipe fast takes {FACTOR:g} times it"
        return FloatingPointError(f"The {what} at step {done + 1}; {remedy}.")

    def state_dict(self) -> dict[str, Tensor | float]:
        """Return the optimiser's state and the scaler's by flat names."""
        state: dict[str, Tensor | float] = {}
        for i, parameter in enumerate(self.parameters):
            values = self.optimizer.state[parameter]  # not of its state_dict, where bitsandbytes nests them
            state |= {f"optimizer.{i}.{flat_name(name, value)}": value for name, value in values.items()}
        return state | {f"scaler.{flat_name(name, value)}": value for name, value in self.scaler.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken; ValueError where that had other parameters."""
        name = self.settings.optimizer
        expected = {str(i): state_shapes(name, parameter) for i, parameter in enumerate(self.parameters)}
        states: dict[int, dict] = {}
        for key, value in unflatten(state, "optimizer.").items():
            i, _, part = key.partition(".")
            if i not in expected or getattr(value, "shape", ()) != expected[i].get(part):
                raise ValueError(
                    f"resume is damaged: optimizer.{key} in its state fits no parameter. Begin a new tuning."
                )
            states.setdefault(int(i), {})[part] = value
        if any(values.keys() != expected[str(i)].keys() for i, values in states.items()):
            raise ValueError(f"resume is damaged: its state lacks a part of {name}'s. Begin a new tuning.")
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict({**self.scaler.state_dict(), **unflatten(state, "scaler.")})


def state_shapes(name: OptimizerName, parameter: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what an optimiser keeps of a parameter; those of numbers are empty."""
    whole, count = tuple(parameter.shape), parameter.numel()
    if name == "gradient descent":
        return {}
    if name == "AdamW":
        return {"step": (), "exp_avg": whole, "exp_avg_sq": whole}
    kept: dict[str, tuple[int, ...]] = {"step": (), "state1": whole, "state2": whole}
    if count >= LEAST_IN_8_BITS:
        blocks = math.ceil(count / BLOCK)
        kept |= {"qmap1": (LEVELS,), "qmap2": (LEVELS,), "absmax1": (blocks,), "absmax2": (blocks,)}
    return kept


def make_optimizer(parameters: list[nn.Parameter], settings: Optimization) -> torch.optim.Optimizer:
    """Return the optimiser of the settings; ImportError where it needs bitsandbytes, which is absent."""
    if settings.optimizer == "gradient descent":
        return torch.optim.SGD(parameters, settings.rate_taken)
    given = {"lr": settings.rate_taken, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.optimizer == "AdamW":
        return torch.optim.AdamW(parameters, **given, fused=parameters[0].device.type in FUSED)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(
            "optimizer AdamW 8-bit needs the package bitsandbytes, which is not installed. Install it into ComfyUI's "
            "Python (pip install bitsandbytes) or choose AdamW."
        ) from error
    return AdamW8bit(parameters, **given)
