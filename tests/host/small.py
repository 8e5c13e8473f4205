"""Small things of the host's own types for in-process tests: models, a clip, prompts."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch
import transformers
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 2],
    "transformer_depth_output": [1, 1, 2, 2],
    "transformer_depth_middle": 1,
    "context_dim": 24,
    "use_spatial_transformer": True,
    "legacy": False,
}
SD15_UNET = {
    **UNET,
    "model_channels": 320,
    "channel_mult": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "context_dim": 768,
}
FRAMES, HEIGHT, WIDTH, TOKENS = 5, 12, 8, 7


class Small(comfy.supported_models.SD15):
    """SD1.5's structure with narrow channels; eps- or v-prediction."""

    kind = ModelType.EPS

    def model_type(self, state_dict, prefix=""):
        return self.kind


class SmallV(Small):
    kind = ModelType.V_PREDICTION


def unet_shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    """Return the shapes of a UNet's weights, also where the host would make layers without weights."""
    with mock.patch.object(comfy.memory_management, "aimdo_enabled", False), torch.device("meta"):
        unet = UNetModel(**config, num_heads=8)
    return {key: value.shape for key, value in unet.state_dict().items()}


def random_weights(shapes: dict[str, torch.Size], std: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights of these shapes, the same at each call."""
    generator = torch.Generator().manual_seed(1)
    return {key: torch.randn(shape, generator=generator).mul(std).to(dtype) for key, shape in shapes.items()}


def write_sd15_checkpoint(path: Path) -> None:
    """Write a randomly filled checkpoint that the core loaders take for SD1.5: a shallow UNet and the text encoder."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    torch.manual_seed(1)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, vocab_size=49408)).half().state_dict()
    unet = random_weights(unet_shapes(SD15_UNET), 0.02, torch.float16)
    weights = {f"model.diffusion_model.{key}": value for key, value in unet.items()}
    weights |= {f"cond_stage_model.transformer.{key}": value for key, value in text.items()}
    save_file({key: value.contiguous() for key, value in weights.items()}, path)


def random_model(kind: type[Small] = Small, dtype: torch.dtype = torch.float32, disable_dynamic: bool = False):
    """Return a model with random weights, the same at each call, that the host can load again."""
    config = kind(UNET)
    config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = config.get_model({}, "")
    weights = random_weights(SHAPES, 0.1, dtype)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, device, comfy.model_management.unet_offload_device())
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (partial(random_model, kind, dtype), ())
    return patcher


def clip_latent(frames: int = FRAMES, seed: int = 2) -> dict[str, Tensor]:
    """Return a VAE latent of a clip whose frames resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 4, HEIGHT, WIDTH, generator=generator)
    change = torch.randn(frames, 4, HEIGHT, WIDTH, generator=generator)
    return {"samples": (base + 0.3 * change) / 0.18215}


def prompt(seed: int) -> list[list[Any]]:
    """Return a conditioning of random text states."""
    return [[torch.randn(1, TOKENS, 24, generator=torch.Generator().manual_seed(seed)), {}]]


SHAPES = unet_shapes(UNET)
SOURCE, EMPTY, EDIT = prompt(3), prompt(4), prompt(5)


def sample(model: ModelPatcher, latent: dict[str, Tensor], cfg: float = 3.0, positive: list | None = None) -> Tensor:
    """Sample a few steps of the host's own Euler from a fixed noisy latent."""
    sigmas = torch.tensor([5.0, 2.0, 0.5, 0.0])
    sampler = comfy.samplers.sampler_object("euler")
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(6))
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, positive or EDIT, EMPTY, latent["samples"], disable_pbar=True, seed=0
    )
