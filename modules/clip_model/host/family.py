"""Families of models: which the pack knows, and what each can do. All that depends on a family is said here."""

from dataclasses import dataclass

from comfy.ldm.modules.attention import (
    SpatialTransformer,
    SpatialVideoTransformer,
)
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import SDXLRefiner
from comfy.model_patcher import ModelPatcher

DISTILLED = (
    "This model is guidance-distilled: guidance of the conditioning (FluxGuidance; 3.5 where it is not connected) is "
    "an input of the model and replaces CFG. cfg above 1 is a second guidance on top and needs the negative "
    "at twice the time; 1 is usual. A low guidance, about 1, inverts best."
)


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: what users call it.
        models: the host's classes of it; none = image UNets with spatial transformers.
        parts: whether the parts for UNets apply: attention across frames, temporal modules, tuning and what needs it.
        why_not: why a clip of it cannot be inverted, with the remedy; empty = it can.
    """

    name: str
    models: tuple[str, ...] = ()
    parts: bool = False
    why_not: str = ""


UNETS = Family("Stable Diffusion 1.x, 2.x and SDXL", parts=True)
FAMILIES = (
    UNETS,
    Family("Stable Diffusion 3", ("SD3",)),
    Family("Flux", ("Flux",)),
    Family("Z-Image and Lumina 2", ("Lumina2",)),
    Family(
        "Qwen-Image",
        ("QwenImage",),
        why_not="Its latents have an axis of time, along which its VAE takes a batch of pictures for a video, and "
        "clips here are batches of pictures. Load a model of another family.",
    ),
)


def family_of(model: ModelPatcher) -> Family:
    """Return the family of a model.

    Raises:
        ValueError: it is of none, or a clip of it cannot be inverted.
    """
    kind = type(model.model).__name__
    known = [family for family in FAMILIES if kind in family.models]
    if not known:
        check_unet(model)
        return UNETS
    if known[0].why_not:
        raise ValueError(f"model is {known[0].name}, which Consistent Video cannot inflate. {known[0].why_not}")
    own = model.model.latent_format.latent_channels
    check_channels(model, model.model.model_config.unet_config.get("in_channels", own))
    return known[0]


def check_unet(model: ModelPatcher) -> None:
    """Refuse models that are not image UNets with spatial transformers, saying what is supported."""
    unet = model.model.diffusion_model
    if isinstance(model.model, SDXLRefiner):
        raise ValueError(
            "model is SDXL's refiner, which only finishes pictures at low noise levels and cannot take a clip to noise "
            "and back. Load the base checkpoint; the edited frames may be refined afterwards, one by one."
        )
    kinds = {type(module) for module in unet.modules()}
    if not isinstance(unet, UNetModel) or SpatialTransformer not in kinds or SpatialVideoTransformer in kinds:
        raise ValueError(
            f"model is {type(model.model).__name__} ({type(unet).__name__}), which Consistent Video cannot inflate. "
            "Supported are image UNets with SpatialTransformer blocks: the Stable Diffusion 1.x family (SD2.x and SDXL "
            "share the structure); and for inversion and sampling "
            f"{', '.join(family.name for family in FAMILIES[1:] if not family.why_not)}. Load such a checkpoint."
        )
    check_channels(model, unet.in_channels)


def check_channels(model: ModelPatcher, channels: int) -> None:
    """Refuse models that take more than the latent: for inpainting, or controlled by a picture."""
    if model.model.concat_keys or channels != model.model.latent_format.latent_channels:
        raise ValueError(
            f"model takes {channels} input channels, more than the latent has: a checkpoint for inpainting or "
            "of another special kind, which Consistent Video does not know. Load the ordinary checkpoint."
        )


def require_unet(model: ModelPatcher, part: str, remedy: str) -> None:
    """Refuse a model to which a part of the pack does not apply.

    Args:
        model: clip model or image model.
        part: "One-Shot Tune", as a user calls it.
        remedy: what to do, a sentence.

    Raises:
        ValueError: naming the family and the part.
    """
    family = family_of(model)
    if not family.parts:
        raise ValueError(
            f"{part} does not apply to {family.name}: it belongs to UNets of the Stable Diffusion 1.x family, and "
            f"flow-matching transformers have other layers and another path to noise. {remedy}"
        )


def guidance_of(model: ModelPatcher) -> str:
    """Return what CFG means for a model that is guidance-distilled, empty for others."""
    params = getattr(model.model.diffusion_model, "params", None)
    return DISTILLED if getattr(params, "guidance_embed", False) else ""
