"""One-shot tuning in the host: of query projections and temporal modules."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...clip_model.host.bank import TemporalBank
from ...clip_model.host.settings import KEY, acting
from ...clip_model.methods import name_of
from ..settings import TuneSettings
from ..updates import unflatten
from ..weights import Tune
from .autosave import Autosave
from .learned import Learned
from .preview import Preview, PreviewSettings
from .progress import TuningProgress
from .rescue import Keep, on_private_copy
from .session import Session
from .tune_inputs import CONTROL_NETS, TuneInputs, condition, rows_of

log = logging.getLogger(__name__)


class Tuning(Session[Tune]):
    """A one-shot tuning: of the query projections of both attentions and the temporal modules. See Session."""

    MUST_AGREE = ("spatial", "temporal", "prediction", "optimizer")
    NO_STATE = (
        "resume has no state of its tuning. Save it with with_state on; or connect Apply Tune before One-Shot Tune to "
        "begin a new tuning from its weights."
    )
    ALLOWED = CONTROL_NETS
    learned: Learned
    autosave: Autosave | None = None

    def __init__(self, copy: ModelPatcher, model: ModelPatcher, inputs: TuneInputs, settings: TuneSettings):
        super().__init__(copy, model, inputs, settings)
        if len(self.x_0) == 1 and self.bank is not None:
            log.warning("The clip has 1 frame: its temporal modules have nothing to connect and learn next to nothing.")
        clip, config = self.clip, self.clip.temporal.config if self.clip.temporal is not None else None
        self.info |= {
            "preset": name_of(clip.spatial, config),
            "spatial": asdict(clip.spatial) if clip.spatial else None,
            "spatial_strength": clip.spatial_strength,
            "temporal": config.noted() if config else None,
            "temporal_strength": clip.temporal_strength,
            "percents": list(clip.percents),
            "control": self.given[CONTROL_NETS].notes() if CONTROL_NETS in self.given else [],
            **({"tunes": list(clip.tunes)} if clip.tunes else {}),
        }
        self.snapshots = {0: halved(self.learned.temporal_tensors())} if settings.snapshots else {}
        self.shown = self.preview(inputs.preview) if inputs.preview is not None else None

    def learn(self, model: ModelPatcher, settings: TuneSettings) -> tuple[Learned, TemporalBank | None]:
        """Return float32 layers instead of the copy's trained projections, with copies of the temporal modules."""
        learned = Learned(self.copy.model.diffusion_model, model, self.copy.load_device)
        return learned, learned.bank

    def model_weights(self) -> list[Tensor]:
        """Return the projections as they were."""
        return self.learned.before

    def resume(self, kept: Tune) -> None:
        """Continue a tuning, with its snapshots."""
        super().resume(kept)
        self.snapshots |= kept.snapshots
        self.take_snapshot()  # a tune has none of its own end

    def denoise(self, x: Tensor, sigma: Tensor, frames: slice) -> Tensor:
        """Predict x_0 for a step of the tuning."""
        for module in self.bank.bank if self.bank is not None else ():
            _ = module.to_v.weight, module.to_out.weight  # spectral norms: what is checkpointed must find them made
        return self.call(x, sigma, rows_of(self.given, frames))

    def preview(self, settings: PreviewSettings) -> Preview:
        """Return what draws the edit as it would be now, of the clip's first frames, as many as a step takes."""
        seen = slice(self.tuner.settings.memory.frames_of(len(self.x_0)))
        sides = {
            name: rows_of(condition(self.copy, getattr(settings, name), self.x_0, name, CONTROL_NETS), seen)
            for name in ("positive", "negative")
        }
        denoisers = {name: partial(self.preview_call, given=given) for name, given in sides.items()}
        clip = self.tuner.objective.clip
        return Preview(settings, self.copy, self.bank, self.x_0[seen], clip.sigma_table, clip.prediction, **denoisers)

    def preview_call(self, x: Tensor, sigma: Tensor, given: dict[str, Any]) -> Tensor:
        """Predict x_0 for a preview; as in sampling the patch acts in its part of it alone."""
        return self.call(x, sigma, given, **{KEY: acting(self.call.options[KEY], {"sigmas": sigma})})

    def after_step(self, done: int, progress: TuningProgress) -> None:
        """Take a snapshot, save, and draw the preview where it is time for them."""
        self.take_snapshot()
        if self.autosave is not None:
            self.autosave.look(self)
        if self.shown is not None and (done % self.shown.settings.every == 0 or done == self.tuner.settings.steps):
            self.draw_preview(progress)

    def draw_preview(self, progress: TuningProgress) -> None:
        """Show the edit as it would be now; where that does not fit, go on without previews."""
        assert self.shown is not None, "there is one"
        try:
            progress.clip = self.shown.draw()
        except RuntimeError as error:
            if not comfy.model_management.is_oom(error):
                raise
            log.warning("Tuning Preview does not fit in memory beside the tuning, which goes on without it.")
            self.shown = None
            comfy.model_management.soft_empty_cache()

    def take_snapshot(self) -> None:
        """Keep the weights if the number of steps done is one to keep them at."""
        if self.tuner.done in self.tuner.settings.snapshots:
            self.snapshots[self.tuner.done] = halved(self.learned.tensors())

    def made(self, done: int, state: dict[str, Tensor]) -> Tune:
        """Return what is learned as it is, after some steps."""
        snapshots = {step: value for step, value in self.snapshots.items() if step < done}
        return Tune(self.learned.tensors(), self.info_after(done), snapshots, state)

    def later(self) -> Callable[[], Tune]:
        """Return what makes the tune as it is now, also while the tuning goes on: it takes its time."""
        learned, state, info = self.learned, self.tuner.state_dict(), self.info_after(self.tuner.done)
        snapshots = {step: value for step, value in self.snapshots.items() if step < self.tuner.done}
        return lambda: Tune(learned.tensors(unflatten(state, "learned.")), info, snapshots, state)


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in float16, for snapshots."""
    return {key: value.half() for key, value in tensors.items()}


def tune_model(
    model: ModelPatcher,
    inputs: TuneInputs,
    settings: TuneSettings,
    progress: TuningProgress,
    keep: Keep[Tune] | None = None,
    autosave: Autosave | None = None,
) -> Tune:
    """Tune an inflated model on one clip: what its temporal modules are trained with, and these themselves.

    Args:
        model: inflated and patched model; neither it nor its base is changed.
        inputs: what it is tuned with.
        settings: of the tuning.
        progress: shows it, and measures the memory.
        keep: saves what was learned before an interruption or a failure, and returns where; None = it is lost.
        autosave: writes it while it runs, and lets it go on after a crash; None = nothing does.

    Raises:
        ValueError: the model is not inflated or cannot be tuned, or the inputs do not fit.
        FloatingPointError: the loss is no longer finite.
        torch.cuda.OutOfMemoryError: saying what to change.
    """
    with on_private_copy(Tuning, model, inputs, settings, keep, autosave) as tuning:
        tuning.autosave = autosave
        tuning.run(progress)
        return tuning.tune()
