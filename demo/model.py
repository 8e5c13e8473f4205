"""The tiny text-to-image model, built from the host's own classes, and its files."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS = Path(__file__).parent / "weights"
LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)


def load_host(folder: Path, cpu: bool) -> None:
    """Make the ComfyUI of a folder importable, with attention kernels whose backward pass takes every shape."""
    if not (folder / "comfy").is_dir():
        raise ValueError(f"no ComfyUI in {folder}")
    sys.path.insert(0, str(folder))
    from comfy.cli_args import args

    args.cpu = cpu
    args.use_pytorch_cross_attention = True
    import comfy.ops

    backends = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", [])
    backends[:] = [backend for backend in backends if backend.name != "CUDNN_ATTENTION"]


def load_config(folder: Path = WEIGHTS) -> dict:
    """Read the architecture and the noise schedule."""
    return json.loads((folder / "config.json").read_text())


@dataclass(frozen=True)
class DemoModel:
    """The three networks and the tokenizer.

    Args:
        unet: predicts the noise in model latents (b, 4, 16, 16).
        clip: turns tokens (b, 77) into text states (b, 77, 64), its first output.
        vae: TAESD; its encode and decode work on pictures in [-1, 1] and VAE latents.
        latent_scale: a model latent is the VAE latent times this.
    """

    unet: nn.Module
    clip: nn.Module
    vae: nn.Module
    latent_scale: float

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Turn pictures (b, 3, h, w) in [0, 1] into model latents (b, 4, h/8, w/8)."""
        return self.vae.encode(2 * pictures - 1) * self.latent_scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn model latents into pictures in [0, 1]."""
        return (0.5 + 0.5 * self.vae.decode(latents / self.latent_scale)).clamp(0, 1)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Turn tokens (b, 77) into the text states (b, 77, d) of the last layer, normalised."""
        return self.clip.text_model(tokens)[0]

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return the noise in model latents at integer timesteps (b), given text states."""
        return self.unet(latents, timesteps, text)


def build_model(config: dict, device: torch.device) -> DemoModel:
    """Build the networks with fresh weights; call load_host first."""
    from comfy.taesd.taesd import TAESD

    unet, clip, vae = build_unet(config), build_clip(config), reset(TAESD())
    return DemoModel(unet.to(device), clip.to(device), vae.to(device), config["latent_scale"])


def build_unet(config: dict) -> nn.Module:
    """Build a UNet whose residual branches and output begin at zero."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    unet = reset(UNetModel(**config["unet"]))
    zeroed = [block.out_layers[-1] for block in unet.modules() if isinstance(block, ResBlock)]
    zeroed += [block.proj_out for block in unet.modules() if hasattr(block, "proj_out")]
    for layer in [*zeroed, unet.out[-1]]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return unet


def build_control(config: dict, unet: nn.Module) -> nn.Module:
    """Build a ControlNet that begins as the UNet's first half and adds nothing yet."""
    from comfy.cldm.cldm import ControlNet

    net = reset(ControlNet(hint_channels=3, **config["unet"]))
    for layer in (*net.zero_convs, net.middle_block_out):
        for value in layer.parameters():
            nn.init.zeros_(value)
    own = net.state_dict()
    net.load_state_dict(own | {key: value for key, value in unet.state_dict().items() if key in own})
    return net


def build_clip(config: dict) -> nn.Module:
    """Build the text encoder; its layers add in place, so the norms keep a copy of their input."""
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip

    full = json.loads(Path(comfy.sd1_clip.__file__).with_name("sd1_clip_config.json").read_text())
    clip = comfy.clip_model.CLIPTextModel(full | config["clip_l"], torch.float32, "cpu", comfy.ops.manual_cast)
    clip = reset(clip)
    for layer in clip.text_model.encoder.layers:
        for norm in (layer.layer_norm1, layer.layer_norm2):
            norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(),))
    return clip


def reset(network: nn.Module) -> nn.Module:
    """Fill every weight, which the host's layers leave uninitialised."""
    for layer in network.modules():
        for kind in LAYERS:
            if isinstance(layer, kind):
                kind.reset_parameters(layer)
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.05)
    return network.requires_grad_(True)


def tokenize(texts: list[str]) -> torch.Tensor:
    """Turn texts into tokens (b, 77) by the host's SD1.x tokenizer."""
    from comfy.sd1_clip import SDTokenizer

    tokenizer = SDTokenizer()
    rows = [[pair[0] for pair in tokenizer.tokenize_with_weights(text)[0]] for text in texts]
    return torch.tensor(rows)


def save_weights(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a network in float16 with a note on where it comes from."""
    state = {name: value.detach().half().cpu().contiguous() for name, value in module.state_dict().items()}
    save_file(state, path, metadata | {"format": "pt", "license": "Apache-2.0"})


def load_model(folder: Path, device: torch.device) -> DemoModel:
    """Build the networks and fill them from a folder; call load_host first."""
    model = build_model(load_config(folder), device)
    for name in ("unet", "clip", "vae"):
        getattr(model, name).load_state_dict(load_file(folder / f"{name}.safetensors"))
    return model
