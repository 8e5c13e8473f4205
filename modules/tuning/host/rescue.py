"""A tuning on a private copy, and what becomes of it where it is interrupted or fails."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...clip_model.host.settings import clip_settings
from ..settings import TuneSettings
from .autosave import Autosave
from .control_nets import with_controls
from .fit import OutOfMemory, memory_advice
from .private_copy import check_tunable, private_copy, reproducible
from .session import Kept, Session
from .tune_inputs import TuneInputs

Made = TypeVar("Made", bound=Session)
Keep = Callable[[Kept], str]
UNSAID = "out of memory"  # how torch tells of it while it loads weights, by an error of another kind
log = logging.getLogger(__name__)


@contextmanager
def on_private_copy(
    make: Callable[[ModelPatcher, ModelPatcher, TuneInputs, TuneSettings], Made],
    model: ModelPatcher,
    inputs: TuneInputs,
    settings: TuneSettings,
    keep: Keep | None,
    autosave: Autosave | None = None,
) -> Iterator[Made]:
    """Yield a tuning on a private copy of a model, which is gone afterwards; what was learned is saved if it fails.

    Args:
        make: the session from the copy and the rest.
        model: inflated model; neither it nor its base is changed.
        inputs: what it is tuned with; a tuning to resume is resumed.
        settings: of the tuning.
        keep: saves what was learned before an interruption or a failure, and returns where; None = it is lost.
        autosave: writes a one-shot tuning while it runs, and lets it go on after a crash; None = nothing does.

    Raises:
        ValueError: the model is not inflated or cannot be tuned, or the inputs do not fit.
        torch.cuda.OutOfMemoryError: saying what to change.
    """
    clip = clip_settings(model)
    check_tunable(model)
    comfy.model_management.unload_all_models()  # while their inference tensors may still be moved
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            private_copy(model) as copy,
            with_controls(copy, inputs.conditionings),
            reproducible(),
        ):
            tuning = make(copy, model, inputs, settings)
            if inputs.resume is not None:
                tuning.resume(inputs.resume)
            try:
                with autosave.of(tuning) if autosave is not None else nullcontext(), keeping(tuning, keep, autosave):
                    yield tuning
            finally:
                vars(tuning).clear()  # whoever holds the tuning still is not to hold the copy
    except OutOfMemory:
        raise
    except RuntimeError as error:
        if not comfy.model_management.is_oom(error) and UNSAID not in str(error):
            raise
        raise OutOfMemory(memory_advice(clip, inputs.latent["samples"], settings.memory)) from error


@contextmanager
def keeping(tuning: Session[Kept], keep: Keep[Kept] | None, autosave: Autosave | None = None) -> Iterator[None]:
    """Save what was learned where the tuning is interrupted or fails, whatever the reason."""
    try:
        yield
    except FloatingPointError as error:
        good = tuning.last_good() if keep is not None else None
        if keep is None or good is None:
            raise
        raise FloatingPointError(f"{error} {kept(good, keep, autosave)}") from error
    except BaseException:
        if keep is not None and tuning.tuner.done:
            log.warning(kept(tuning.tune(), keep, autosave))
        raise


def kept(tune: Kept, keep: Keep[Kept], autosave: Autosave | None) -> str:
    """Save what was learned in a tuning that did not come to its end; returns what is to be said of it."""
    steps = len(tune.info["loss"])
    try:
        return f"What was learned in {steps} steps is in {keep(tune)}."
    except OSError as error:  # what ended the tuning is what the user is to see
        said = f"What was learned in {steps} steps is lost: {error}"
        if autosave is None or not autosave.path.is_file():
            return said
        autosave.is_needed = True
        return f"{said} The last autosave, {autosave.path.name}, stays."
