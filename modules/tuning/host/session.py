"""One tuning on a private copy of a model: from its inputs to the Tunes of its states."""

import logging
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...clip_model.host.features import Features, warn_of_few_frames
from ...clip_model.host.settings import KEY, ClipSettings, clip_settings, is_active
from ...clip_model.methods import name_of
from ...diffusion.host.latent import clip_latent, prediction_of, sigma_table, to_model_latent
from ..settings import TuneSettings
from ..tuner import ROUNDING, Tuner
from ..weights import Tune, hash_tensors
from .fit import FittingSteps
from .learned import Caller, Learned, training_options
from .preview import Preview, PreviewSettings
from .private_copy import choose_precision, computing_in
from .progress import TuningProgress
from .tune_inputs import TuneInputs, condition, latent_mask, rows_of

MUST_AGREE = ("spatial", "temporal", "prediction", "optimizer")
MAY_DIFFER = {"steps", "seed", "snapshots", "prompt", "chunking", "gradient_checkpointing", "on_out_of_memory"}
log = logging.getLogger(__name__)


class Tuning(FittingSteps):
    """A tuning in the host: makes the Tuner, and Tunes of its states.

    Args:
        copy: private copy of the model.
        model: inflated and patched model.
        inputs: what it is tuned with.
        settings: of the tuning.
    """

    def __init__(self, copy: ModelPatcher, model: ModelPatcher, inputs: TuneInputs, settings: TuneSettings):
        device, unet = copy.load_device, copy.model.diffusion_model
        self.copy, self.clip = copy, clip_settings(model)
        self.x_0 = to_model_latent(copy, clip_latent(model, inputs.latent, self.clip.num_frames))
        if settings.smoothing == "SmoothVideo" and settings.smoothing_weight > 1:
            log.warning("smoothing_weight is %g; SmoothVideo's own is 0.2.", settings.smoothing_weight)
        self.precision = choose_precision(settings.precision, model, device)
        computing = computing_in(self.precision, copy)
        unet.requires_grad_(False)
        self.learned = Learned(unet, model, device)
        warn_of_few_frames(settings, len(self.x_0))
        features = Features(unet, settings.consistency_part) if settings.consistency_weight else None
        self.bank = self.learned.bank
        options = training_options(copy, self.bank, settings)
        self.call = Caller(copy, options, computing, features)
        self.given = condition(copy, inputs.positive, self.x_0)
        self.tuner = Tuner(
            self.denoise,
            self.learned,
            self.x_0,
            sigma_table(model).clone(),
            prediction_of(model),
            settings,
            latent_mask(inputs.mask, self.x_0),
            scale_gradients=self.precision == "fp16",
            features=features.take if features is not None else None,
            rounding=ROUNDING[self.precision],
        )
        self.info = {**tune_info(self.clip, prediction_of(model), settings, inputs), **self.identities()}
        self.snapshots = {0: halved(self.learned.temporal_tensors())} if settings.snapshots else {}
        if inputs.resume is not None:
            self.resume(inputs.resume)

    def identities(self) -> dict[str, Any]:
        """Return what tells the clip and the model from others, for a Tune's info."""
        return {
            "frames": len(self.x_0),
            "precision": self.precision,
            "clip_hash": hash_tensors([self.x_0]),
            "model_hash": hash_tensors(self.learned.before),
        }

    def resume(self, tune: Tune) -> None:
        """Continue a tuning.

        Raises:
            ValueError: the tune has no state, or was made with another model, patch or optimiser.
        """
        if not tune.state:
            raise ValueError(
                "resume has no state of its tuning. Save it with with_state on; or connect Apply Tune before One-Shot "
                "Tune to begin a new tuning from its weights."
            )
        for key in MUST_AGREE:
            if tune.info.get(key) != self.info[key]:
                raise ValueError(
                    f"resume was tuned with {key} = {tune.info.get(key)}, and here it is {self.info[key]}. Use what it "
                    "was begun with."
                )
        if tune.info.get("model_hash") != self.info["model_hash"]:
            raise ValueError("resume was begun on another model, or with other LoRA. Connect the one it was begun on.")
        is_even = self.info["schedule"] == "constant" and self.info["smoothing_end"] is None
        may_differ = MAY_DIFFER if is_even else MAY_DIFFER - {"steps"}
        both = self.info.keys() & tune.info.keys() - may_differ
        others = [name for name in both if tune.info[name] != self.info[name]]
        if others:
            log.warning(
                "The tuning to resume was begun with other %s; going on with those given.", ", ".join(sorted(others))
            )
        self.tuner.load_state_dict(tune.state)
        self.snapshots |= tune.snapshots
        self.take_snapshot()  # a tune has none of its own end

    def denoise(self, x: Tensor, sigma: Tensor, frames: slice) -> Tensor:
        """Predict x_0 for a step of the tuning."""
        self.learned.settle()
        return self.call(x, sigma, rows_of(self.given, frames))

    def preview(self, settings: PreviewSettings) -> Preview:
        """Return what draws the edit as it would be now."""
        bank = self.learned.bank
        sides = {
            name: condition(self.copy, getattr(settings, name), self.x_0, name) for name in ("positive", "negative")
        }
        denoisers = {name: partial(self.preview_call, given=given) for name, given in sides.items()}
        return Preview(settings, self.copy, bank, self.x_0, self.tuner.sigma_table, self.tuner.prediction, **denoisers)

    def preview_call(self, x: Tensor, sigma: Tensor, given: dict[str, Any]) -> Tensor:
        """Predict x_0 for a preview; as in sampling the patch acts in its part of it alone."""
        clip = self.call.options[KEY]
        acting = clip if is_active(clip, {"sigmas": sigma}) else replace(clip, spatial=None, temporal=None)
        return self.call(x, sigma, given, **{KEY: acting})

    def run(self, progress: TuningProgress, preview: PreviewSettings | None) -> None:
        """Do the steps that are left, showing them."""
        settings = self.tuner.settings
        progress.begin(settings.steps, len(self.tuner.losses))
        drawn = self.preview(preview) if preview is not None else None
        for done in self.steps():
            self.take_snapshot()
            if drawn is not None and (done % drawn.settings.every == 0 or done == settings.steps):
                progress.clip = drawn.draw()
            progress(done, self.tuner.losses[-1])

    def take_snapshot(self) -> None:
        """Keep the state if the number of steps done is one to keep it at."""
        done = len(self.tuner.losses)
        if done in self.tuner.settings.snapshots:
            self.snapshots[done] = halved(self.learned.tensors())

    def tune(self) -> Tune:
        """Return what has been learned."""
        done = len(self.tuner.losses)
        snapshots = {step: value for step, value in self.snapshots.items() if step < done}
        return Tune(self.learned.tensors(), self.info_after(done), snapshots, self.tuner.state_dict())

    def info_after(self, done: int) -> dict[str, Any]:
        """Return a Tune's info after some steps."""
        return {**self.info, **losses_after(self.tuner, done)}

    def last_good(self) -> Tune | None:
        """Return what had been learned when the loss was last seen finite, None = nothing."""
        done, learned = self.tuner.last_good
        if not done:
            return None
        self.learned.load_state_dict(learned)
        snapshots = {step: value for step, value in self.snapshots.items() if step < done}
        return Tune(self.learned.tensors(), self.info_after(done), snapshots)


def losses_after(tuner: Tuner, done: int) -> dict[str, list]:
    """Return what was noted of the first steps of a tuning, for info: its losses, and the steps that raised theirs."""
    settings = tuner.settings
    noted = {
        "loss": (tuner.losses, True),
        "smoothing_loss": (tuner.smoothing_losses, settings.smoothing != "none"),
        "consistency_loss": (tuner.consistency_losses, settings.consistency_weight > 0),
    }
    kept: dict[str, list] = {
        name: values[:done] for name, (values, is_on) in noted.items() if values and (is_on or any(values[:done]))
    }
    if settings.optimizer == "gradient descent":
        kept["rises"] = [step for step in tuner.rises if step <= done]
    return kept


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in float16, for snapshots."""
    return {key: value.half() for key, value in tensors.items()}


def tune_info(clip: ClipSettings, prediction: str, settings: TuneSettings, inputs: TuneInputs) -> dict[str, Any]:
    """Return what a tune says of how it was made."""
    config = clip.temporal.config if clip.temporal is not None else None
    info = {
        "preset": name_of(clip.spatial, config),
        "spatial": asdict(clip.spatial) if clip.spatial else None,
        "spatial_strength": clip.spatial_strength,
        "temporal": asdict(config) if config else None,
        "temporal_strength": clip.temporal_strength,
        "percents": list(clip.percents),
        "prediction": prediction,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()},
        "masked": inputs.mask is not None,
    }
    return {**info, "prompt": inputs.prompt} if inputs.prompt else info
