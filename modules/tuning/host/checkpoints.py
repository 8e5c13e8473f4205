"""Layers of a private copy's UNet that the backward pass computes again."""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, Upsample
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...clip_model.attention.spatial import seen_keys
from ...clip_model.host.calls import run_residual, run_transformer
from ...clip_model.host.settings import KEY, ClipSettings
from ..checkpoints import Layer, choose_layers, residual_layer, transformer_layer
from ..settings import Memory

KINDS = (SpatialTransformer, ResBlock)
DECODER = "output_blocks."  # each of whose blocks begins with features of the encoder
TOKENS = 77  # of a prompt
SKIP = f"{KEY}_skip"  # transformer option: features of the encoder, on their way to a block of the decoder


def weigh_layers(unet: nn.Module, shape: tuple[int, ...], clip: ClipSettings, chunking: bool) -> dict[nn.Module, Layer]:
    """Return what the layers of a UNet cost in a step, in their order, from the first that something is learned in.

    Args:
        unet: whose layers are the keys.
        shape: of the latent of the frames in a step, (f, c, h, w).
        clip: settings of the model.
        chunking: of the tuning.
    """
    frames, _, *size = shape
    sizes, layers, paths = [size], dict[nn.Module, Layer](), clip.temporal.paths if clip.temporal is not None else []
    for path, layer in unet.named_modules():
        height, width = sizes[-1]
        positions = frames * height * width
        if isinstance(layer, Downsample):
            sizes.append([-(-side // 2) for side in sizes[-1]])
        elif isinstance(layer, Upsample):
            sizes.pop()  # no UNet of the families has residual blocks that change the size
        elif isinstance(layer, SpatialTransformer):
            blocks = layer.transformer_blocks
            features, temporal = blocks[0].norm1.normalized_shape[0], sum(its.startswith(f"{path}.") for its in paths)
            keys = seen_keys(clip.spatial, frames, height, width) + TOKENS
            layers[layer] = transformer_layer(positions, features, len(blocks), keys, frames, temporal, chunking)
        elif isinstance(layer, ResBlock) and layers:
            layers[layer] = residual_layer(positions, layer.channels, layer.out_channels, path.startswith(DECODER))
    return layers


def checkpointed_layers(unet: nn.Module, shape: tuple[int, ...], clip: ClipSettings, memory: Memory) -> set[nn.Module]:
    """Return the layers of a UNet that the backward pass computes again; the arguments as for `weigh_layers`."""
    if not memory.gradient_checkpointing:
        return set()
    return choose_layers(weigh_layers(unet, shape, clip, memory.chunking), memory.checkpointing_share)


def leave_apart(x: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, None]:
    """Take the encoder's features from the host, which would concatenate them: the backward pass holds them anyway."""
    options[SKIP] = skip
    return x, None


def run_checkpointed(
    chosen: Collection[nn.Module], layer: nn.Module, x: Tensor, emb: Tensor, context: Any, options: dict[str, Any],
    *_: Any,
) -> Tensor:  # fmt: skip
    """Run a layer of the UNet; if it is one of those chosen, the backward pass recomputes its activations.

    The layer then gets options of its own, for the host changes them on its way through the UNet.
    """
    if isinstance(layer, ResBlock):  # as is the first layer of each of the decoder's blocks
        return run_residual(layer, x, emb, skip=options.pop(SKIP, None), recompute=layer in chosen)
    if layer not in chosen:
        return run_transformer(layer, x, emb, context, options)
    # What a checkpoint rebuilds it would keep for that, and it keeps nothing else.
    own = {**options, KEY: replace(options[KEY], rebuild=False)}
    run = partial(run_transformer, layer)
    x = checkpoint(run, x, emb, context, own, use_reentrant=False, preserve_rng_state=False)
    if "transformer_index" in options:
        options["transformer_index"] += 1
    return x
