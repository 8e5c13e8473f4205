"""Settings of a one-shot tuning."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ..clip_model.methods import Part
from .learning_rate import Schedule
from .losses.consistency import ConsistencyLoss
from .losses.diffusion import DiffusionLoss
from .losses.smoothing import SmoothingLoss
from .losses.term import Loss, LossTerm
from .noise import Noise

Precision = Literal["auto", "bf16", "fp16", "fp32"]
OptimizerName = Literal["AdamW", "AdamW 8-bit", "gradient descent"]
OnOutOfMemory = Literal["step down", "stop"]
Recipe = Literal["paper", "fast"]
FACTOR, LENGTH = 5.0, 0.4  # of recipe "fast": of the learning rate, of the paper's steps
MOST_STEPS = 100_000
MOST_SNAPSHOTS = 32
SHARES = (0.25, 0.5, 0.75, 1.0)  # of checkpointing, from one rung of the ladder to the next
LONGEST_LIST = 1000  # letters of a list of them


@dataclass(frozen=True)
class Optimization:
    """How gradients change the weights.

    The default of the learning rate is EI²'s; betas, weight decay and gradient clipping are those of Tune-A-Video's
    code.

    Attributes:
        learning_rate: at its highest, where the recipe does not raise it.
        betas, weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm; 0 = never.
        schedule, warmup_steps: of the learning rate.
        optimizer: AdamW, or with states of 8 bits by bitsandbytes; or plain gradient descent, without momentum and
            weight decay, for which theory knows a safe learning rate.
        recipe: "paper" = EI²'s and Tune-A-Video's; "fast" (ours) = FACTOR times the learning rate, for LENGTH of the
            paper's steps.

    Raises:
        ValueError: there is no such recipe, or "fast" is to raise the rate of gradient descent.
    """

    learning_rate: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    optimizer: OptimizerName = "AdamW"
    recipe: Recipe = "paper"

    def __post_init__(self) -> None:
        if self.recipe not in get_args(Recipe):
            raise ValueError(f"recipe is {self.recipe!r}. Choose {' or '.join(get_args(Recipe))}.")
        if self.recipe == "fast" and self.optimizer == "gradient descent":
            raise ValueError(
                "recipe is 'fast', which raises learning_rate, and optimizer is 'gradient descent', which diverges "
                "above a rate of its own. Choose paper, or AdamW."
            )

    @property
    def rate_taken(self) -> float:
        """The learning rate at its highest."""
        return self.learning_rate * (FACTOR if self.recipe == "fast" else 1.0)


@dataclass(frozen=True)
class Memory:
    """What a step holds in memory.

    Attributes:
        frames_per_step: consecutive frames of a longer clip taken in each step, at random; 0 = all.
        precision: of the UNet's computations; what is learned is float32 always.
        chunking: compute activations of feed-forwards and temporal modules again for the backward, part by part,
            instead of holding them.
        gradient_checkpointing: compute activations of the UNet's layers again for the backward.
        checkpointing_share: part of the activations' memory that this is to save, by the layers that save the most for
            each FLOP; 1 = as much as can be saved so.
        on_out_of_memory: "step down" = go on with less where a step does not fit into the memory.
    """

    frames_per_step: int = 0
    precision: Precision = "auto"
    chunking: bool = False
    gradient_checkpointing: bool = False
    checkpointing_share: float = 1.0
    on_out_of_memory: OnOutOfMemory = "step down"

    def frames_of(self, frames: int) -> int:
        """Return how many frames a step takes of a clip with so many."""
        return min(self.frames_per_step or frames, frames)

    def stepped_down(self, frames: int, least: int) -> "Memory | None":
        """Return what takes less memory: chunking, more checkpointing, half the frames; None = nothing is left."""
        if not self.chunking:
            return replace(self, chunking=True)
        share = self.checkpointing_share if self.gradient_checkpointing else 0.0
        if share < 1:
            more = next(rung for rung in SHARES if rung > share)
            return replace(self, gradient_checkpointing=True, checkpointing_share=more)
        half = self.frames_of(frames) // 2
        return replace(self, frames_per_step=half) if half >= least else None


@dataclass(frozen=True)
class TuneSettings:
    """Settings of one-shot tuning.

    Attributes:
        steps: optimiser steps in all, one noise level and one noise for each frame in each; 500 in EI².
        seed: of the noise and the noise levels.
        snapshots: numbers of steps after which the state is kept.
        noise, noise_correlation: how the noise of a step's frames depends on each other, and PYoCo's alpha, see
            `draw_noise`.
        optimization, memory: see there.
        losses: what is minimised is the sum of those that are on.
        autosave_minutes: between two times that the tuning is saved while it runs; 0 = never. Files do not note it.
    """

    steps: int = 500
    seed: int = 0
    snapshots: tuple[int, ...] = ()
    noise: Noise = "independent"
    noise_correlation: float = 0.0
    optimization: Optimization = Optimization()
    memory: Memory = Memory()
    losses: tuple[Loss, ...] = (DiffusionLoss(), SmoothingLoss(), ConsistencyLoss())
    autosave_minutes: float = 1.0

    @property
    def terms(self) -> dict[str, LossTerm]:
        """Return the losses that are on, by name."""
        return {loss.name: term for loss in self.losses if (term := loss.term()) is not None}

    @property
    def parts(self) -> set[Part]:
        """Return the parts of the UNet whose features they need."""
        return {term.part for term in self.terms.values() if term.part is not None}

    def flat(self) -> dict[str, Any]:
        """Return the settings by their names, as files note them; JSON values."""
        others = ("optimization", "memory", "losses", "autosave_minutes")
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}
        own |= asdict(self.optimization) | asdict(self.memory)
        for loss in self.losses:
            own |= asdict(loss)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}

    def changed(self, **changes: Any) -> "TuneSettings":
        """Return other settings, the changes by their names as `flat` gives them, whichever record they are in."""

        def within(record: Any) -> Any:
            return replace(record, **{own.name: changes.pop(own.name) for own in fields(record) if own.name in changes})

        records = {"optimization": within(self.optimization), "memory": within(self.memory)}
        return replace(self, **records, losses=tuple(map(within, self.losses)), **changes)

    def stepped_down(self, frames: int) -> "TuneSettings | None":
        """Return settings that need less memory, see `Memory.stepped_down`; the losses keep the frames they need."""
        memory = self.memory.stepped_down(frames, max(2, *(term.least_frames for term in self.terms.values())))
        return replace(self, memory=memory) if memory is not None else None


def read_steps(text: str, steps: int) -> tuple[int, ...]:
    """Read a list of steps as a user writes it: "100, 200" or "25%, 50%", ascending and below `steps`.

    Raises:
        ValueError: an entry is neither a number nor a percentage, or lies outside; or there are no steps.
    """
    if len(text) > LONGEST_LIST:
        raise ValueError(f"snapshots has {len(text)} letters. Give {MOST_SNAPSHOTS} entries or fewer.")
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"steps must be from 1 to {MOST_STEPS}, got {steps}.")
    found = set()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        try:
            number = float(entry.removesuffix("%"))
        except ValueError as error:
            raise ValueError(
                f"snapshots has {entry!r}. Write comma-separated steps or percentages: 100, 200 or 25%, 50%."
            ) from error
        step = number * steps / 100 if entry.endswith("%") else number
        if not 0 < step < steps:
            raise ValueError(f"snapshots has {entry!r}, which is not inside the tuning of {steps} steps. Remove it.")
        found.add(max(1, round(step)))
    if len(found) > MOST_SNAPSHOTS:
        raise ValueError(
            f"snapshots has {len(found)} entries, each as large as the tune. Give {MOST_SNAPSHOTS} or fewer."
        )
    return tuple(sorted(found - {steps}))
