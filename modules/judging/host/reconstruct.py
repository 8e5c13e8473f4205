"""How well a model brings an inverted clip back, measured through the host's own sampler and autoencoder."""

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...diffusion.host.latent import as_frames
from ...inversion.host.invert import INVERSION, trajectory
from ...inversion.inversion import Inversion
from ...sampling.host import SampleSettings, sample_clip
from ..reconstruction import Reconstruction, drift, psnr, remedies, ssim


def decode(vae: VAE, samples: Tensor) -> Tensor:
    """Decode a clip to frames (f, 3, h, w), 0 ... 1."""
    samples = as_frames(samples)
    images = vae.decode(samples.unsqueeze(2) if vae.latent_dim == 3 else samples)
    return images.flatten(0, -4).movedim(-1, 1).cpu().clamp(0, 1)


def reconstruct(
    model: ModelPatcher, vae: VAE, positive: list, negative: list, latent: dict[str, Any], cfg: float
) -> tuple[Tensor, Reconstruction, list[str]]:
    """Sample an inverted clip back and compare it with what the autoencoder alone makes of the clip.

    Args:
        model: the clip model it was inverted with.
        vae: autoencoder of the clip.
        positive: conditioning it was inverted with.
        negative: of the other side of the guidance, without effect at CFG 1.
        latent: LATENT from the inversion.
        cfg: classifier-free guidance.

    Returns:
        Reconstructed frames (f, h, w, 3), what they lost, and what would make it better.
    """
    states: list[Tensor] = []

    def keep(_step: int, x: Tensor) -> None:
        states.append(x.float().cpu())

    sampled, _ = sample_clip(model, positive, negative, latent, SampleSettings(cfg), keep)
    inversion: Inversion = latent[INVERSION]
    frames, alone = (decode(vae, samples) for samples in (sampled["samples"], inversion.source))
    drifted = drift(torch.stack(states), trajectory(model.model, inversion)[1:])
    found = Reconstruction(psnr(frames, alone), ssim(frames, alone), drifted)
    made = inversion.settings
    is_plain = not made.relates(len(frames))
    how = made.refinements, made.steps, made.method, made.solver
    advice = remedies(found, cfg, made.cfg, is_plain, *how)
    return frames.movedim(1, -1), found, advice
