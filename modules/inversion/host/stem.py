"""The model of a STEM inversion: a clip model whose frames attend to the bases of their clip."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...clip_model.attention.bases import bases_attention
from ...clip_model.attention.spatial import SpatialConfig
from ...clip_model.host.bank import transformer_blocks
from ...clip_model.host.calls import grid_of, kernel_of
from ...clip_model.host.conflicts import rearranges_tokens, replaces_attention
from ...clip_model.host.evolved import CONTEXT, WINDOWS, window_length
from ...clip_model.host.settings import KEY, clip_settings


def with_bases(model: ModelPatcher, count: int, frames: int) -> ModelPatcher:
    """Return a clone of a clip model whose self-attention sees the bases of a clip, see `bases_attention`.

    They take the place of attention across frames, whatever its strength and part of sampling; temporal modules stay.

    Args:
        model: inflated model.
        count: number of bases.
        frames: of the clip.

    Raises:
        ValueError: the model is shown a part of the clip at a time, or its self-attention is another node's.
    """
    settings, handler = clip_settings(model), model.model_options.get("context_handler")
    lengths = {WINDOWS: getattr(handler, "context_length", frames), CONTEXT: window_length(model) or frames}
    for name, length in lengths.items():
        if length < frames:
            raise ValueError(
                f"method STEM finds bases of the whole clip, and {name} shows the model {length} of {frames} frames "
                "at a time. Invert without it, or set method to DDIM."
            )
    seeing = replace(settings, spatial=SpatialConfig("full"))
    others = [*replaces_attention(model, seeing), *rearranges_tokens(model, seeing)]
    if others:
        raise ValueError(
            f"model carries {', '.join(others)}, which replaces self-attention or rearranges its tokens, and so does "
            "method STEM. Connect the model before that node to the inversion, or set method to DDIM."
        )
    clone = model.clone()
    for place in dict.fromkeys(block.place for block in transformer_blocks(clone.model.diffusion_model)):
        clone.set_model_attn1_replace(partial(attend_to_bases, count), *place)
    clone.model_options["transformer_options"][KEY] = replace(settings, spatial=None)
    return clone


@torch.compiler.disable
def attend_to_bases(count: int, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """Replace a block's self-attention, as `attend_block` does."""
    if k.shape[1] != q.shape[1]:
        raise ValueError(
            f"Self-attention got {k.shape[1]} keys for {q.shape[1]} tokens: another node's attn1 patch (StyleAligned "
            "and Reference are such) adds keys, which method STEM does not know. Remove it, or set method to DDIM."
        )
    grid = grid_of(q, extra_options)
    return bases_attention(q, k, v, grid.heads, grid.frames, kernel_of(extra_options), count)
