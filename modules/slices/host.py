"""A clip model that predicts by slices as well, whichever sampler calls it."""

from dataclasses import dataclass
from typing import Any

import comfy.model_management
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..clip_model.host.family import require_unet
from ..clip_model.host.settings import SLICES, UNSEEN, clip_settings, count_frames
from ..clip_model.host.windows import MEMORY
from ..tuning.host.tune_inputs import check_plain, condition
from .slices import Axes, Blend, blend_noise, predict_slices

ATTENTION = "optimized_attention_override"  # of the host: which kernel computes attention, in slices as well


@dataclass(frozen=True)
class SliceSettings:
    """How a clip's slices take part in a prediction.

    Attributes:
        weight: share of the slices, 0 ... 1.
        axes: which slices, see `predict_slices`.
        blend: of frames and slices, see `blend_noise`.

    Raises:
        ValueError: the weight is not a share.
    """

    weight: float = 0.2
    axes: Axes = "y-t"
    blend: Blend = "mean"

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight of the slices must be from 0 to 1, got {self.weight:g}.")


@dataclass(frozen=True, eq=False)
class SliceDenoiser:
    """Wraps a model's evaluation: blends what it predicts of the frames with what it predicts of their slices.

    Slices are pictures to the model, under the empty prompt: its weights are all that acts on them, without attention
    across frames, temporal modules, hints of a ControlNet and what other nodes attached. The code blends after
    classifier-free guidance; here both sides are blended before it, which is the same, since it leaves alone what is
    equal in both.

    Attributes:
        settings: how.
        empty: conditioning of the empty prompt.
    """

    settings: SliceSettings
    empty: list

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        sigma: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        """Return the denoised rows of a call, as the host's `apply_model`."""
        options = transformer_options or {}
        denoised = executor(x, sigma, c_concat, c_crossattn, control, transformer_options, **extra)
        if UNSEEN in options or (MEMORY in options and options[MEMORY].is_filling):
            return denoised  # which nobody looks at
        frames, sides = count_frames(options, len(x)), x.chunk(len(options.get("cond_or_uncond", (0,))))
        if frames < 2:
            raise ValueError("Slice Denoiser was given one frame, which has no slices. Give it a clip, or remove it.")
        are_alike = all(side.equal(sides[0]) for side in sides)
        asked = sides[0] if are_alike else x

        def predict(slices: Tensor) -> Tensor:
            return self.noise_of(slices, sigma[:1], executor.class_obj, options)

        noise = predict_slices(predict, asked, frames, self.settings.axes, self.settings.blend)
        by_frames = x - denoised
        blended = blend_noise(by_frames, noise.repeat(len(x) // len(noise), 1, 1, 1), *self.how)
        return denoised + (by_frames - blended)

    @property
    def how(self) -> tuple[float, Blend]:
        """Weight and kind of the blend."""
        return self.settings.weight, self.settings.blend

    def noise_of(self, slices: Tensor, sigma: Tensor, model: BaseModel, options: dict[str, Any]) -> Tensor:
        """Return sigma times the noise that a model predicts of slices, each for itself."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        given = condition(model.current_patcher, self.empty, slices, "empty")
        plain = {key: value for key, value in options.items() if key == ATTENTION}
        return slices - model.apply_model(slices, sigma.expand(len(slices)), transformer_options=plain, **given)


def attach_slices(model: ModelPatcher, empty: list, settings: SliceSettings) -> ModelPatcher:
    """Return a clone of a clip model that predicts by slices as well, replacing any settings of them before.

    At weight 0 nothing is attached.

    Args:
        model: inflated model.
        empty: conditioning of the empty prompt.
        settings: how.

    Raises:
        ValueError: the model is not inflated, or the conditioning carries more than a prompt.
    """
    clip_settings(model)
    require_unet(model, "Slice Denoiser", "Connect the model before that node.")
    check_plain(empty, 1, "empty")
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, SLICES)
    if settings.weight > 0:
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, SLICES, SliceDenoiser(settings, empty))
    return clone


def slices_of(model: ModelPatcher) -> SliceDenoiser | None:
    """Return what `attach_slices` put on a model, None where it carries no slices."""
    found = model.wrappers.get(WrappersMP.APPLY_MODEL, {}).get(SLICES)
    return found[0] if found else None
