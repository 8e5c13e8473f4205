"""One-shot tuning in the host: on a private copy of the model, which is gone afterwards."""

import logging

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...clip_model.host.settings import clip_settings
from ..settings import TuneSettings
from ..weights import Tune
from .private_copy import check_tunable, private_copy, reproducible
from .progress import TuningProgress
from .rescue import Keep, advising, keeping
from .session import Tuning
from .tune_inputs import TuneInputs

log = logging.getLogger(__name__)


def tune_model(
    model: ModelPatcher,
    inputs: TuneInputs,
    settings: TuneSettings,
    progress: TuningProgress,
    keep: Keep | None = None,
) -> Tune:
    """Tune an inflated model on one clip: the query projections of both attentions and the temporal modules.

    Args:
        model: inflated and patched model; neither it nor its base is changed.
        inputs: what it is tuned with.
        settings: of the tuning.
        progress: shows it, and measures the memory.
        keep: saves what was learned before an interruption or a failure, and returns where; None = it is lost.

    Raises:
        ValueError: the model is not inflated or cannot be tuned, or the inputs do not fit.
        FloatingPointError: the loss is no longer finite.
        torch.cuda.OutOfMemoryError: saying what to change.
    """
    clip_settings(model)
    check_tunable(model)
    comfy.model_management.unload_all_models()  # while their inference tensors may still be moved
    with (
        advising(model, inputs, settings),
        torch.inference_mode(False),
        torch.enable_grad(),
        private_copy(model) as copy,
    ):
        return run_tuning(Tuning(copy, model, inputs, settings), inputs, progress, keep)


def run_tuning(tuning: Tuning, inputs: TuneInputs, progress: TuningProgress, keep: Keep | None) -> Tune:
    """Do all steps of a tuning; returns what was learned."""
    if len(tuning.x_0) == 1 and tuning.learned.bank is not None:
        log.warning("The clip has 1 frame: its temporal modules have nothing to connect and learn next to nothing.")
    with reproducible(), keeping(tuning, keep):
        tuning.run(progress, inputs.preview)
    return tuning.tune()
