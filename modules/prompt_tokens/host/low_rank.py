"""Low-rank adapters on a private copy's attention projections, by the host's own class for them."""

from functools import partial
from typing import Any

import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...clip_model.host.bank import transformer_blocks
from ...diffusion.seed import to_32_bits

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


class LowRank(nn.Module):
    """LoRA on every projection of both attentions of a copy, float32; the identity before it is learned."""

    def __init__(self, unet: nn.Module, rank: int, device: torch.device, seed: int):
        super().__init__()
        paths = [f"{block.path}.{name}" for block in transformer_blocks(unet) for name in ("attn1", "attn2")]
        self.keys = [f"{path}.{projection}" for path in paths for projection in PROJECTIONS]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(to_32_bits(seed))
            weights = (unet.get_submodule(key).weight.detach().float().cpu() for key in self.keys)
            made = [LoRAAdapter.create_train(weight, rank, float(rank)) for weight in weights]  # rank does not scale it
        self.adapters = nn.ModuleList(made).to(device)
        for key, adapter in zip(self.keys, self.adapters, strict=True):
            unet.get_submodule(key).register_forward_hook(partial(add, adapter))

    def tensors(self) -> dict[str, Tensor]:
        """Return it as the host's LoRA files hold it."""
        adapters = zip(self.keys, self.adapters, strict=True)
        return {
            f"diffusion_model.{key}.{name}": value.detach().cpu().clone()
            for key, adapter in adapters
            for name, value in adapter.state_dict().items()
        }


def add(adapter: Any, _linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Add what an adapter makes of a projection's input."""
    return output + adapter.h(inputs[0], output)
