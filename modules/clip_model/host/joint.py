"""What a clip model does in each call of a transformer: attention across frames by the host's hooks.

The pictures of other frames come in where the host asks for an attention kernel, after queries and keys are rotated by
their position. Keys to be shrunk are taken before, and rotated by the mean position of those they stand for.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.model_base import BaseModel
from torch import Tensor, nn

from ..attention.fine_coarse import Coarse, downsample_tokens
from ..attention.joint import Sequence, by_frame, joint_attention, keys_seen, shrink_pictures
from .calls import check_frames, completion, widen
from .family import encoding_of, transformer_of
from .settings import CACHE, KEY, ClipSettings, acting, count_frames
from .windows import frames_at_once

OVERRIDE = "optimized_attention_override"  # the host's key of what stands in for its attention kernel


def begin_joint_call(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """Wrap the model: refuse a batch that is no whole number of clips, and connect the frames where there are some.

    Raises:
        ValueError: the batch is not one, or holds videos; or the frames that are to be connected were not.
    """
    if x.ndim > 4 and x.shape[2] > 1:
        raise ValueError(
            f"The latent has shape {tuple(x.shape)}: a video, or layers of a picture, and not a clip of pictures. "
            f"{encoding_of(executor.class_obj)}"
        )
    frames, settings = count_frames(transformer_options, len(x)), acting(transformer_options[KEY], transformer_options)
    check_frames(frames, settings)
    given = c_concat, c_crossattn, control
    is_alone = frames == 1 and completion(transformer_options, frames, None) is None
    if settings.spatial is None or is_alone:
        return executor(x, t, *given, transformer_options, **kwargs)
    call = JointCall(executor.class_obj, settings, frames, x, transformer_options)
    predicted = executor(x, t, *given, call.options(), **kwargs)
    if call.attentions == 0 and CACHE not in transformer_options:  # which skips some calls of the network
        raise ValueError(
            "The model asked ComfyUI for no attention of text and picture, so that its frames were not connected. "
            "Remove the node that replaces its blocks or its attention, or set attention_strength to 0."
        )
    return predicted


def prepare_joint_call(executor, model, noise_shape, conds, *args, **kwargs):
    """Wrap the preparation of a sampling: let the host's memory estimate include one frame's keys and values."""
    settings = model.model_options["transformer_options"].get(KEY)
    if settings is not None and settings.spatial is not None:
        held, seen = frames_at_once(model.model_options, noise_shape[0])
        network = model.model.diffusion_model
        around = tokens_around(network, conds)
        keys = keys_seen(settings.spatial, seen, *grid_of_picture(network, noise_shape), around)
        width = getattr(network, transformer_of(model.model).width)
        size = 4 * keys * width * model.model.get_dtype_inference().itemsize  # keys and values, both sides
        noise_shape = widen(noise_shape, held, size, model)
    return executor(model, noise_shape, conds, *args, **kwargs)


def grid_of_picture(network: nn.Module, shape: Any) -> tuple[int, int]:
    """Return height and width in tokens of latents of a shape."""
    return -(-shape[-2] // network.patch_size), -(-shape[-1] // network.patch_size)


def tokens_around(network: nn.Module, conds: Mapping[str, list[dict[str, Any]]]) -> int:
    """Return how many tokens stand around a picture's at most: its text's, and those of reference pictures."""
    return max(
        (
            cond["cross_attn"].shape[1]
            + sum(math.prod(grid_of_picture(network, latent.shape)) for latent in cond.get("reference_latents", ()))
            for side in conds.values()
            for cond in side or ()
            if cond.get("cross_attn") is not None
        ),
        default=0,
    )


class JointCall:
    """One call of a transformer whose frames see each other.

    Args:
        model: of the host.
        settings: of the clip.
        frames: f of each clip.
        x: what the model is given, rows (chunks b f).
        given: transformer options of the call.

    Attributes:
        attentions: how many attentions of text and picture there were so far.
    """

    def __init__(self, model: BaseModel, settings: ClipSettings, frames: int, x: Tensor, given: dict[str, Any]):
        assert settings.spatial is not None, "there is an attention across frames"
        self.known, self.network = transformer_of(model), model.diffusion_model
        self.settings, self.given = settings, given
        self.config, self.frames, self.rows = settings.spatial, frames, len(x)
        self.height, self.width = grid_of_picture(self.network, x.shape)
        r = min(self.config.r, self.height, self.width)
        self.r = r if self.config.kind == "fine-coarse" else 1
        self.attentions = 0
        self.positions: Tensor | None = None
        self.coarse: Coarse | None = None

    def options(self) -> dict[str, Any]:
        """Return the transformer options with the hooks of this call, the others' own first."""
        hooks = {"post_input": self.note_positions, "attn1_patch": self.shrink_keys} if self.shrinks_before else {}
        patches = self.given.get("patches", {})
        ours = {kind: [*patches.get(kind, ()), hook] for kind, hook in hooks.items()}
        return {**self.given, "patches": {**patches, **ours}, OVERRIDE: self.attend}

    @property
    def shrinks_before(self) -> bool:
        """Whether keys are shrunk before they are rotated."""
        return self.r > 1 and self.known.is_rotary

    def note_positions(self, args: dict[str, Any]) -> dict[str, Any]:
        """Note the rotations of shrunk keys, by the host's hook before the blocks."""
        ids = args["img_ids"]
        if ids is not None:
            grid = self.height, self.width
            mean = downsample_tokens(ids[:1, : self.height * self.width], *grid, self.r, self.config.downsample)
            self.positions = self.network.pe_embedder(mean)
        return args

    def shrink_keys(self, _q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Shrink the keys and values that a block is about to rotate, by the host's hook before its attention."""
        self.coarse = self.coarse_of(k, v, extra_options["img_slice"][0])
        return {}

    def coarse_of(self, k: Tensor, v: Tensor, text: int) -> Coarse:
        """Return the shrunk keys, rotated by their positions if they have any, and values of the call's frames."""
        sequence = Sequence(self.frames, text, self.height, self.width)
        k, v = (shrink_pictures(x, sequence, self.r, self.config.downsample) for x in (k, v))
        if self.positions is not None:
            k = apply_rope1(k, self.positions)
        return Coarse(by_frame(k, self.frames), by_frame(v, self.frames))

    @torch.compiler.disable
    def attend(
        self, kernel: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, mask=None, **named: Any
    ) -> Tensor:
        """Stand in for the host's attention kernel; another node's stand-in is the kernel of this one."""
        if OVERRIDE in self.given:
            kernel = partial(self.given[OVERRIDE], kernel)
        options, tokens = named.get("transformer_options") or {}, self.height * self.width
        rest = self.known.rest(self.network, options, tokens)
        if rest is None:
            return kernel(q, k, v, heads, mask=mask, **named)
        if not named.get("skip_reshape"):
            q, k, v = (x.flatten(2) for x in (q, k, v))  # SD3's values have an axis of heads here, too
        text = q.shape[-2] - tokens - rest
        self.check_tokens(q, k, text, mask)

        def attend(*given: Tensor) -> Tensor:
            return kernel(*given, heads, **named)

        sequence, coarse = Sequence(self.frames, text, self.height, self.width), None
        if self.r > 1:
            coarse = self.coarse if self.shrinks_before else self.coarse_of(k, v, text)
            assert coarse is not None, "the host calls both hooks in turn"
            layer = self.layer_of(options)
            complete = completion(self.given, self.frames, layer) if layer is not None else None
            coarse, self.coarse = complete(coarse) if complete else coarse, None
        self.attentions += 1
        attended = joint_attention(self.config, q, k, v, sequence, attend, coarse)
        if self.settings.spatial_strength == 1:
            return attended
        return torch.lerp(attend(q, k, v), attended, self.settings.spatial_strength)

    def layer_of(self, options: dict[str, Any]) -> Hashable | None:
        """Return what identifies a layer in every call, None where that is not known."""
        if "block_index" in options:
            return options.get("block_type"), options["block_index"]
        # Blocks that are replaced, as Skip Layer Guidance does in calls of its own, are not counted.
        return None if self.given.get("patches_replace", {}).get("dit") else self.attentions

    def check_tokens(self, q: Tensor, k: Tensor, text: int, mask: Tensor | None) -> None:
        """Raise ValueError where an attention is not that of text and picture that the family has."""
        if mask is not None:
            raise ValueError(
                "The conditioning has an attention mask (Apply Style Model with attn_bias makes one, and so do prompts "
                "of different lengths in one batch), whose places attention across frames would need. Remove that "
                "node, encode each prompt by itself, or set attention_strength of STAM/FFAM Patch to 0."
            )
        if len(q) != self.rows or q.shape[-2] != k.shape[-2] or text < 0:
            raise ValueError(
                f"Attention got {len(q)} rows of {q.shape[-2]} tokens with {k.shape[-2]} keys where the picture has "
                f"{self.rows} of {self.height} x {self.width}. Another node's patch adds or merges tokens, whose "
                "places attention across frames needs. Remove it, or set attention_strength of STAM/FFAM Patch to 0."
            )
