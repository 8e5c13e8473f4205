"""What becomes of a tuning that is interrupted or fails."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ...clip_model.host.settings import clip_settings
from ...prompt_tokens.adapter import PromptAdapter
from ..settings import TuneSettings
from ..tuner import Tuner
from ..weights import Tune
from .fit import OutOfMemory, memory_advice
from .tune_inputs import TuneInputs

Kept = TypeVar("Kept", Tune, PromptAdapter)
Learned = TypeVar("Learned", Tune, PromptAdapter, covariant=True)
Keep = Callable[[Kept], str]
log = logging.getLogger(__name__)


@contextmanager
def advising(model: ModelPatcher, inputs: TuneInputs, settings: TuneSettings) -> Iterator[None]:
    """Say what to change where a tuning does not fit into the memory."""
    try:
        yield
    except OutOfMemory:
        raise
    except RuntimeError as error:
        if not comfy.model_management.is_oom(error):
            raise
        raise OutOfMemory(memory_advice(clip_settings(model), inputs.latent["samples"], settings)) from error


class Keepable(Protocol[Learned]):
    """A tuning of which something can be kept."""

    tuner: Tuner

    def tune(self) -> Learned:
        """Return what has been learned."""

    def last_good(self) -> Learned | None:
        """Return what had been learned when the loss was last seen finite, None = nothing."""


@contextmanager
def keeping(tuning: Keepable[Kept], keep: Keep[Kept] | None) -> Iterator[None]:
    """Save what was learned where the tuning is interrupted or fails, whatever the reason."""
    if keep is None:
        yield
        return
    try:
        yield
    except FloatingPointError as error:
        good = tuning.last_good()
        if good is None:
            raise
        raise FloatingPointError(f"{error} {kept(good, keep)}") from error
    except BaseException:
        if tuning.tuner.losses:
            log.warning(kept(tuning.tune(), keep))
        raise


def kept(tune: Kept, keep: Keep[Kept]) -> str:
    """Save what was learned in a tuning that did not come to its end; returns what is to be said of it."""
    steps = len(tune.info["loss"])
    try:
        return f"What was learned in {steps} steps is in {keep(tune)}."
    except OSError as error:  # what ended the tuning is what the user is to see
        return f"What was learned in {steps} steps is lost: {error}"
