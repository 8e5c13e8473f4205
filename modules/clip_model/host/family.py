"""Families of models: which the pack knows, and what each can do. All that depends on a family is said here."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from comfy.ldm.modules.attention import (
    SpatialTransformer,
    SpatialVideoTransformer,
)
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import BaseModel, ModelType, SDXLRefiner
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from torch import nn

from ..attention.spatial import Kind
from ..methods import KIND_OF, SPATIAL_KINDS

KINDS: tuple[Kind, ...] = get_args(Kind)
log = logging.getLogger(__name__)
ONE_BY_ONE = (
    "The VAE of Qwen-Image treats a batch of images as one video, whose frames it mixes or drops. Encode them one by "
    "one: Rebatch Images with batch_size 1, VAE Encode, Rebatch Latents with a batch_size of at least the number of "
    "frames."
)
FLOW_UNET = (
    "model is a UNet that is made to sample by flow matching. That is right for a checkpoint that was trained that "
    "way; with an ordinary one remove ModelSamplingSD3, or edits come out as noise."
)
DISTILLED = (
    "This model is guidance-distilled: guidance of the conditioning (FluxGuidance; 3.5 where it is not connected) is "
    "an input of the model and replaces CFG. cfg above 1 is a second guidance on top and needs the negative "
    "at twice the time; 1 is usual. A low guidance, about 1, inverts best."
)


@dataclass(frozen=True)
class Transformer:
    """What is known of transformers in whose attention the tokens of a text and of a picture meet, the text's first.

    Attributes:
        width: attribute of the network that is the width of a token.
        rest: (network, options of an attention, tokens of the picture) -> tokens after the picture's; None where the
            attention is not one of text and picture.
        is_rotary: whether keys are rotated by their position before the attention gets them.
        counted: positions of a latent whose channels ComfyUI counts together as the input's.
        is_replaceable: whether ComfyUI lets other nodes replace its blocks.
    """

    width: str
    rest: Callable[[nn.Module, Mapping[str, Any], int], int | None]
    is_rotary: bool = True
    counted: int = 1
    is_replaceable: bool = True


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: what users call it.
        models: the host's classes of it; none = image UNets with spatial transformers.
        kinds: attention across frames that it takes.
        parts: whether the parts for UNets apply: temporal modules, tuning and what needs it.
        transformer: of a transformer, None = a UNet.
        lacks: what attention across frames is not among `kinds`, and why.
        encoding: how frames are encoded, where VAE Encode does not take them as they are; sentences.
    """

    name: str
    models: tuple[str, ...] = ()
    kinds: tuple[Kind, ...] = KINDS
    parts: bool = False
    transformer: Transformer | None = None
    lacks: str = ""
    encoding: str = ""

    @property
    def attentions(self) -> list[str]:
        """What users call the attention across frames that the family takes."""
        return [name for name in SPATIAL_KINDS if KIND_OF.get(name, name) in self.kinds]


def after_references(_network: nn.Module, options: Mapping[str, Any], _picture: int) -> int | None:
    """Return how many tokens of reference pictures follow, which Flux and Qwen-Image tell."""
    return sum(options.get("reference_image_num_tokens", ()))


def after_lumina(network: nn.Module, options: Mapping[str, Any], picture: int) -> int | None:
    """Return how many tokens pad the picture's; what refines text and picture apart comes before numbered blocks."""
    return -picture % (network.pad_tokens_multiple or 1) if "block_index" in options else None


UNETS = Family("Stable Diffusion 1.x, 2.x and SDXL", parts=True)
FAMILIES = (
    UNETS,
    Family("Stable Diffusion 3", ("SD3",), transformer=Transformer("hidden_size", lambda *_: 0, is_rotary=False)),
    Family("Flux", ("Flux",), transformer=Transformer("hidden_size", after_references)),
    Family(
        "Qwen-Image",
        ("QwenImage",),
        transformer=Transformer("inner_dim", after_references, counted=4),
        encoding=ONE_BY_ONE,
    ),
    Family(
        "Z-Image and Lumina 2",
        ("Lumina2",),
        kinds=tuple(kind for kind in KINDS if kind != "fine-coarse"),
        transformer=Transformer("dim", after_lumina, is_replaceable=False),
        lacks="No FFAM: ComfyUI hands on its keys only after they are rotated by their position, and then they cannot "
        "be shrunk.",
    ),
)


def family_of(model: ModelPatcher) -> Family:
    """Return the family of a model.

    Raises:
        ValueError: it is of none.
    """
    kind = type(model.model).__name__
    known = next((family for family in FAMILIES if kind in family.models), UNETS)
    if known.transformer is None:
        check_unet(model)
        return known
    own = model.model.latent_format.latent_channels
    counted = model.model.model_config.unet_config.get("in_channels", own * known.transformer.counted)
    check_channels(model, -(-counted // known.transformer.counted))
    return known


def transformer_of(model: BaseModel) -> Transformer:
    """Return what is known of a model of a family of transformers."""
    (found,) = (family.transformer for family in FAMILIES if type(model).__name__ in family.models)
    assert found is not None, "a UNet has calls of its own"
    return found


def encoding_of(model: BaseModel) -> str:
    """Return how frames for a model are encoded, empty where VAE Encode takes them as they are; of any model."""
    return next((family.encoding for family in FAMILIES if type(model).__name__ in family.models), "")


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
            "share the structure); and without temporal modules and tuning "
            f"{', '.join(family.name for family in FAMILIES[1:])}. Load such a checkpoint."
        )
    check_channels(model, unet.in_channels)


def check_channels(model: ModelPatcher, channels: int) -> None:
    """Refuse models that take more than the latent: for inpainting, or controlled by a picture."""
    if model.model.concat_keys or channels != model.model.latent_format.latent_channels:
        raise ValueError(
            f"model takes {channels} input channels, more than the latent has: a checkpoint for inpainting or "
            "of another special kind, which Consistent Video does not know. Load the ordinary checkpoint."
        )


def is_flow_unet(model: ModelPatcher) -> bool:
    """Whether a model is a UNet that samples by flow matching, by itself or by ModelSamplingSD3."""
    sampling = model.get_model_object("model_sampling")
    return family_of(model).parts and type(sampling).calculate_denoised is CONST.calculate_denoised


def is_flow_by_itself(model: ModelPatcher) -> bool:
    """Whether a model is a flow-matching one, whatever other nodes make of it."""
    return not family_of(model).parts or model.model.model_type is ModelType.FLOW


def doubt_of_flow(model: ModelPatcher) -> str:
    """Return what to make sure of where another node makes a UNet sample by flow matching, empty for other models."""
    return FLOW_UNET if is_flow_unet(model) and not is_flow_by_itself(model) else ""


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
    if is_flow_unet(model):
        raise ValueError(
            f"{part} does not apply to a UNet that samples by flow matching, which has another path to noise. {remedy} "
            "Or take a model that predicts noise."
        )


def require_attention(model: ModelPatcher, kind: Kind) -> None:
    """Refuse an attention across frames that a model's family does not take; ValueError with those that it takes."""
    family, network = family_of(model), model.model.diffusion_model
    if family.transformer is not None and not hasattr(network, family.transformer.width):
        raise ValueError(
            f"STAM/FFAM Patch: {type(network).__name__} is not one of ComfyUI's networks, so its frames cannot be "
            f"connected. Load {family.name} by ComfyUI's own loader, or set attention_strength to 0."
        )
    if kind not in family.kinds:
        name = next(name for name in SPATIAL_KINDS if KIND_OF.get(name, name) == kind)
        raise ValueError(
            f"STAM/FFAM Patch: {name} does not apply to {family.name}. {family.lacks} Set spatial to one of "
            f"{', '.join(family.attentions)}."
        )


def guidance_of(model: ModelPatcher) -> str:
    """Return what CFG means for a model that is guidance-distilled, empty for others."""
    params = getattr(model.model.diffusion_model, "params", None)
    return DISTILLED if getattr(params, "guidance_embed", False) else ""


def warn_of_guidance(model: ModelPatcher, cfg: float) -> None:
    """Say in the log what CFG means where a guidance-distilled model is sampled with another than 1."""
    if guidance_of(model) and cfg != 1:
        log.warning(guidance_of(model))
