"""One resumable course of training: optimiser, averaged weights, checkpoints, log."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

Log = Callable[[str], None]
WARM_UP = 0.03  # share of the steps over which the learning rate rises
SAVE_EVERY = 60.0  # seconds
DRY_STEPS = 12


@dataclass(frozen=True)
class Course:
    """What is trained, and on what.

    Args:
        name: names the checkpoint and the log lines.
        network: its parameters are trained and averaged.
        get_loss: draws a batch and returns its loss.
        learning_rate: the peak.
        ema: how much of the averaged weights is kept each step.
    """

    name: str
    network: nn.Module
    get_loss: Callable[[], torch.Tensor]
    learning_rate: float
    ema: float


@dataclass(frozen=True)
class Report:
    """How a course went; the loss is the mean over the last steps."""

    steps: int
    loss: float
    minutes: float


def run_course(course: Course, steps: int | None, minutes: float, folder: Path, deadline: float, log: Log) -> Report:
    """Train, or go on training, and leave the averaged weights in the network.

    Args:
        course: what to train.
        steps: how many steps in all; worked out from `minutes` by timing when None.
        minutes: how long it may take.
        folder: where the checkpoint lies.
        deadline: a time.monotonic() after which it stops early.
        log: called with a line now and then.
    """
    path = folder / f"{course.name}.pt"
    device = next(course.network.parameters()).device
    saved = torch.load(path, map_location=device) if path.exists() else None
    if saved is not None:
        steps = saved["steps"]
    elif steps is None:
        steps = plan_steps(course, minutes)
    course_state = CourseState(course, steps)
    if saved is not None:
        course_state.load(saved)
    log(f"{course.name}: step {course_state.step} of {steps}")
    course_state.advance(path, deadline, log)
    course_state.average.copy_to(course.network.parameters())
    return Report(course_state.step, course_state.loss, course_state.seconds / 60)


def plan_steps(course: Course, minutes: float) -> int:
    """Return how many steps fit into some minutes, by timing a few gradients."""
    for number in range(DRY_STEPS):
        if number == DRY_STEPS // 2:
            wait(course.network)
            start = time.monotonic()
        course.get_loss().backward()
    wait(course.network)
    course.network.zero_grad(set_to_none=True)
    each = 1.08 * (time.monotonic() - start) / (DRY_STEPS - DRY_STEPS // 2)
    return max(1, int(60 * minutes / each))


def wait(network: nn.Module) -> None:
    """Wait until the GPU has done what it was given."""
    if next(network.parameters()).is_cuda:
        torch.cuda.synchronize()


class CourseState:
    """Everything a checkpoint holds."""

    def __init__(self, course: Course, steps: int) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        parameters = list(course.network.parameters())
        fused = parameters[0].is_cuda
        self.course, self.steps, self.step, self.seconds, self.loss = course, steps, 0, 0.0, float("nan")
        self.optimiser = torch.optim.AdamW(
            parameters, course.learning_rate, (0.9, 0.99), weight_decay=0.01, fused=fused
        )
        self.schedule = get_scheduler(
            "cosine", self.optimiser, num_warmup_steps=int(WARM_UP * steps) + 1, num_training_steps=steps + 1
        )
        self.average = EMAModel(parameters, decay=course.ema, use_ema_warmup=True, power=0.75, foreach=True)
        self.average.to(parameters[0].device)

    def save(self, path: Path) -> None:
        """Write the checkpoint, all or nothing."""
        state = {
            "steps": self.steps,
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "network": self.course.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, state: dict) -> None:
        """Go back to a checkpoint."""
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
        self.course.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.load_state_dict(state["average"])

    def advance(self, path: Path, deadline: float, log: Log) -> None:
        """Take the steps that are left, saving and reporting now and then."""
        before, start = self.seconds, time.monotonic()
        noted, losses = start, []
        while self.step < self.steps and time.monotonic() < deadline:
            losses.append(self.take_step())
            if time.monotonic() - noted > SAVE_EVERY or self.step == self.steps:
                self.loss, losses = torch.stack(losses).mean().item(), []
                noted = time.monotonic()
                self.seconds = before + noted - start
                log(f"{self.course.name}: step {self.step} of {self.steps}, loss {self.loss:.5f}, {self.seconds:.0f} s")
                self.save(path)
        self.seconds = before + time.monotonic() - start
        self.save(path)

    def take_step(self) -> torch.Tensor:
        """Take one step and return its loss, still on the device."""
        parameters = self.course.network.parameters()
        loss = self.course.get_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.step(self.course.network.parameters())
        self.step += 1
        return loss.detach()
