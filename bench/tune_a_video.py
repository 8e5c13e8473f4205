"""A tuning that computes as Tune-A-Video's code does."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.clip_model.attention import Attend
from ..modules.clip_model.host.settings import KEY
from ..modules.tuning.host.learned import SKIPS
from ..modules.tuning.host.private_copy import DTYPES
from ..modules.tuning.host.training import Tuning
from .baselines import naive_temporal


def work_as_its_code(made: Tuning, kernel: Attend) -> None:
    """Let a tuning of the Tune-A-Video preset compute as Tune-A-Video's code does."""

    def override(_host_kernel: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any, **__: Any) -> Tensor:
        return kernel(q, k, v, heads)

    unet = made.copy.model.diffusion_model
    unet.float()
    unet.dtype, made.copy.model.manual_cast_dtype = torch.float32, None
    if made.precision != "fp32":
        norms_in_float32(unet)
        casting = torch.autocast(made.copy.load_device.type, DTYPES[made.precision])  # keeps its casts
        made.call = replace(made.call, computing=casting)
    for layer in unet.modules():
        if isinstance(layer, nn.Conv2d):
            del layer.forward  # keeps their inputs
    options = made.call.options
    del options["patches"][SKIPS]  # keeps what is concatenated
    options["optimized_attention_override"] = override
    options[KEY] = replace(options[KEY], rebuild=False)
    assert made.learned.bank is not None, "the preset has temporal modules"
    for module in made.learned.bank.bank:
        module.forward = partial(naive_temporal, module)


def norms_in_float32(unet: nn.Module) -> None:
    """Let a UNet's norms compute and give float32, as under autocast on a GPU; on a CPU it does not see to that."""
    for module in unet.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.forward = partial(apply_in_float32, module)  # type: ignore[method-assign]


def apply_in_float32(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm in float32, whatever replaced its method."""
    with torch.autocast(x.device.type, enabled=False):
        return type(norm).forward(norm, x.float())
