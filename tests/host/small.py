"""Small things of the host's own types for in-process tests: models, a clip, prompts."""

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.cldm.cldm
import comfy.controlnet
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
from comfy.supported_models_base import BASE
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
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
POOLED = 20
SD2_UNET = {
    **UNET,
    "model_channels": 64,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 3],
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "context_dim": 40,
    "use_linear_in_transformer": True,
}
SDXL_UNET = {
    **SD2_UNET,
    "transformer_depth": [0, 1, 2],
    "transformer_depth_output": [0, 0, 1, 1, 2, 2],
    "transformer_depth_middle": 2,
    "context_dim": 56,
    "num_classes": "sequential",
    "adm_in_channels": POOLED + 6 * 256,
}
FRAMES, HEIGHT, WIDTH, TOKENS = 5, 12, 8, 7
Fill = Callable[..., dict[str, Tensor]]


class Small(comfy.supported_models.SD15):
    """SD1.5's structure with narrow channels; eps- or v-prediction."""

    kind = ModelType.EPS

    def model_type(self, state_dict, prefix=""):
        return self.kind


class SmallV(Small):
    kind = ModelType.V_PREDICTION


class SmallSD2(comfy.supported_models.SD20):
    """SD2.x's structure with narrow channels: v-prediction, heads of 64 channels, linear layers about the blocks."""

    def model_type(self, state_dict, prefix=""):
        return ModelType.V_PREDICTION


FAMILIES = {"SD1.x": (Small, UNET), "SD2.x": (SmallSD2, SD2_UNET), "SDXL": (comfy.supported_models.SDXL, SDXL_UNET)}


def unet_shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    """Return the shapes of a UNet's weights, also where the host would make layers without weights."""
    return shapes_of(json.dumps(config))


@cache
def shapes_of(config: str) -> dict[str, torch.Size]:
    with mock.patch.object(comfy.memory_management, "aimdo_enabled", False), torch.device("meta"):
        unet = UNetModel(**json.loads(config), num_heads=8)
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


def write_sd15_controlnet(path: Path) -> None:
    """Write a randomly filled ControlNet for `write_sd15_checkpoint`'s UNet, as the core loader takes it."""
    net = comfy.cldm.cldm.ControlNet(hint_channels=3, num_heads=8, **SD15_UNET)
    weights = random_weights({key: value.shape for key, value in net.state_dict().items()}, 0.02, torch.float16)
    save_file({f"control_model.{key}": value.contiguous() for key, value in weights.items()}, path)


def lively_weights(shapes: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights of these shapes that keep the size of what passes through, the same at each call."""
    weights = {}
    for key, value in random_weights(shapes, 1, torch.float32).items():
        if value.ndim > 1:
            weights[key] = value / value[0].numel() ** 0.5
        else:
            weights[key] = 0.1 * value + key.endswith("weight")  # the weights of norms
    return {key: value.to(dtype) for key, value in weights.items()}


def make_model(
    kind: type[BASE], unet: dict[str, Any], fill: Fill, dtype: torch.dtype, disable_dynamic: bool = False
) -> ModelPatcher:
    """Return a model that the host can load again.

    Args:
        kind: of the host's model configurations.
        unet: what the host would detect in a checkpoint.
        fill: makes its weights, the same at each call.
        dtype: of the weights.
        disable_dynamic: whether the host is to hold all weights at once, as it asks where it loads again.
    """
    config = kind(unet)
    config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    model = config.get_model({}, "")
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, device, comfy.model_management.unet_offload_device())
    model.load_model_weights(fill(unet_shapes(unet), dtype=dtype), "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (partial(make_model, kind, unet, fill, dtype), ())
    return patcher


def random_model(kind: type[Small] = Small, dtype: torch.dtype = torch.float32) -> ModelPatcher:
    """Return a model of SD1.5's structure with random weights, the same at each call."""
    return make_model(kind, UNET, partial(random_weights, std=0.1), dtype)


def family_model(name: str, dtype: torch.dtype = torch.float32) -> ModelPatcher:
    """Return a model of a family's structure with lively weights, by its name in FAMILIES."""
    return make_model(*FAMILIES[name], lively_weights, dtype)


def control_net() -> comfy.controlnet.ControlNet:
    """Return a ControlNet of the small model's structure with random weights, its zero convolutions too."""
    net = comfy.cldm.cldm.ControlNet(hint_channels=3, num_heads=8, **UNET)
    net.load_state_dict(random_weights({key: value.shape for key, value in net.state_dict().items()}, 0.1, net.dtype))
    device = comfy.model_management.get_torch_device()
    return comfy.controlnet.ControlNet(net, load_device=device)


def in_windows(model: ModelPatcher, length: int, schedule: str = "standard_static", **given) -> ModelPatcher:
    """Return a model that is shown so many frames at a time, which overlap by one, by the host's node."""
    given = {"causal_window_fix": False, "fuse_method": "pyramid", **given}
    return ContextWindowsManualNode.execute(
        model, length, 1, schedule, context_stride=1, closed_loop=False, dim=0, freenoise=False, **given
    ).args[0]


def clip_latent(frames: int = FRAMES, seed: int = 2) -> dict[str, Tensor]:
    """Return a VAE latent of a clip whose frames resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 4, HEIGHT, WIDTH, generator=generator)
    change = torch.randn(frames, 4, HEIGHT, WIDTH, generator=generator)
    return {"samples": (base + 0.3 * change) / 0.18215}


def prompt(seed: int, width: int = UNET["context_dim"]) -> list[list[Any]]:
    """Return a conditioning of random text states, with the pooled one that SDXL takes."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, TOKENS, width, generator=generator)
    return [[states, {"pooled_output": torch.randn(1, POOLED, generator=generator)}]]


SOURCE, EMPTY, EDIT = prompt(3), prompt(4), prompt(5)


def draw_noise(latent: dict[str, Tensor]) -> Tensor:
    """Return the noise that `sample` begins with."""
    return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(6))


def sample(
    model: ModelPatcher,
    latent: dict[str, Tensor],
    cfg: float = 3.0,
    positive: list | None = None,
    negative: list | None = None,
    sigmas: Sequence[float] = (5.0, 2.0, 0.5, 0.0),
) -> Tensor:
    """Sample a few steps of the host's own Euler from a fixed noisy latent."""
    prompts, sampler = (positive or EDIT, negative or EMPTY), comfy.samplers.sampler_object("euler")
    noise, steps = draw_noise(latent), torch.tensor(sigmas)
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, steps, *prompts, latent["samples"], disable_pbar=True, seed=0
    )
