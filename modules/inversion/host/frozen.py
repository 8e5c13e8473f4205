"""Private copies of models whose UNets stay as they are, called for gradients by their inputs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...clip_model.host.settings import KEY, acting
from ...diffusion.ddim import Denoiser
from ...tuning.host.checkpoints import KINDS
from ...tuning.host.learned import Caller, frozen_bank, training_options
from ...tuning.host.private_copy import check_tunable, computing_in, private_copy


@contextmanager
def frozen_copies(*models: ModelPatcher, gradient_checkpointing: bool = True) -> Iterator[list[Caller]]:
    """Yield the callers of private copies' UNets, in float32 and without gradients by their weights.

    Raises:
        ValueError: a model cannot be copied, or carries what would have no effect on a copy.
    """
    for model in models:
        check_tunable(model)
    comfy.model_management.unload_all_models()  # while their inference tensors may still be moved
    with torch.inference_mode(False), ExitStack() as held:
        copies = [held.enter_context(private_copy(model)) for model in models]
        comfy.model_management.load_models_gpu(copies, force_full_load=True)  # a later one may have moved an earlier
        yield [caller(copy, model, gradient_checkpointing) for copy, model in zip(copies, models, strict=True)]


def caller(copy: ModelPatcher, model: ModelPatcher, gradient_checkpointing: bool) -> Caller:
    """Return the caller of a private copy's UNet, with the temporal modules of the model that it is a copy of."""
    unet = copy.model.diffusion_model
    unet.requires_grad_(False)
    computing = computing_in("fp32", copy)
    layers = [layer for layer in unet.modules() if gradient_checkpointing and isinstance(layer, KINDS)]
    options = training_options(copy, frozen_bank(unet, model, copy.load_device), False, layers)
    return Caller(copy, options, computing)


def denoiser_of(call: Caller, given: dict[str, Any]) -> Denoiser:
    """Return the denoiser that a copy's UNet is under a conditioning, with the clip settings that act at each level."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return call(x, sigma, given, **{KEY: acting(call.options[KEY], {"sigmas": sigma})})

    return Denoiser(denoise)
