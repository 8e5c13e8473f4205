"""One-shot tuning in the host: on a private copy of the model, which is gone afterwards."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import convert_cond
from comfy.samplers import encode_model_conds
from torch import Tensor
from torch.nn import functional as F

from ..presets import name_of
from ..tuning import Tuner, TuneSettings
from ..weights import Tune, hash_tensors
from .latent import clip_latent, prediction_of, sigma_table, to_model_latent
from .learned import Learned, training_options
from .patch import ClipSettings, clip_settings
from .preview import Preview, PreviewSettings
from .private_copy import check_tunable, choose_precision, computing_in, private_copy, reproducible
from .progress import TuningProgress

NOT_TUNED_WITH = ("control", "mask", "area", "gligen", "hooks", "timestep_start", "start_percent", "end_percent")
MAY_DIFFER = {"steps", "seed", "snapshots", "prompt", "precision", "gradient_checkpointing"}
Keep = Callable[[Tune], str]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneInputs:
    """What a clip is tuned with, beside the model.

    Attributes:
        positive: conditioning of the source prompt.
        latent: the clip, VAE latent.
        mask: where the loss counts, shape (f or 1, height, width), 0 ... 1; None = everywhere.
        resume: tune with the state of a tuning to continue.
        preview: edit shown while it runs; None = none.
        prompt: text of the source prompt to note in the tune; empty = none.
    """

    positive: list
    latent: dict[str, Any]
    mask: Tensor | None = None
    resume: Tune | None = None
    preview: PreviewSettings | None = None
    prompt: str = ""


def condition(model: ModelPatcher, positive: list, x_0: Tensor, name: str = "positive") -> dict[str, Any]:
    """Return the UNet's keyword arguments for a conditioning, one row for each frame."""
    conds = encode_model_conds(model.model.extra_conds, convert_cond(positive), x_0, x_0.device, "positive")
    if len(conds) != 1:
        raise ValueError(f"{name} has {len(conds)} conditionings; tuning takes one prompt for the whole clip.")
    ignored = [key for key in NOT_TUNED_WITH if key in conds[0]]
    if ignored:
        raise ValueError(
            f"{name} carries {', '.join(ignored)}, which tuning does not use. Connect the plain prompt here, and "
            "apply the rest to the edited prompt."
        )
    given = {key: cond.process_cond(batch_size=len(x_0)).cond for key, cond in conds[0]["model_conds"].items()}
    return {key: own_copy(value, x_0.device) for key, value in given.items()}


def own_copy(value: Any, device: torch.device) -> Any:
    """Copy a tensor made in inference mode so that gradients may pass it."""
    return value.to(device).clone() if isinstance(value, Tensor) else value


def rows_of(given: dict[str, Any], frames: slice) -> dict[str, Any]:
    """Return the rows of some frames of what `condition` returned."""
    return {key: value[frames] if isinstance(value, Tensor) else value for key, value in given.items()}


def latent_mask(mask: Tensor | None, x_0: Tensor) -> Tensor | None:
    """Return a mask of pictures as weights of a latent's positions, shape (f, 1, h, w).

    Raises:
        ValueError: it has other frames than the clip, or is empty.
    """
    if mask is None:
        return None
    if len(mask) not in (1, len(x_0)):
        raise ValueError(
            f"mask has {len(mask)} frames and the clip {len(x_0)}. Give one for all frames or one for each."
        )
    weights = F.interpolate(mask.clone().to(x_0)[:, None], size=x_0.shape[-2:], mode="area").expand(
        len(x_0), -1, -1, -1
    )
    if weights.flatten(1).sum(dim=1).min() <= 0:
        raise ValueError(
            "mask leaves nothing of a frame to tune on. White is where the loss counts; invert it if needed."
        )
    return weights


class Tuning:
    """A tuning in the host: makes the Tuner, and Tunes of its states.

    Args:
        copy: private copy of the model.
        model: inflated and patched model.
        inputs: what it is tuned with.
        settings: of the tuning.
    """

    def __init__(self, copy: ModelPatcher, model: ModelPatcher, inputs: TuneInputs, settings: TuneSettings):
        device, unet = copy.load_device, copy.model.diffusion_model
        clip = clip_settings(model)
        self.copy = copy
        self.x_0 = to_model_latent(copy, clip_latent(model, inputs.latent, clip.num_frames))
        self.precision = choose_precision(settings.precision, model, device)
        self.computing = computing_in(self.precision, copy)
        unet.requires_grad_(False)
        self.learned = Learned(unet, model, device)
        self.options = training_options(copy, self.learned.bank, settings.gradient_checkpointing)
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
        )
        self.info = {**tune_info(clip, prediction_of(model), settings, inputs), **self.identities()}
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
            ValueError: the tune has no state, or was made with another patch or optimiser.
        """
        if not tune.state:
            raise ValueError(
                "resume has no state of its tuning. Save it with with_state on; or connect Apply Tune before One-Shot "
                "Tune to begin a new tuning from its weights."
            )
        for key in ("spatial", "temporal", "prediction", "optimizer"):
            if tune.info[key] != self.info[key]:
                raise ValueError(f"resume was tuned with {key} = {tune.info[key]}, and the model has {self.info[key]}.")
        others = [name for name in self.info.keys() - MAY_DIFFER if tune.info.get(name) != self.info[name]]
        if others:
            log.warning(
                "The tuning to resume was begun with other %s; going on with those given.", ", ".join(sorted(others))
            )
        self.tuner.load_state_dict(tune.state)
        self.snapshots |= tune.snapshots

    def call(self, x: Tensor, sigma: Tensor, given: dict[str, Any], **options: Any) -> Tensor:
        """Predict x_0 from the state of some frames at the noise levels of their rows."""
        with self.computing:
            return self.copy.model.apply_model(x, sigma, transformer_options={**self.options, **options}, **given)

    def denoise(self, x: Tensor, sigma: Tensor, frames: slice) -> Tensor:
        """Predict x_0 for a step of the tuning."""
        self.learned.settle()
        return self.call(x, sigma * x.new_ones(len(x)), rows_of(self.given, frames))

    def preview(self, settings: PreviewSettings) -> Preview:
        """Return what draws the edit as it would be now."""
        bank = self.learned.bank
        sides = {
            name: condition(self.copy, getattr(settings, name), self.x_0, name) for name in ("positive", "negative")
        }
        denoisers = {name: partial(self.preview_call, given=given) for name, given in sides.items()}
        return Preview(settings, self.copy, bank, self.x_0, self.tuner.sigma_table, self.tuner.prediction, **denoisers)

    def preview_call(self, x: Tensor, sigma: Tensor, given: dict[str, Any]) -> Tensor:
        """Predict x_0 for a preview, which like sampling minds the part of it where the patch acts."""
        return self.call(x, sigma, given, sigmas=sigma)

    def run(self, node_id: str, preview: PreviewSettings | None) -> None:
        """Do the steps that are left, showing them."""
        settings = self.tuner.settings
        progress = TuningProgress(settings.steps, node_id, len(self.tuner.losses))
        drawn = self.preview(preview) if preview is not None else None
        for done in self.tuner.steps():
            if done in settings.snapshots:
                self.snapshots[done] = halved(self.learned.tensors())
            if drawn is not None and (done % drawn.settings.every == 0 or done == settings.steps):
                progress.clip = drawn.draw()
            progress(done, self.tuner.losses[-1])

    def tune(self) -> Tune:
        """Return what has been learned."""
        losses = list(self.tuner.losses)
        snapshots = {step: value for step, value in self.snapshots.items() if step < len(losses)}
        return Tune(self.learned.tensors(), {**self.info, "loss": losses}, snapshots, self.tuner.state_dict())

    def last_good(self) -> Tune | None:
        """Return what had been learned when the loss was last seen finite, None = nothing."""
        done, learned = self.tuner.last_good
        if not done:
            return None
        self.learned.load_state_dict(learned)
        snapshots = {step: value for step, value in self.snapshots.items() if step < done}
        return Tune(self.learned.tensors(), {**self.info, "loss": self.tuner.losses[:done]}, snapshots)


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in float16, for snapshots."""
    return {key: value.half() for key, value in tensors.items()}


def tune_model(
    model: ModelPatcher, inputs: TuneInputs, settings: TuneSettings, node_id: str, keep: Keep | None = None
) -> Tune:
    """Tune an inflated model on one clip: the query projections of both attentions and the temporal modules.

    Args:
        model: inflated and patched model; neither it nor its base is changed.
        inputs: what it is tuned with.
        settings: of the tuning.
        node_id: node that shows the progress.
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
        tuning = Tuning(copy, model, inputs, settings)
        if len(tuning.x_0) == 1 and tuning.learned.bank is not None:
            log.warning("The clip has 1 frame: its temporal modules have nothing to connect and learn next to nothing.")
        with reproducible(), keeping(tuning, keep):
            tuning.run(node_id, inputs.preview)
        return tuning.tune()


@contextmanager
def advising(model: ModelPatcher, inputs: TuneInputs, settings: TuneSettings) -> Iterator[None]:
    """Say what to change where a tuning does not fit into the memory."""
    try:
        yield
    except RuntimeError as error:
        if not comfy.model_management.is_oom(error):
            raise
        raise torch.cuda.OutOfMemoryError(memory_advice(model, inputs, settings)) from error


@contextmanager
def keeping(tuning: Tuning, keep: Keep | None) -> Iterator[None]:
    """Save what was learned where the tuning is interrupted or fails."""
    if keep is None:
        yield
        return
    try:
        yield
    except (comfy.model_management.InterruptProcessingException, RuntimeError) as error:
        is_expected = not isinstance(error, RuntimeError) or comfy.model_management.is_oom(error)
        if is_expected and tuning.tuner.losses:
            log.warning("Tuning ended after %d steps; kept in %s", len(tuning.tuner.losses), keep(tuning.tune()))
        raise
    except FloatingPointError as error:
        good = tuning.last_good()
        if good is None:
            raise
        raise FloatingPointError(
            f"{error} What was learned in {len(good.info['loss'])} steps is in {keep(good)}"
        ) from error


def memory_advice(model: ModelPatcher, inputs: TuneInputs, settings: TuneSettings) -> str:
    """Return what to change when a tuning does not fit."""
    clip = clip_settings(model)
    frames, spatial = len(inputs.latent["samples"]), clip.spatial
    per_step = min(settings.frames_per_step or frames, frames)
    advice = []
    if not settings.gradient_checkpointing:
        advice.append("turn gradient_checkpointing on in Tuning Options (about a third slower)")
    if per_step > 2:
        advice.append(f"set frames_per_step to {max(2, per_step // 2)} there")
    if spatial is not None and spatial.kind == "fine-coarse" and spatial.r < 8:
        advice.append(f"raise r of STAM/FFAM Patch to {min(8, 2 * spatial.r)}")
    if spatial is not None and spatial.kind == "full":
        advice.append("take EI² in the place of full attention")
    advice.append("make the frames smaller")
    height, width = inputs.latent["samples"].shape[-2:]
    return (
        f"Tuning {per_step} frames of {8 * width} x {8 * height} at a time does not fit into the memory. "
        f"In this order: {'; '.join(advice)}."
    )


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
