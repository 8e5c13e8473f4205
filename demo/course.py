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


def run_course(course: Course, steps: int, folder: Path, log: Log) -> Report:
    """Train, or go on training, and leave the averaged weights in the network."""
    path = folder / f"{course.name}.pt"
    device = next(course.network.parameters()).device
    course_state = CourseState(course, steps)
    if path.exists():
        course_state.load(torch.load(path, map_location=device))
    log(f"{course.name}: step {course_state.step} of {steps}")
    course_state.advance(path, log)
    course_state.average.copy_to(course.network.parameters())
    return Report(course_state.step, course_state.loss, course_state.seconds / 60)


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

    def advance(self, path: Path, log: Log) -> None:
        """Take the steps that are left, saving and reporting now and then."""
        before, start = self.seconds, time.monotonic()
        noted, losses = start, []
        while self.step < self.steps:
            losses.append(self.take_step())
            if time.monotonic() - noted > SAVE_EVERY or self.step == self.steps:
                self.loss, losses = torch.stack(losses).mean().item(), []
                noted = time.monotonic()
                self.seconds = before + noted - start
                log(f"{self.course.name}: step {self.step} of {self.steps}, loss {self.loss:.5f}, {self.seconds:.0f} s")
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
