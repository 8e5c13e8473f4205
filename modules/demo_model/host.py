"""The demo model: a tiny text-to-image model of SD1.x's shape that comes with the pack, and the clips to try it on."""

import json
import shutil
from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.utils
import folder_paths
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import BaseModel, ModelType
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import ModelSamplingDiscrete
from torch import Tensor

from ..diffusion.host.latent import UNET_STEPS
from ..diffusion.path import PATHS, PathKind

WEIGHTS, CLIPS = (Path(__file__).parents[2] / "demo" / name for name in ("weights", "clips"))


class DemoLatents(comfy.latent_formats.SD15):
    """Latents of the demo model's own autoencoder, which the host's quick previews for Stable Diffusion do not fit."""

    latent_rgb_factors = None
    taesd_decoder_name = None


class FlowUNet(UNetModel):
    """The demo UNet in the coordinates of a flow: it gives the velocity that its noise means, without any training.

    Where x = (1 - t) x_0 + t eps, a model that predicts noise knows the state as x / (1 - t) = x_0 + sigma eps with
    sigma = t / (1 - t). Above its highest sigma the velocity is that of the highest.
    """

    def __init__(self, *given: Any, **options: Any):
        super().__init__(*given, **options)
        self.training_levels = (ModelSamplingDiscrete(),)  # in a tuple: no part of the weights

    def forward(self, x: Tensor, timesteps: Tensor, *given: Any, **options: Any) -> Tensor:
        """Return the velocity, float32, at the states x (b, c, h, w) and the timesteps 1000 t, (b,)."""
        (levels,) = self.training_levels
        t = timesteps.float() / UNET_STEPS
        highest = levels.sigma_max.to(t)
        reached = t.clamp(max=highest / (1 + highest))  # near 1 the noise tells little of the velocity
        scaled = x.float() / spread(t)
        noise = super().forward(scaled.to(x.dtype), levels.timestep(reached / (1 - reached)), *given, **options)
        state = scaled * spread(reached)
        return PATHS["flow"].to_direction(state, noise.float(), reached.view(-1, 1, 1, 1))


def spread(t: Tensor) -> Tensor:
    """Return the standard deviation of a flow's states at the times t, where that of clips and noise is 1."""
    return (t**2 + (1 - t) ** 2).sqrt().view(-1, 1, 1, 1)


def demo_config() -> dict[str, Any]:
    """Return the architecture: "unet" and "clip_l" are configurations of the host's classes."""
    return json.loads((WEIGHTS / "config.json").read_text())


def load_demo_unet(path: PathKind = "noise", disable_dynamic: bool = False) -> ModelPatcher:
    """Load the UNet, by its path to noise; also the host's way to load it a second time."""
    weights = comfy.utils.load_torch_file(str(WEIGHTS / "unet.safetensors"), safe_load=True)
    config = comfy.supported_models.SD15(demo_config()["unet"])
    device = comfy.model_management.get_torch_device()
    dtype = comfy.model_management.unet_dtype(device, supported_dtypes=config.supported_inference_dtypes)
    manual_cast = comfy.model_management.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, manual_cast)
    config.latent_format = DemoLatents()
    if path == "flow":
        model = BaseModel(config, ModelType.FLOW, unet_model=FlowUNet)
    else:
        model = config.get_model(weights, "")
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, device, comfy.model_management.unet_offload_device())
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_demo_unet, (path,))
    return patcher


def load_demo_model(path: PathKind = "noise") -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Load UNet, text encoder and autoencoder, as the host's checkpoint loader returns them; see `load_demo_unet`."""
    clip = comfy.sd.load_text_encoder_state_dicts(
        [comfy.utils.load_torch_file(str(WEIGHTS / "clip.safetensors"), safe_load=True)],
        clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION,
        model_options={"model_config": dict(demo_config()["clip_l"])},
    )
    return load_demo_unet(path), clip, load_demo_vae()


def load_demo_vae() -> comfy.sd.VAE:
    """Load the autoencoder, small enough to decode previews."""
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(WEIGHTS / "vae.safetensors"), safe_load=True))


def load_demo_controlnet() -> comfy.controlnet.ControlNet:
    """Load the ControlNet for edges, as the host returns one; its own loader knows no structure this narrow."""
    weights = comfy.utils.load_torch_file(str(WEIGHTS / "control.safetensors"), safe_load=True)
    device = comfy.model_management.get_torch_device()
    dtype = comfy.model_management.unet_dtype(device)
    manual_cast = comfy.model_management.unet_manual_cast(dtype, device)
    operations = comfy.ops.pick_operations(dtype, manual_cast)
    made = {"hint_channels": 3, "dtype": dtype, "device": comfy.model_management.unet_offload_device()}
    net = comfy.cldm.cldm.ControlNet(**demo_config()["unet"], **made, operations=operations)
    net.load_state_dict(weights)
    return comfy.controlnet.ControlNet(net.eval(), load_device=device, manual_cast_dtype=manual_cast)


def list_demo_clips() -> list[str]:
    """Return the names of the clips that come with the pack."""
    return sorted(path.name for path in CLIPS.glob("*.mp4"))


def show_demo_clip(file: str) -> dict[str, str]:
    """Copy a clip into the host's folder for temporary files, from which the editor can show it; returns its place."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(CLIPS / file, folder / file)
    return {"filename": file, "subfolder": "", "type": "temp"}
