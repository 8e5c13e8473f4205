"""Clip UNets: what is attached to a host MODEL so that its batch is a clip."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.model_patcher
import torch
from comfy.ldm.modules.attention import (
    BasicTransformerBlock,
    SpatialTransformer,
    SpatialVideoTransformer,
    optimized_attention,
)
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..attention.fine_coarse import COPIED_BYTES
from ..attention.spatial import SpatialConfig, attend_across_frames, copied_keys
from ..chunks import apply_in_chunks
from ..frames import frames_per_clip
from ..temporal import TemporalConfig, TemporalModule

KEY = "consistent_video"
ALWAYS = (math.inf, 0.0)
FEED_FORWARD = 16  # activations for each of its input: GEGLU's halves, the gate's GELU, the product; 4 times each


@dataclass(frozen=True)
class Block:
    """A transformer block of a UNet: the host's name for its place, its path in the UNet, its width."""

    place: tuple[str, int]
    index: int
    path: str
    dim: int
    heads: int


def transformer_blocks(unet: nn.Module) -> list[Block]:
    """Return the transformer blocks of a UNet in the order of its modules."""
    blocks = []
    for path, module in unet.named_modules():
        if isinstance(module, BasicTransformerBlock):
            part = path.split(".")
            kind = part[0].removesuffix("_blocks").removesuffix("_block")
            place = (kind, 0 if kind == "middle" else int(part[1]))
            blocks.append(Block(place, int(part[-1]), path, module.norm1.normalized_shape[0], module.n_heads))
    return blocks


class TemporalBank(nn.Module):
    """The temporal modules of a UNet, one for each transformer block.

    Args:
        blocks: of the UNet.
        config: of every module.
        tensors: their weights, named as `tensors` returns them; None = as they are before tuning, always the same.

    Attributes:
        origin: the tensors given, exact where the modules are cast to half precision.
    """

    def __init__(self, blocks: list[Block], config: TemporalConfig, tensors: Mapping[str, Tensor] | None = None):
        super().__init__()
        generator = torch.Generator().manual_seed(0) if tensors is None else None
        self.config, self.is_tuned, self.origin = config, tensors is not None, tensors
        self.paths = [block.path for block in blocks]
        self.places = {(block.place, block.index): i for i, block in enumerate(blocks)}
        self.bank = nn.ModuleList(TemporalModule(b.dim, b.heads, config, generator) for b in blocks)
        if tensors is not None:
            for path, module in zip(self.paths, self.bank, strict=True):
                module.load_state_dict({name: tensors[temporal_key(path, name)] for name in module.state_dict()})

    def at(self, place: tuple[str, int], index: int) -> TemporalModule:
        """Return the module that follows a block."""
        return self.bank[self.places[place, index]]

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of the weights on the CPU by the host's block paths."""
        return {
            temporal_key(path, name): value
            for path, module in zip(self.paths, self.bank, strict=True)
            for name, value in module.tensors().items()
        }


def temporal_key(path: str, name: str) -> str:
    """Return the name in a tune of a weight of the temporal module that follows a block."""
    return f"diffusion_model.{path}.attn_temp.{name}"


@dataclass(frozen=True)
class ClipSettings:
    """How a UNet call is a clip; travels in the model's transformer options.

    Attributes:
        num_frames: frames per clip, 0 = all rows of one conditioning.
        spatial, spatial_strength: self-attention across frames and its weight against the base model's; None = the
            base model's.
        temporal, temporal_strength: temporal modules and the factor of what they add; None = none.
        percents: start and end of sampling, 0 ... 1, between which both act; outside, the base model is alone.
        sigmas: the noise levels of these, highest first.
        tunes: what tunes are applied, by their digests.
        tuned_frames: frames of the clip that the last of them was made on, 0 = none.
        rebuilds: whether a backward concatenates keys and values again, instead of keeping them.
        recomputes: whether a backward computes activations of feed-forwards and temporal modules again.
    """

    num_frames: int = 0
    spatial: SpatialConfig | None = None
    spatial_strength: float = 1.0
    temporal: TemporalBank | None = None
    temporal_strength: float = 1.0
    percents: tuple[float, float] = (0.0, 1.0)
    sigmas: tuple[float, float] = ALWAYS
    tunes: tuple[str, ...] = ()
    tuned_frames: int = 0
    rebuilds: bool = False
    recomputes: bool = False


def clip_settings(model: ModelPatcher) -> ClipSettings:
    """Return the clip settings of an inflated model.

    Raises:
        ValueError: the model is not inflated.
    """
    settings = model.model_options["transformer_options"].get(KEY)
    if settings is None:
        raise ValueError("model is an image model. Connect it through Inflate UNet first, so that its batch is a clip.")
    return settings


def check_supported(model: ModelPatcher) -> None:
    """Refuse models that are not image UNets with spatial transformers.

    Raises:
        ValueError: naming what the model is and what is supported.
    """
    unet = model.model.diffusion_model
    kinds = {type(module) for module in unet.modules()}
    if not isinstance(unet, UNetModel) or SpatialTransformer not in kinds or SpatialVideoTransformer in kinds:
        raise ValueError(
            f"model is {type(model.model).__name__} ({type(unet).__name__}), which Consistent Video cannot inflate. "
            "Supported are image UNets with SpatialTransformer blocks: the Stable Diffusion 1.x family (SD2.x and SDXL "
            "share the structure). Load such a checkpoint."
        )
    if model.model.concat_keys or unet.in_channels != model.model.latent_format.latent_channels:
        raise ValueError(
            f"model takes {unet.in_channels} input channels, more than the latent has: a checkpoint for inpainting or "
            "of another special kind, which Consistent Video does not know. Load the ordinary checkpoint."
        )


def count_frames(transformer_options: Mapping[str, Any], rows: int) -> int:
    """Return the frames per clip of a UNet call with this many rows."""
    chunks = len(transformer_options.get("cond_or_uncond", (0,)))
    return frames_per_clip(rows, chunks, transformer_options[KEY].num_frames)


def is_active(settings: ClipSettings, transformer_options: Mapping[str, Any]) -> bool:
    """Whether a UNet call lies where the settings act; one outside of sampling does."""
    sigmas = transformer_options.get("sigmas")
    if settings.sigmas == ALWAYS or sigmas is None:
        return True
    first, last = settings.sigmas
    return last <= float(sigmas[0]) <= first


def begin_call(executor, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
    """Wrap the UNet: refuse a batch that is no whole number of clips, and take the parts out where they do not act."""
    count_frames(transformer_options, len(x))
    settings: ClipSettings = transformer_options[KEY]
    if not is_active(settings, transformer_options):
        transformer_options = {**transformer_options, KEY: replace(settings, spatial=None, temporal=None)}
    return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


def prepare_call(executor, model, noise_shape, conds, *args, **kwargs):
    """Wrap the preparation of a sampling: let the host count frames put side by side as further rows."""
    settings = model.model_options["transformer_options"].get(KEY)
    rows = 0
    if settings is not None and settings.spatial is not None:
        frames, _, height, width = noise_shape
        block = transformer_blocks(model.model.diffusion_model)[0]  # on the largest map
        keys = copied_keys(settings.spatial, frames, height, width)
        size = min(COPIED_BYTES, 4 * frames * keys * block.dim * model.model_dtype().itemsize)
        rows = math.ceil(size / (2 * model.model.memory_required([1, *noise_shape[1:]])))  # the host takes both sides
    return executor(model, [noise_shape[0] + rows, *noise_shape[1:]], conds, *args, **kwargs)


@torch.compiler.disable
def attend_block(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """Replace a block's self-attention: projected q, k, v of shape ((chunks b f), l, heads d) -> what to_out takes."""
    settings: ClipSettings = extra_options[KEY]
    height, width = extra_options["activations_shape"][-2:]
    if q.shape[1] != height * width or q.shape[0] != extra_options["activations_shape"][0]:
        raise ValueError(
            f"Self-attention got {q.shape[0]} rows of {q.shape[1]} tokens where the feature map has "
            f"{extra_options['activations_shape'][0]} of {height} x {width}. Another patch (HyperTile, Token Merging) "
            "rearranges the tokens; remove it from the model."
        )
    attend = partial(
        optimized_attention, attn_precision=extra_options["attn_precision"], transformer_options=extra_options
    )
    heads, frames = extra_options["n_heads"], count_frames(extra_options, len(q))
    if settings.spatial is None:
        return attend(q, k, v, heads)
    attended = attend_across_frames(settings.spatial, q, k, v, heads, frames, height, width, attend, settings.rebuilds)
    if settings.spatial_strength == 1:
        return attended
    return torch.lerp(attend(q, k, v, heads), attended, settings.spatial_strength)


@torch.compiler.disable
def run_transformer(layer: SpatialTransformer, x: Tensor, emb, context, transformer_options, *_: Any) -> Tensor:
    """Run a spatial transformer with a temporal module after each of its blocks, their feed-forwards in chunks.

    The host has no hook after a block's feed-forward; a module hook that lives as long as this call is one, follows
    the live layer through deep copies, and leaves the layer as it was. So does what stands in for its method.
    """
    settings: ClipSettings = transformer_options[KEY]
    bank, strength = settings.temporal, settings.temporal_strength
    place, frames = transformer_options["block"], count_frames(transformer_options, len(x))

    def follow(index: int, _block: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        assert bank is not None, "hooked where there is one"
        module = bank.at(place, index)
        if module.to_out.bias.device != output.device:  # the host leaves it behind where not all weights fit
            module.to(output.device)
        return module(output, frames, strength, settings.recomputes)

    with ExitStack() as afterwards:
        for index, block in enumerate(layer.transformer_blocks):
            if bank is not None:
                afterwards.callback(block.register_forward_hook(partial(follow, index)).remove)
            afterwards.enter_context(feed_forward_in_chunks(block.ff, x, settings.recomputes))
        x = layer(x, context, transformer_options)
    if "transformer_index" in transformer_options:
        transformer_options["transformer_index"] += 1
    return x


@contextmanager
def feed_forward_in_chunks(layer: nn.Module, x: Tensor, recompute: bool) -> Iterator[None]:
    """Let a feed-forward work in chunks, by another method than its class's; x is where it will run."""
    before = vars(layer).get("forward")
    layer.forward = partial(
        apply_in_chunks, layer.forward, inner=FEED_FORWARD, recompute=recompute, is_far=is_far(layer, x)
    )
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before


def is_far(layer: nn.Module, x: Tensor) -> bool:
    """Whether the host fetches a layer's weights at each call, because not all fit on the device."""
    return any(weight.device != x.device for weight in layer.parameters())


def run_residual(layer: ResBlock, x: Tensor, emb: Tensor, *_: Any, recompute: bool = False) -> Tensor:
    """Run a residual block in chunks."""
    inner = 3 * (1 + layer.out_channels / layer.channels)  # norm, SiLU, convolution for each side of it
    emb = emb.expand(len(x), -1)
    return apply_in_chunks(layer, x, emb, inner=inner, recompute=recompute, is_far=is_far(layer, x))


OURS = ((SpatialTransformer, run_transformer), (ResBlock, run_residual))


def inflate(model: ModelPatcher, num_frames: int = 0) -> ModelPatcher:
    """Return a clone whose batch is a clip; the weights and, alone, the outputs are the base model's.

    Args:
        model: SD1.x-like image model.
        num_frames: frames per clip, 0 = the whole batch is one clip.

    Raises:
        ValueError: the model is not supported.
    """
    check_supported(model)
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, begin_call)
    clone.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, KEY)
    clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, prepare_call)
    options = clone.model_options["transformer_options"]
    options[KEY] = replace(options.get(KEY, ClipSettings()), num_frames=num_frames)
    return clone


def attach(
    model: ModelPatcher,
    spatial: SpatialConfig | None,
    temporal: TemporalConfig | None,
    spatial_strength: float = 1.0,
    temporal_strength: float = 1.0,
    percents: tuple[float, float] = (0.0, 1.0),
    tensors: Mapping[str, Tensor] | None = None,
) -> ModelPatcher:
    """Return a clone of an inflated model with attention across frames, replacing any attached before.

    A part of strength 0 is not attached at all, so that without both the outputs are the base model's.

    Args:
        model: inflated model.
        spatial: self-attention across frames, None = each frame for itself.
        temporal: temporal module after each block's feed-forward, None = none.
        spatial_strength: 0 ... 1, weight against the base model's self-attention.
        temporal_strength: 0 ... 1, factor of what the temporal modules add.
        percents: start and end of sampling between which both act, 0 ... 1.
        tensors: weights of the temporal modules, by the host's block paths; None = as they start.

    Raises:
        ValueError: the model is not inflated, carries a tune, or the part of sampling is empty.
    """
    attached = clip_settings(model)
    if not 0 <= percents[0] < percents[1] <= 1:
        raise ValueError(
            f"start_percent {percents[0]:g} is not below end_percent {percents[1]:g}, so that nothing would act. Set "
            "them to 0 and 1 for all of sampling."
        )
    if tensors is None and attached.temporal is not None and attached.temporal.is_tuned:
        raise ValueError(
            "model carries a tune, whose temporal modules this patch would throw away. Connect STAM/FFAM Patch before "
            "One-Shot Tune, and nothing of it after Apply Tune."
        )
    clone = detach(model)
    blocks = transformer_blocks(clone.model.diffusion_model)
    spatial = spatial if spatial_strength > 0 else None
    if spatial is not None:
        for place in dict.fromkeys(block.place for block in blocks):
            clone.set_model_attn1_replace(attend_block, *place)
    bank = None
    if temporal is not None and temporal_strength > 0:
        bank = TemporalBank(blocks, temporal, tensors)
        bank.to(clone.model.get_dtype_inference()).eval().requires_grad_(False)
        patcher = comfy.model_patcher.CoreModelPatcher(bank, clone.load_device, clone.offload_device)
        clone.set_additional_models(KEY, [patcher])
    if spatial is not None or bank is not None:
        for patch in OURS:
            clone.set_model_forward_timestep_embed_patch(patch)
    clone.model_options["transformer_options"][KEY] = replace(
        clip_settings(clone),
        spatial=spatial,
        spatial_strength=spatial_strength,
        temporal=bank,
        temporal_strength=temporal_strength,
        percents=percents,
        sigmas=sigmas_of(clone, percents),
    )
    return clone


def sigmas_of(model: ModelPatcher, percents: tuple[float, float]) -> tuple[float, float]:
    """Return the noise levels of a start and an end in sampling, highest first."""
    start, end = percents
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    return (math.inf if start == 0 else float(to_sigma(start)), 0.0 if end == 1 else float(to_sigma(end)))


def detach(model: ModelPatcher) -> ModelPatcher:
    """Return a clone of an inflated model without what `attach` put there."""
    clone = model.clone()
    clone.remove_additional_models(KEY)
    options = clone.model_options["transformer_options"]
    replaced = options.get("patches_replace", {}).get("attn1", {})
    for place in [place for place, patch in replaced.items() if patch is attend_block]:
        del replaced[place]
    patches = options.get("patches", {}).get("forward_timestep_embed_patch", [])
    patches[:] = [patch for patch in patches if patch not in OURS]
    attached = clip_settings(model)  # a tune's query projections stay
    options[KEY] = ClipSettings(attached.num_frames, tunes=attached.tunes, tuned_frames=attached.tuned_frames)
    return clone
