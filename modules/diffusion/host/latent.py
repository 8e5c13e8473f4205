"""LATENT dictionaries and what a model says of its noise."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST, EPS, V_PREDICTION
from torch import Tensor
from torch.nn import functional as F

from ...clip_model.host.family import encoding_of, family_of, is_flow_by_itself
from ...sockets.pictures import check_numbers, read_mask
from ..ddim import Prediction

log = logging.getLogger(__name__)
UNET_STEPS = 1000  # the timestep of noise alone
INVERSION = "consistent_video_inversion"  # the key of a LATENT that holds an inversion, see inversion/host/invert.py


def prediction_of(model: ModelPatcher) -> Prediction:
    """Return what a model's UNet predicts.

    Raises:
        ValueError: it predicts neither eps nor v nor the velocity of a flow, has no table of noise levels, or is
            made to sample as it cannot.
    """
    sampling = model.get_model_object("model_sampling")
    prediction = prediction_by(sampling)
    if prediction != "flow" and is_flow_by_itself(model):
        raise ValueError(
            f"model is {type(model.model).__name__}, a flow-matching model, and is made to sample without flow "
            "matching. Remove the ModelSampling node before it."
        )
    if prediction == "flow" and family_of(model).parts and sampling.timestep(torch.tensor(1.0)) != UNET_STEPS:
        raise ValueError(
            "model is a UNet that is made to sample by flow matching and is given times from 0 to 1, but UNets expect "
            f"0 to {UNET_STEPS}. Put ModelSamplingSD3 in place of the ModelSampling node before it."
        )
    return prediction


def prediction_by(sampling: Any) -> Prediction:
    """Return what a model with some `model_sampling` predicts, see `prediction_of`."""
    if getattr(sampling, "sigmas", None) is not None:
        known: dict[Any, Prediction] = {EPS.calculate_denoised: "eps", V_PREDICTION.calculate_denoised: "v",
                                       CONST.calculate_denoised: "flow"}  # fmt: skip
        prediction = known.get(type(sampling).calculate_denoised)
        if prediction is not None:
            return prediction
    raise ValueError(
        f"model samples by {', '.join(base.__name__ for base in type(sampling).__bases__)}; Consistent Video knows "
        "eps-prediction, v-prediction and flow matching on a table of noise levels. Remove the ModelSampling node "
        "before it, or load a checkpoint of the Stable Diffusion 1.x family."
    )


def sigma_table(model: ModelPatcher) -> Tensor:
    """Return sigma of each training timestep, ascending, on the CPU."""
    return model.get_model_object("model_sampling").sigmas.cpu()


def as_frames(latents: Tensor) -> Tensor:
    """Return latents (f, c, 1, h, w), of an image model whose VAE knows time, as (f, c, h, w); others as they are."""
    return latents.squeeze(2) if latents.ndim == 5 else latents


def as_host(model: BaseModel, latents: Tensor) -> Tensor:
    """Return latents (f, c, h, w) as the host has a model's: where these have an axis of time, (f, c, 1, h, w)."""
    return as_frames(latents).unsqueeze(2) if model.latent_format.latent_dimensions == 3 else latents


def to_model_latent(model: BaseModel, latents: Tensor) -> Tensor:
    """Return VAE latents as model latents, both (f, c, h, w), in float32."""
    return as_frames(model.process_latent_in(as_host(model, latents.float())))


def to_vae_latent(model: BaseModel, latents: Tensor) -> Tensor:
    """Return model latents as VAE latents, both (f, c, h, w)."""
    return as_frames(model.process_latent_out(as_host(model, latents)))


def image_latents(latent: Mapping[str, Any], name: str = "latent", encoding: str = "") -> Tensor:
    """Return the samples of a LATENT, shape (f, c, h, w).

    Args:
        latent: of the host.
        name: of the input.
        encoding: how the frames are to be encoded, if that is known; sentences.

    Raises:
        ValueError: they are not a batch of image latents, or hold no frame or values that are not finite.
    """
    samples = latent["samples"]
    if not isinstance(samples, Tensor) or as_frames(samples).ndim != 4:
        shape = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        message = (
            f"{name} has shape {shape}; a clip of image latents (frames, channels, height, width) is needed. Encode "
            f"the frames with the VAE of an image model; that of a video model mixes them. {encoding}"
        )
        raise ValueError(message.rstrip())
    check_numbers(samples, name, "Encode the frames with the VAE of the model; if it recurs, in float32.")
    return as_frames(samples)


def fitting_latents(model: ModelPatcher, latent: dict[str, Any], num_frames: int, name: str = "latent") -> Tensor:
    """Return the samples of a LATENT of a model's, whatever they show, shape (f, c, h, w).

    Raises:
        ValueError: they are not a batch of image latents, or have other axes, frames or channels.
    """
    encoding, known = encoding_of(model.model), model.get_model_object("latent_format")
    samples, axes = image_latents(latent, name, encoding), known.latent_dimensions + 2
    if latent["samples"].ndim != axes:
        message = (
            f"{name} has shape {tuple(latent['samples'].shape)} and the model's latents have {axes} axes. Encode the "
            f"frames with the VAE that belongs to the model. {encoding}"
        )
        raise ValueError(message.rstrip())
    if num_frames and len(samples) != num_frames:
        raise ValueError(
            f"{name} has {len(samples)} frames and Inflate UNet says num_frames = {num_frames}. Make them equal, or "
            "set num_frames to 0."
        )
    if samples.shape[1] != known.latent_channels:
        raise ValueError(
            f"{name} has {samples.shape[1]} channels and the model's latents have {known.latent_channels}. Encode the "
            "frames with the VAE that belongs to the model."
        )
    return samples


def is_inverted(latent: Mapping[str, Any]) -> bool:
    """Whether the samples of a LATENT are an inversion, or cut or changed from one, and not a clip sampled from it.

    The host's nodes hand the key INVERSION on with whatever they make of the samples. An inversion has one of its
    frames still, or where these were changed the spread of noise, far above a clip's. A flow's noise spreads no farther
    than its clips, but has their smoothness no more.
    """
    if INVERSION not in latent:
        return False
    samples = latent["samples"].float()
    start, source = (value.to(samples) for value in (latent[INVERSION].start, latent[INVERSION].source))
    is_noise = samples.std() > max(2 * source.std(), (start.std() * source.std()).sqrt())
    if latent[INVERSION].kind == "flow":
        clip, noise = roughness(source), roughness(start)
        is_noise = noise > 1.5 * clip and roughness(samples) > clip + 0.75 * (noise - clip)
    return has_frame_of(samples, start) or bool(is_noise)


def roughness(latents: Tensor) -> Tensor:
    """Return the mean square difference of neighbouring values of latents against any two's: 1 = white noise."""
    apart = torch.stack([latents.diff(dim=axis).square().mean() for axis in (-2, -1)])
    return apart.mean() / (2 * latents.var(dim=(-2, -1)).mean())


def has_frame_of(samples: Tensor, start: Tensor) -> bool:
    """Whether samples have a frame of an inversion's start, up to what half precision changes; both VAE latents."""
    samples = as_frames(samples)
    if samples.shape[1:] != start.shape[1:]:
        return False
    frames = start.to(samples.device).float().flatten(1)
    apart = torch.cdist(samples.float().flatten(1), frames).amin()
    return bool(apart <= 0.01 * frames.norm(dim=1).mean())


def clip_latent(model: ModelPatcher, latent: dict[str, Any], num_frames: int, name: str = "latent") -> Tensor:
    """Return a clip's VAE latent, shape (f, c, h, w).

    Raises:
        ValueError: it is not a batch of image latents of one clip, is empty or masked, or is an inversion.
    """
    samples = fitting_latents(model, latent, num_frames, name)
    if "noise_mask" in latent:
        raise ValueError(
            f"{name} has a noise mask, from Set Latent Noise Mask or VAE Encode (for Inpainting), which would have no "
            "effect. Take the latent from VAE Encode; connect the mask to Smooth Sample to edit a part of the "
            "pictures, to One-Shot Tune to tune on it."
        )
    if not samples.any():
        raise ValueError(f"{name} is an empty latent, all zeros. Encode the frames of the clip with the VAE.")
    if is_inverted(latent):
        raise ValueError(
            f"{name} is an inversion, which is noise. Connect the latent of the clip that was inverted, from VAE "
            "Encode, or the edited clip."
        )
    if len(samples) == 1 and encoding_of(model.model):
        log.warning("%s has one frame. If more were encoded, they are lost. %s", name, encoding_of(model.model))
    return samples


def to_positions(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask of pictures as weights of a latent's positions, shape (f, 1, h, w).

    Args:
        mask: shape (f or 1, height, width) or (height, width), 0 ... 1.
        like: latent of the clip, shape (f, c, h, w).

    Raises:
        ValueError: it is not a mask, or has other frames than the clip.
    """
    mask = read_mask(mask)
    if len(mask) not in (1, len(like)):
        raise ValueError(
            f"mask has {len(mask)} frames and the clip {len(like)}. Give one for all frames or one for each."
        )
    weights = F.interpolate(mask.clone().to(like)[:, None], size=like.shape[-2:], mode="area")
    return weights.expand(len(like), -1, -1, -1)
