"""Results that are not finite: at which step, and what the likely source is."""

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...clip_model.host.settings import KEY


def check_state(values: Tensor, step: int, steps: int, what: str, model: ModelPatcher) -> None:
    """Refuse a state of a sampling that is not finite.

    Args:
        values: state or prediction.
        step: counted from 1, of so many `steps`.
        what: is sampled, "sampling" or "inversion".
        model: that is sampled with.

    Raises:
        FloatingPointError: naming the step and the likely source.
    """
    if not values.isfinite().all():
        raise FloatingPointError(
            f"The {what} is no longer finite (NaN or infinity) at step {step} of {steps}. {likely_source(model)}"
        )


def likely_source(model: ModelPatcher) -> str:
    """Return what most likely makes a model's predictions infinite or NaN, and what to do."""
    attached = model.model_options["transformer_options"].get(KEY)
    temporal = attached.temporal.state_dict() if attached is not None and attached.temporal is not None else {}
    weights = {**model.model.diffusion_model.state_dict(), **temporal}
    spoilt = [key for key, value in weights.items() if value.is_floating_point() and not value.float().isfinite().all()]
    if spoilt:
        return (
            f"{len(spoilt)} weights of the model are not finite, {spoilt[0]} among them: a damaged checkpoint, or a "
            "LoRA or tune whose strength or values are beyond the model's precision. Remove or replace it."
        )
    if torch.float16 in (model.model.get_dtype_inference(), model.model.manual_cast_dtype):
        return (
            "The model computes in float16, which ends at 65504. Start ComfyUI with --bf16-unet or --fp32-unet, or "
            "lower cfg."
        )
    return "The model's weights are finite: lower cfg, or weights of words in the prompt, or take out patches."
