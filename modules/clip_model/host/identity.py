"""What identifies the parts of a model across restarts."""

from collections.abc import Iterator
from typing import Any

from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

SAMPLED = 256  # values of a tensor that a digest looks at; no two models share them


def flatten(part: Any) -> Iterator[bytes]:
    """Yield bytes that identify a part of a model; of a tensor its shape and values at equal distances."""
    if isinstance(part, Tensor):
        flat = part.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu().numpy()
        yield f"{tuple(part.shape)} ".encode() + values.tobytes()
    elif isinstance(part, WeightAdapterBase):
        yield from flatten(part.weights)
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from flatten(inner)
    elif not callable(part):
        yield repr(part).encode()
