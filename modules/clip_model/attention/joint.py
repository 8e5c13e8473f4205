"""Attention across frames where tokens of a text and a picture attend together: MMDiT, Flux, Qwen-Image, Z-Image.

Tokens come as (b f) ... l d, with or without an axis of heads: a frame's own text, its picture of h * w tokens, and
what may follow that, such as padding or reference pictures. Frames share positions.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .fine_coarse import Coarse, Downsample, downsample_tokens
from .key_frame import middle_frame
from .spatial import Kind, SpatialConfig

AttendTokens = Callable[[Tensor, Tensor, Tensor], Tensor]


class Sequence(NamedTuple):
    """How the tokens of a frame lie: how many are the text's, before the picture, and the picture's height and width.

    `frames` is the number of frames of each clip.
    """

    frames: int
    text: int
    height: int
    width: int

    @property
    def picture(self) -> slice:
        """Where the picture's tokens are."""
        return slice(self.text, self.text + self.height * self.width)


def frames_seen(kind: Kind, frame: int, frames: int) -> list[int]:
    """Return the frames of which a frame sees the whole picture, each once; fine-coarse attention sees its own."""
    if kind == "sparse-causal":
        return list(dict.fromkeys([0, max(frame - 1, 0)]))
    if kind == "full":
        return list(range(frames))
    return [{"fine-coarse": frame, "key-frame": 0, "middle-frame": middle_frame(frames)}[kind]]


def keys_seen(config: SpatialConfig, frames: int, height: int, width: int, around: int = 0) -> int:
    """Return how many tokens a frame's picture attends to, at most; `around` stand around it, such as the text's."""
    whole, r = height * width, min(config.r, height, width)
    pictures = whole * len(frames_seen(config.kind, frames - 1, frames))
    if config.kind == "fine-coarse":
        pictures += (frames - 1) * -(-height // r) * -(-width // r)
    return pictures + copies_of(pictures, whole) * around


def copies_of(seen: int, whole: int) -> int:
    """Return how often a frame counts what stands around its picture: as often as it sees a picture's tokens."""
    return round(seen / whole)


def shrink_pictures(tokens: Tensor, sequence: Sequence, r: int, kind: Downsample = "area") -> Tensor:
    """Return the pictures' tokens shrunk as `downsample_tokens` does: (b f) ... l d -> (b f) ... p d."""
    pictures = tokens[..., sequence.picture, :]
    coarse = downsample_tokens(pictures.flatten(0, -3), sequence.height, sequence.width, r, kind)
    return coarse.unflatten(0, pictures.shape[:-2])


def by_frame(tokens: Tensor, frames: int) -> Tensor:
    """Return tokens of shape (b f) ... p d as `Coarse` holds them: b ... f p d."""
    return tokens.unflatten(0, (-1, frames)).movedim(1, -3).contiguous()


def joint_attention(
    config: SpatialConfig,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sequence: Sequence,
    attend: AttendTokens,
    coarse: Coarse | None = None,
) -> Tensor:
    """Attend from each frame's picture to its own text and to the pictures of the frames that the config names; ours.

    The papers' attention knows no text among its keys. Here frame i sees n pictures' tokens instead of one, so its own
    text, and what follows its picture, are counted n times: the prompt keeps its weight, and a clip whose frames are
    equal has the base model's attention exactly, as in a UNet. n is rounded where pictures are shrunk. Text, and what
    follows the picture, attend within their frame, as in the base model. A frame that is seen twice (the first frame
    by the first in sparse-causal attention) counts once.

    Keys and values are concatenated for one frame at a time, so that a call holds b * (tokens seen) of them.

    Args:
        config: which frames are seen.
        q, k, v: tokens, shape (b f) ... l d, keys rotated by their position where the model does so.
        sequence: f, and where the picture is.
        attend: attention kernel, (q, k, v) -> (rows, l, heads * d).
        coarse: shrunk keys and values of these f frames, in their order, and of any further ones after them;
            fine-coarse only, None where r is 1.

    Returns:
        What `attend` gives for all tokens, shape ((b f), l, heads * d).
    """
    frames, picture = sequence.frames, sequence.picture
    kind = "full" if config.kind == "fine-coarse" and coarse is None else config.kind
    queries, keys, values = (x.unflatten(0, (-1, frames)) for x in (q, k, v))

    def seen(tokens: Tensor, others: Tensor | None, frame: int) -> Tensor:
        own = tokens[:, frame]
        pictures = [tokens[:, i, ..., picture, :] for i in frames_seen(kind, frame, frames)]
        if others is not None:
            pictures += others[..., : frame * size, :], others[..., (frame + 1) * size :, :]
        copies = copies_of(sum(part.shape[-2] for part in pictures), picture.stop - picture.start)
        around = own[..., : picture.start, :], own[..., picture.stop :, :]
        return torch.cat([*copies * around[:1], *pictures, *copies * around[1:]], dim=-2)

    # Pictures, frame by frame.
    size = 0 if coarse is None else coarse.k.shape[-2]
    coarse_k, coarse_v = (None, None) if coarse is None else (tokens.flatten(-3, -2) for tokens in coarse)
    attended = torch.stack(
        [
            attend(queries[:, i, ..., picture, :], seen(keys, coarse_k, i), seen(values, coarse_v, i))
            for i in range(frames)
        ],
        dim=1,
    ).flatten(0, 1)

    # Text and what follows the picture, all frames at once.
    apart = torch.cat([q[..., : picture.start, :], q[..., picture.stop :, :]], dim=-2)
    if apart.shape[-2] == 0:
        return attended
    around = attend(apart, k, v)
    return torch.cat([around[:, : picture.start], attended, around[:, picture.start :]], dim=1)
