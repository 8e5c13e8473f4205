"""What a clip model does in each call of its UNet: attention across frames, temporal modules, chunks."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import (
    SpatialTransformer,
    optimized_attention,
)
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..attention import Attend, Grid
from ..attention.fine_coarse import COPIED_BYTES, Coarse
from ..attention.spatial import attend_across_frames, copied_keys
from ..chunks import apply_in_chunks
from ..temporal import TemporalModule
from .bank import transformer_blocks
from .settings import KEY, STEER, ClipSettings, acting, count_frames
from .windows import MEMORY, frames_at_once, frames_of_window

FEED_FORWARD = 16  # activations for each of its input: GEGLU's halves, the gate's GELU, the product; 4 times each
MOST_FRAMES = 1024  # that one call of the UNet may tie to each other, as num_frames of Inflate UNet


def begin_call(executor, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
    """Wrap the UNet: refuse a batch that is no whole number of clips, and take the parts out where they do not act."""
    frames, settings = count_frames(transformer_options, len(x)), acting(transformer_options[KEY], transformer_options)
    check_frames(frames, settings)
    if settings is not transformer_options[KEY]:
        transformer_options = {**transformer_options, KEY: settings}
    return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


def check_frames(frames: int, settings: ClipSettings) -> None:
    """Raise ValueError where a call ties more frames to each other than is possible."""
    if frames > MOST_FRAMES and (settings.spatial is not None or settings.temporal is not None):
        raise ValueError(
            f"The model is to see {frames} frames at once; at most {MOST_FRAMES} are possible. Connect Context Windows "
            "(Manual) after the clip model, set frames_per_step in Tuning Options to tune, or cut the clip."
        )


def prepare_call(executor, model, noise_shape, conds, *args, **kwargs):
    """Wrap the preparation of a sampling: let the host's memory estimate include concatenated keys and values."""
    settings = model.model_options["transformer_options"].get(KEY)
    if settings is not None and settings.spatial is not None:
        frames, _, height, width = noise_shape
        held, seen = frames_at_once(model.model_options, frames)
        block = transformer_blocks(model.model.diffusion_model)[0]  # on the largest map
        keys = copied_keys(settings.spatial, seen, height, width)
        bytes_per_frame = 4 * keys * block.dim * model.model.get_dtype_inference().itemsize
        size = held * bytes_per_frame
        if settings.spatial.kind == "fine-coarse":  # which concatenates those of some frames at a time
            size = min(size, max(bytes_per_frame, COPIED_BYTES))
        noise_shape = widen(noise_shape, held, size, model)
    return executor(model, noise_shape, conds, *args, **kwargs)


def widen(noise_shape: Sequence[int], frames: int, size: int, model: ModelPatcher) -> list[int]:
    """Return the shape for which the host reckons with so many bytes more, of both sides of CFG.

    The latent is wider, as the host's context windows cut off what has more rows.

    Args:
        noise_shape: (f, c, h, w).
        frames: of the clip, or of a window of it.
        size: bytes.
        model: that is sampled.
    """
    shape = [frames, *noise_shape[1:]]
    part = size / (2 * model.model.memory_required(shape))
    return [*shape[:-1], math.ceil(shape[-1] * (1 + part))]


def grid_of(q: Tensor, extra_options: dict[str, Any]) -> Grid:
    """Return how the tokens of a block's self-attention are laid out; ValueError where another patch moved them."""
    rows, _, height, width = extra_options["activations_shape"]
    if q.shape[1] != height * width or q.shape[0] != rows:
        raise ValueError(
            f"Self-attention got {q.shape[0]} rows of {q.shape[1]} tokens where the feature map has {rows} of "
            f"{height} x {width}. Another patch (HyperTile, Token Merging) rearranges the tokens; remove it from the "
            "model."
        )
    return Grid(extra_options["n_heads"], count_frames(extra_options, len(q)), height, width)


def kernel_of(extra_options: dict[str, Any]) -> Attend:
    """Return ComfyUI's attention kernel for a block."""
    precision = extra_options["attn_precision"]
    return partial(optimized_attention, attn_precision=precision, transformer_options=extra_options)


@torch.compiler.disable
def attend_block(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """Replace a block's self-attention: projected q, k, v of shape ((chunks b f), l, heads d) -> what to_out takes."""
    settings: ClipSettings = extra_options[KEY]
    grid, attend = grid_of(q, extra_options), kernel_of(extra_options)
    if settings.spatial is None:
        return attend(q, k, v, grid.heads)
    if k.shape[1] != q.shape[1]:
        raise ValueError(
            f"Self-attention got {k.shape[1]} keys where the feature map has {q.shape[1]} tokens. Another node's attn1 "
            "patch (StyleAligned and Reference are such) adds keys, whose places attention across frames would need. "
            "Remove it from the model, or set attention_strength of STAM/FFAM Patch to 0."
        )
    layer = (*extra_options["block"], extra_options.get("block_index", 0))
    complete = completion(extra_options, grid.frames, layer)
    attended = attend_across_frames(settings.spatial, q, k, v, grid, attend, settings.rebuild, complete)
    if settings.spatial_strength == 1:
        return attended
    return torch.lerp(attend(q, k, v, grid.heads), attended, settings.spatial_strength)


def completion(options: dict[str, Any], frames: int, layer: Hashable) -> Callable[[Coarse], Coarse] | None:
    """Return what adds the frames outside of a window of some frames, None where the call is no such window."""
    memory, window = options.get(MEMORY), frames_of_window(options)
    if memory is None or window is None or len(window) != frames:
        return None
    return partial(memory.complete, layer, options["uuids"], window)


@torch.compiler.disable
def run_transformer(layer: SpatialTransformer, x: Tensor, emb, context, transformer_options, *_: Any) -> Tensor:
    """Run a spatial transformer with a temporal module in each of its blocks, their feed-forwards in chunks.

    The host has no hook after a block's feed-forward; a module hook that lives as long as this call is one, follows
    the live layer through deep copies, and leaves the layer as it was. So does what stands in for its method. A module
    after self-attention attends to what the block's first norm returned, and adds to what self-attention returns.
    """
    settings: ClipSettings = transformer_options[KEY]
    bank, strength = settings.temporal, settings.temporal_strength
    place, frames = transformer_options["block"], count_frames(transformer_options, len(x))
    steer = transformer_options.get(STEER)

    def follow(index: int, module: TemporalModule, normed: list[Tensor], *call: Any) -> Tensor:
        output = call[-1]
        if module.to_out.bias.device != output.device:  # the host leaves it behind where not all weights fit
            module.to(output.device)
        attended = normed.pop() if normed else None
        qk_tokens = None
        if steer is not None:
            qk_tokens = steer((*place, index), output if attended is None else attended, transformer_options)
        return module(output, frames, strength, settings.recompute, attended, qk_tokens)

    with ExitStack() as afterwards:
        for index, block in enumerate(layer.transformer_blocks):
            module = bank.at(place, index) if bank is not None else None
            if module is not None:
                for hook in hook_module(block, module, partial(follow, index)):
                    afterwards.callback(hook.remove)
            afterwards.enter_context(feed_forward_in_chunks(block.ff, x, settings.recompute))
        x = layer(x, context, transformer_options)
    if "transformer_index" in transformer_options:
        transformer_options["transformer_index"] += 1
    return x


def hook_module(block: nn.Module, module: TemporalModule, follow: Callable[..., Tensor]) -> Iterator[RemovableHandle]:
    """Yield the hooks that let a block's temporal module follow what it is to follow.

    Args:
        block: transformer block.
        module: its temporal module.
        follow: (module, what it attends to if that is not the output, hooked layer, its inputs, output) -> output.
    """
    normed: list[Tensor] = []
    if module.config.follows == "self-attention":
        yield block.norm1.register_forward_hook(lambda *call: normed.append(call[-1]))
    followed = block if module.config.follows == "feed-forward" else block.attn1.to_out
    yield followed.register_forward_hook(partial(follow, module, normed))


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


def run_residual(
    layer: ResBlock, x: Tensor, emb: Tensor, *_: Any, skip: Tensor | None = None, recompute: bool = False
) -> Tensor:
    """Run a residual block in chunks, where its norms are of each frame for itself.

    Args:
        layer: residual block.
        x, emb: its input, and the embedding of the time.
        skip: features to concatenate to x.
        recompute: whether the backward pass recomputes its activations.
    """
    parts = [x] if skip is None else [x, skip]

    def run(*given: Tensor) -> Tensor:
        *features, time = given
        return layer(torch.cat(features, dim=1) if len(features) > 1 else features[0], time)

    if nn.GroupNorm.forward.__module__ != nn.GroupNorm.__module__:  # AnimateDiff-Evolved's, over all frames of a clip
        return run(*parts, emb)
    held = 3 * (layer.channels + layer.out_channels)  # norm, SiLU, convolution for each side of it
    emb = emb.expand(len(x), -1)
    return apply_in_chunks(run, *parts, emb, inner=held / x.shape[1], recompute=recompute, is_far=is_far(layer, x))


OURS = ((SpatialTransformer, run_transformer), (ResBlock, run_residual))
