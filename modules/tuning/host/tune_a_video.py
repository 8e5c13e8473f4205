"""Tune-A-Video's files on the host's models."""

import logging
from functools import partial

import comfy.lora
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...clip_model.host.family import require_unet
from ...diffusion.host.latent import prediction_of
from ...files.host import IMPORTS, read_weights, save_new
from ...files.tensor_file import check_tensors
from ..tune_a_video import (
    PREFIX,
    check_exportable,
    check_file,
    compare_frozen,
    describe_import,
    file_config,
    file_names,
    file_shapes,
    save_unet,
    to_file,
    to_tune,
)
from ..weights import Tune
from .apply import apply_tune
from .attached import refuse_injections
from .private_copy import check_precision

log = logging.getLogger(__name__)


def read_unet(name: str) -> dict[str, Tensor]:
    """Read a file of a UNet's weights by its name in the folder; ValueError where it holds anything else."""
    weights = read_weights(IMPORTS, name)
    for key, value in weights.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{name} holds more than weights, {key} is {kind}: perhaps the state of a training, or quantized. "
                "Choose the file that Tune-A-Video's training wrote at its end, unet/diffusion_pytorch_model."
            )
    check_tensors(weights, name, "Choose the file that Tune-A-Video's training wrote, unet/diffusion_pytorch_model.")
    return weights


def unet_weights(model: ModelPatcher, patched: bool = False) -> dict[str, Tensor]:
    """Return the weights of a model's UNet on the CPU, by the UNet's keys.

    Args:
        model: loaded or not.
        patched: with its patches (LoRA, tunes), those weights in float32; otherwise all as they are in the checkpoint.
    """
    weights = {}
    for key, ((held, _convert), *patches) in model.get_key_patches(PREFIX).items():
        weight = held.detach().cpu()
        if patched and patches:
            weight = comfy.lora.calculate_weight(patches, weight.to(torch.float32, copy=True), key)
        weights[key.removeprefix(PREFIX)] = weight
    return weights


def diffusers_table(model: ModelPatcher) -> dict[str, str]:
    """Return the host's names of a UNet's weights by diffusers'."""
    return comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)


def import_tune_a_video(model: ModelPatcher, name: str) -> tuple[Tune, str]:
    """Read a UNet that Tune-A-Video wrote, as a tune and what to know of it.

    Args:
        model: the checkpoint it was tuned from; LoRA and other patches on it do not count.
        name: of the file in the folder.

    Raises:
        ValueError: the file is no such UNet, or of another structure, or the model is not supported.
    """
    require_unet(model, "Import Tune-A-Video", "Load the checkpoint that it was tuned from.")
    check_precision(model)
    unet, weights = unet_weights(model), read_unet(name)
    names = file_names(diffusers_table(model), unet)
    check_file(weights, names, file_shapes(unet), name)
    apart = compare_frozen(weights, unet, names)
    tune = to_tune(weights, unet, names, prediction_of(model), name)
    report = describe_import(tune, apart)
    if apart.keys:
        log.warning(report)
    return tune, report


def export_tune_a_video(model: ModelPatcher, tune: Tune, prefix: str) -> str:
    """Write a model with a tune as a UNet that Tune-A-Video reads; returns the folder.

    It is float32 where the model is, else float16: what that project computes in, and half as large.

    Args:
        model: the model the tune was made on; its LoRA go into the weights, as Apply Tune combines them.
        tune: made with the preset Tune-A-Video.
        prefix: name without number, below the folder of tunes.

    Raises:
        ValueError: Tune-A-Video's code does not know what the tune or the model has, the tune does not fit the model,
            or the prefix names no folder or leads outside.
        OSError: it could not be written.
    """
    check_exportable(tune.info)
    refuse_injections(model)
    check_precision(model)
    unet = unet_weights(apply_tune(model, tune), patched=True)
    config = file_config(model.model.model_config.unet_config)
    dtype = torch.float32 if model.model_dtype() == torch.float32 else torch.float16
    weights = to_file(tune, unet, file_names(diffusers_table(model), unet), dtype)
    return str(save_new(partial(save_unet, weights, config), prefix))
