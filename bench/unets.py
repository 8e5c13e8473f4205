"""The UNets of SD1.5 and SDXL, randomly filled, as the host makes them, and what they are called with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..modules.tuning.host.learned import sdpa_override

COMMON: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
}
SD15, SDXL = "SD1.5", "SDXL"


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
        kind: the host's description of it.
        unet: configuration of its UNet.
        pooled: width of the pooled text that it takes, 0 = none.
    """

    kind: type
    unet: dict[str, Any]
    pooled: int = 0


FAMILIES = {
    SD15: Family(
        comfy.supported_models.SD15,
        {
            **COMMON,
            "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": [1, 2, 4, 4],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            "transformer_depth_middle": 1,
            "context_dim": 768,
        },
    ),
    SDXL: Family(
        comfy.supported_models.SDXL,
        {
            **COMMON,
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
            "context_dim": 2048,
            "use_linear_in_transformer": True,
            "num_heads": -1,
            "num_head_channels": 64,
            "num_classes": "sequential",
            "adm_in_channels": 2816,
        },
        pooled=1280,
    ),
}
TOKENS = 77
DRAWN = 1_000_003  # random numbers that fill all weights, over and over: drawing each would take longer than measuring


def random_weights(shapes: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights of these shapes that keep the size of what passes through."""
    drawn = torch.randn(DRAWN, generator=torch.Generator().manual_seed(1)).to(dtype)

    def fill(key: str, shape: torch.Size) -> Tensor:
        if len(shape) == 1:
            return torch.full(shape, float(key.endswith("weight")), dtype=dtype)
        filled = drawn.repeat(-(-shape.numel() // DRAWN))[: shape.numel()].reshape(shape)
        return filled / math.sqrt(shape[1:].numel())

    return {key: fill(key, shape) for key, shape in shapes.items()}


def make_model(
    dtype: torch.dtype | None = None, disable_dynamic: bool = True, family: str = SD15, filled: bool = True
) -> ModelPatcher:
    """Return the UNet as a host model that can be loaded again, wholly held by the device it runs on.

    Args:
        dtype: of its weights and what it computes in; None = what the host takes on this device.
        disable_dynamic: as the host asks where it loads again; here never otherwise.
        family: one of FAMILIES.
        filled: whether its weights have values; without them it is made in a moment, and takes no memory.
    """
    assert disable_dynamic, "weights that come and go would be measured with it"
    config = FAMILIES[family].kind(FAMILIES[family].unet)
    device = comfy.model_management.get_torch_device()
    supported = config.supported_inference_dtypes
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(device, supported_dtypes=supported)
        config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, supported))
    else:
        config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    if filled:
        shapes = {key: value.shape for key, value in model.diffusion_model.state_dict().items()}
        model.diffusion_model.load_state_dict(random_weights(shapes, dtype))
    patcher = comfy.model_patcher.ModelPatcher(model, device, comfy.model_management.unet_offload_device())
    patcher.cached_patcher_init = (partial(make_model, dtype, family=family), ())
    return patcher


def make_prompt(family: str = SD15) -> list[list[Any]]:
    """Return a conditioning of random text states."""
    generator, width, pooled = torch.Generator().manual_seed(2), context_width(family), FAMILIES[family].pooled
    states = torch.randn(1, TOKENS, width, generator=generator)
    return [[states, {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}]]


def context_width(family: str) -> int:
    """Return the width of text states."""
    return FAMILIES[family].unet["context_dim"]


def make_latent(frames: int, size: int) -> dict[str, Tensor]:
    """Return a VAE latent of random frames."""
    return {"samples": 5 * torch.randn(frames, 4, size, size, generator=torch.Generator().manual_seed(3))}


def load(models: Sequence[ModelPatcher]) -> None:
    """Load models and what is attached to them, wholly."""
    attached = [extra for model in models for extra in model.get_nested_additional_models()]
    comfy.model_management.load_models_gpu([*models, *attached], force_full_load=True)


def guided_call(
    model: ModelPatcher, frames: int, size: int, family: str = SD15, sides: int = 2
) -> Callable[[], Tensor]:
    """Return one UNet call of a loaded model as sampling with classifier-free guidance makes it: a row for each side.

    Attention is PyTorch's, which the host takes on NVIDIA cards by itself.
    """
    device = model.load_device
    x = torch.randn(sides * frames, 4, size, size, device=device)
    context = torch.randn(sides * frames, TOKENS, context_width(family), device=device)
    options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, *[0] * (sides - 1)]}
    options["optimized_attention_override"] = sdpa_override
    given: dict[str, Any] = {"c_crossattn": context, "transformer_options": options}
    if FAMILIES[family].pooled:
        given["y"] = torch.randn(sides * frames, model.model.adm_channels, device=device)
    return partial(model.model.apply_model, x, 5 * x.new_ones(len(x)), **given)
