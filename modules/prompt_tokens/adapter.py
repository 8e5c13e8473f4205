"""Prompt adapters: tokens learned on one clip, that stand before the text's in the context of cross-attention."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files.tensor_file import STATE, Kind, read_file, write_file
from ..tuning.state import check_state

STD = 0.02  # of tokens before they are learned
PIECE = 77  # tokens of a text encoder's piece; longer prompts consist of several


@dataclass(frozen=True)
class Made:
    """What a prompt adapter's info says that is read again: the loss of each step, None where it was undefined."""

    OPEN: ClassVar = True
    loss: list[float | None] = field(default_factory=list)


FILE = Kind(
    format="consistent_video_prompt_tokens",
    version=1,
    name="prompt adapter",
    again="Save the prompt tokens again.",
    instead="Choose a file that Save Prompt Tokens wrote.",
    info=Made,
    tensors={"shared": "tokens? width", "frame": "frames each? width"},
)


class PromptTokens(nn.Module):
    """Tokens as they are learned; Adapters (arXiv 2504.16016): shared by all frames and of each frame, N(0, 0.02).

    With embeddings of the frames, what is learned of each frame's tokens is a linear projection of its embedding, so
    that frames that look alike get like tokens; without, the tokens themselves.

    Args:
        num_shared: tokens that all frames see.
        num_frame: tokens of each frame, which it alone sees.
        num_frames: of the clip.
        width: of the context.
        generator: of their beginning.
        embeddings: of the frames, shape (num_frames, e), of which the direction counts; None = none.

    Raises:
        ValueError: there are none, or embeddings of which nothing is made.
    """

    embeddings: Tensor | None

    def __init__(
        self,
        num_shared: int,
        num_frame: int,
        num_frames: int,
        width: int,
        generator: torch.Generator,
        embeddings: Tensor | None = None,
    ):
        super().__init__()
        if num_shared + num_frame == 0:
            raise ValueError("shared_tokens and frame_tokens are both 0, so that nothing would be learned. Raise one.")
        if embeddings is not None and not num_frame:
            raise ValueError(
                "frame_tokens is 0, and each frame's tokens are what clip_vision_output is for. Raise frame_tokens, or "
                "disconnect clip_vision_output."
            )
        if embeddings is not None and len(embeddings) != num_frames:
            raise ValueError(
                f"clip_vision_output holds {len(embeddings)} images and the clip {num_frames} frames. Give CLIP Vision "
                "Encode all frames of the clip in one batch."
            )
        self.shared = nn.Parameter(STD * torch.randn(num_shared, width, generator=generator))
        rows = num_frames if embeddings is None else embeddings.shape[-1]
        self.frame = nn.Parameter(STD * torch.randn(rows, num_frame, width, generator=generator))
        directions = None if embeddings is None else F.normalize(embeddings.detach().float(), dim=-1)
        self.register_buffer("embeddings", directions, persistent=False)

    def of_frames(self) -> Tensor:
        """Return the tokens of each frame, shape (num_frames, num_frame, width)."""
        return self.frame if self.embeddings is None else torch.tensordot(self.embeddings, self.frame, dims=1)

    def context(self, text: Tensor, frames: slice) -> Tensor:
        """Return the context of some frames from their text's, shape (f, l, d)."""
        return join_tokens(self.shared, self.of_frames()[frames], text)


@dataclass(frozen=True)
class PromptAdapter:
    """Tokens that were learned on one clip.

    Attributes:
        shared: shape (number, d).
        frame: shape (frames, number, d).
        info: how they were made; JSON values.
        state: of the tuning at its end, to continue it; empty where it was not kept.
    """

    shared: Tensor
    frame: Tensor
    info: dict[str, Any]
    state: dict[str, Tensor] = field(default_factory=dict)

    def context(self, text: Tensor, num_frames: int, shared: float = 1.0, frame: float = 1.0) -> Tensor:
        """Return the context of a clip from its text's: shared | frame | text, for each frame.

        A strength below 1 leads the tokens towards the text's last one, its padding. At 0 they say nothing that the
        text does not say, and keep their number: two contexts of equal texts stay equally long at any strength. That
        meaning of a strength is ours.

        Args:
            text: states of the prompt's tokens, shape (1 or f, l, d).
            num_frames: f; where the tokens were learned on another number, those of the frames are interpolated.
            shared, frame: strengths.

        Returns:
            Shape (f, l', d), in the text's type.

        Raises:
            ValueError: the text has another width or other frames.
        """
        if text.shape[-1] != self.shared.shape[-1]:
            raise ValueError(
                f"conditioning is {text.shape[-1]} wide and the prompt tokens {self.shared.shape[-1]}. Use the text "
                "encoder of the model that they were learned on."
            )
        if len(text) not in (1, num_frames):
            raise ValueError(
                f"conditioning has {len(text)} prompts and the clip {num_frames} frames. Give one for all frames or "
                "one for each."
            )
        text = text.expand(num_frames, -1, -1)
        padding = text[:, -1:]
        own = interpolate_frames(self.frame, num_frames).to(padding)
        common = self.shared.to(padding).expand(num_frames, -1, -1)
        return join_tokens(torch.lerp(padding, common, shared), torch.lerp(padding, own, frame), text)


def join_tokens(shared: Tensor, frame: Tensor, text: Tensor) -> Tensor:
    """Return the context of cross-attention: shared | frame | text.

    A prompt of several pieces of 77 tokens gets them before each piece, so that they keep their weight against the
    text, and lengths stay multiples of each other, as the host needs them to join two prompts in one call.

    Args:
        shared: shape (number, d), or (f, number, d).
        frame: shape (f, number, d).
        text: shape (f, l, d).
    """
    pieces = text.split(PIECE, dim=1) if text.shape[1] % PIECE == 0 else (text,)
    shared, frame = shared.expand(len(text), -1, -1).to(text), frame.to(text)
    return torch.cat([part for piece in pieces for part in (shared, frame, piece)], dim=1)


def interpolate_frames(frame: Tensor, num_frames: int) -> Tensor:
    """Return the tokens of another number of frames, linear in time; the first and the last frame keep theirs.

    Args:
        frame: shape (frames, number, d).
        num_frames: how many there are to be.
    """
    if len(frame) == num_frames:
        return frame
    if not frame.shape[1]:
        return frame[:1].expand(num_frames, -1, -1)
    lines = frame.float().permute(1, 2, 0)
    return F.interpolate(lines, num_frames, mode="linear", align_corners=True).permute(2, 0, 1)


def save_prompt_adapter(adapter: PromptAdapter, path: Path, new: bool = False) -> None:
    """Write a prompt adapter as safetensors; the file appears whole or not at all.

    Raises:
        FileExistsError: the path is to be new, and is not.
        OSError: it could not be written.
    """
    state = {f"{STATE}{key}": value for key, value in adapter.state.items()}
    write_file(FILE, {"shared": adapter.shared, "frame": adapter.frame, **state}, adapter.info, path, new)


def load_prompt_adapter(path: Path) -> PromptAdapter:
    """Read a prompt adapter.

    Raises:
        ValueError: the file is damaged, no prompt adapter, or of a newer format.
    """
    tensors, info = read_file(FILE, path)
    state = {key.removeprefix(STATE): value for key, value in tensors.items() if key.startswith(STATE)}
    try:
        check_state(state, len(info.get("loss", [])))
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}. {FILE.again}") from error
    return PromptAdapter(tensors["shared"], tensors["frame"], info, state)
