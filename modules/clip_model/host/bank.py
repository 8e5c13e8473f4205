"""The transformer blocks of a UNet, and their temporal modules."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from comfy.ldm.modules.attention import (
    BasicTransformerBlock,
)
from torch import Tensor, nn

from ..temporal import TemporalConfig, TemporalModule


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
    """The temporal modules of a UNet, one for each transformer block that has one, see TemporalConfig.follows.

    Args:
        blocks: of the UNet.
        config: of every module.
        tensors: their weights, named as `tensors` returns them; None = as they are before tuning, always the same.
        weights: of the UNet by their names there, as in its checkpoint; modules that follow self-attention start with
            those of it. Needed by these where there are no tensors.

    Attributes:
        origin: the tensors given, exact where the modules are cast to half precision.
    """

    def __init__(
        self,
        blocks: list[Block],
        config: TemporalConfig,
        tensors: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ):
        super().__init__()
        blocks = blocks_with_module(blocks, config)
        generator = torch.Generator().manual_seed(0) if tensors is None else None
        self.config, self.is_tuned, self.origin = config, tensors is not None, tensors
        self.paths = [block.path for block in blocks]
        self.places = {(block.place, block.index): i for i, block in enumerate(blocks)}
        self.bank = nn.ModuleList(TemporalModule(b.dim, b.heads, config, generator) for b in blocks)
        for path, module in zip(self.paths, self.bank, strict=True):
            if tensors is not None:
                module.load_state_dict({name: tensors[temporal_key(path, name)] for name in module.state_dict()})
            elif config.follows == "self-attention":
                assert weights is not None, "it starts with self-attention's"
                prefix = f"{path}.attn1."
                own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
                module.copy_weights(own)

    def at(self, place: tuple[str, int], index: int) -> TemporalModule | None:
        """Return the module of a block, None where it has none."""
        number = self.places.get((place, index))
        return None if number is None else self.bank[number]

    def tensors(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return copies of the weights on the CPU by the host's block paths, of another state dict if one is given."""
        own = self.state_dict() if state is None else state
        return {
            temporal_key(path, name): value
            for i, (path, module) in enumerate(zip(self.paths, self.bank, strict=True))
            for name, value in module.tensors(part_of(own, f"bank.{i}.")).items()
        }


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the part of a state dict under a prefix."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def blocks_with_module(blocks: list[Block], config: TemporalConfig) -> list[Block]:
    """Return the blocks that have a temporal module: ControlVideo's code gives the middle block none."""
    return [block for block in blocks if config.follows == "feed-forward" or block.place[0] != "middle"]


def temporal_key(path: str, name: str) -> str:
    """Return the name in a tune of a weight of the temporal module of a block."""
    return f"diffusion_model.{path}.attn_temp.{name}"
