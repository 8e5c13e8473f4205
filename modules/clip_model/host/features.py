"""What self-attention makes of a clip, captured while the UNet runs."""

from typing import Any

from torch import Tensor, nn

from ..methods import Part
from .bank import transformer_blocks


class Features:
    """The self-attention features of some blocks in the UNet's last call, all frames of the clip in one tensor.

    Args:
        unet: of a private copy; the hooks stay on it.
        part: of the UNet.

    Raises:
        ValueError: that part has no transformer blocks.
    """

    def __init__(self, unet: nn.Module, part: Part):
        self.paths = [block.path for block in transformer_blocks(unet) if part in ("all", block.place[0])]
        if not self.paths:
            raise ValueError(f"consistency_blocks {part!r}: the model has no transformer blocks there. Choose all.")
        self.held: list[Tensor] = []
        self.is_open = False
        for path in self.paths:
            unet.get_submodule(f"{path}.attn1.to_out").register_forward_hook(self.hold)

    def begin(self) -> None:
        """Forget the last call and capture the next."""
        self.held, self.is_open = [], True

    def hold(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        """Keep what a block's self-attention returns; not where a checkpoint computes it again."""
        if self.is_open:
            self.held.append(output)

    def take(self) -> list[Tensor]:
        """Return the features, of shape (f, l, d) for each block."""
        assert len(self.held) == len(self.paths), "each block runs once"
        held, self.held, self.is_open = self.held, [], False
        return held
