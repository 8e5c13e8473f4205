"""Tiny random flow-matching transformers of the host's own configurations, with a clip and prompts."""

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.wan.vae import WanVAE
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from consistent_video.modules.clip_model.host.attach import inflate

from .small import lively_weights

FRAMES, CHANNELS, HEIGHT, WIDTH, TOKENS = 4, 16, 8, 6, 5
FLUX = {
    "image_model": "flux", "in_channels": CHANNELS, "out_channels": CHANNELS, "vec_in_dim": 12, "context_in_dim": 20,
    "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [8, 8, 8], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
SD3 = {
    "in_channels": CHANNELS, "out_channels": CHANNELS, "patch_size": 2, "depth": 2, "input_size": None,
    "adm_in_channels": 12, "num_patches": 400, "pos_embed_max_size": 20, "pos_embed_scaling_factor": None,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 20, "out_features": 128}},
    "x_block_self_attn_layers": [0],  # a second attention among the picture's tokens alone, as 3.5 Medium has
}  # fmt: skip
Z_IMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": CHANNELS, "dim": 256, "n_layers": 1,
    "n_refiner_layers": 1,
    "n_heads": 8, "n_kv_heads": 8, "axes_dims": [8, 12, 12], "axes_lens": [64, 64, 64], "cap_feat_dim": 20,
    "qk_norm": True, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32, "rope_theta": 256.0,
    "multiple_of": 16,
}  # fmt: skip
QWEN_IMAGE = {
    "image_model": "qwen_image", "in_channels": 4 * CHANNELS, "num_layers": 2, "attention_head_dim": 24,
    "num_attention_heads": 2, "joint_attention_dim": 20, "axes_dims_rope": (8, 8, 8),
}  # fmt: skip
CALM = 0.2  # of the velocity, so that refinements converge
LAST = "final_layer.linear", "proj_out"
GUIDANCE = 4.0  # which Flux multiplies by 1000 for the phases of waves; bfloat16 holds 4000, and not 3500
KINDS = {"Flux": (comfy.supported_models.Flux, FLUX), "SD3": (comfy.supported_models.SD3, SD3),
         "Z-Image": (comfy.supported_models.ZImage, Z_IMAGE),
         "Qwen-Image": (comfy.supported_models.QwenImage, QWEN_IMAGE)}  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float32) -> ModelPatcher:
    """Return a clip model of a family with random weights, the same at each call up to their rounding."""
    kind, unet = KINDS[name]
    config = kind(dict(unet))
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for key, value in model.diffusion_model.state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        weights[key] = drawn / value[0].numel() ** 0.5 if value.ndim > 1 else 0.1 * drawn + ("norm" in key)
        weights[key] *= CALM if key.startswith(LAST) else 1
    model.diffusion_model.load_state_dict(weights)
    devices = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return inflate(comfy.model_patcher.ModelPatcher(model, *devices))


def clip_of(frames: int = FRAMES, seed: int = 7) -> dict[str, Tensor]:
    """Return a VAE latent of a clip whose frames resemble each other."""
    clip = draw(1, CHANNELS, HEIGHT, WIDTH, seed=seed) + 0.3 * draw(frames, CHANNELS, HEIGHT, WIDTH, seed=seed + 1)
    return {"samples": clip}


def as_encoded(model: ModelPatcher, latent: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a latent with the axes that the host gives a model's."""
    return {"samples": comfy.sample.fix_empty_latent_channels(model, latent["samples"])}


def video_vae() -> comfy.sd.VAE:
    """Return a narrow VAE of Wan's structure, which is Qwen-Image's, with random weights."""
    sizes = {"dim": 8, "z_dim": CHANNELS, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": [],
             "temperal_downsample": [False, True, True], "image_channels": 3, "conv_out_channels": 3}  # fmt: skip
    shapes = {key: value.shape for key, value in WanVAE(**sizes).state_dict().items()}
    return comfy.sd.VAE(sd=lively_weights(shapes, torch.float32))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int, **given: Any) -> list[list[Any]]:
    extra = {"pooled_output": draw(1, 12, seed=seed + 50), "guidance": GUIDANCE, **given}
    return [[draw(1, TOKENS, 20, seed=seed), extra]]


SOURCE, EMPTY, EDIT = prompt(3), prompt(4), prompt(5)


def sample(
    model: ModelPatcher,
    latent: dict[str, Tensor],
    cfg: float = 2.0,
    sigmas=(0.8, 0.6),
    positive: list = EDIT,
    alike: bool = False,
) -> Tensor:
    """Sample by the host's own Euler, one step unless more levels are given; with noise that is alike in all frames."""
    latent = as_encoded(model, latent)
    noise, steps = draw(*latent["samples"].shape, seed=6), torch.tensor(sigmas)
    noise = noise[:1].expand_as(noise).contiguous() if alike else noise
    given = comfy.samplers.sampler_object("euler"), steps, positive, EMPTY, latent["samples"]
    return comfy.sample.sample_custom(model, noise, cfg, *given, disable_pbar=True, seed=0)
