"""The state of a tuning, as files hold it: what every one has, whatever is learned."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .updates import NUMBER

VECTORS = {"losses": torch.float64, "rises": torch.int64, "generator": torch.uint8}


def check_state(state: Mapping[str, Tensor], steps: int) -> None:
    """Refuse the state of a tuning after some steps that lacks what every tuning has; none at all passes.

    What belongs to the parameters is checked where the tuning goes on, which knows them.

    Raises:
        ValueError: says what it lacks, or what is not as it should be.
    """
    for key, dtype in VECTORS.items() if state else ():
        if key not in state:
            raise ValueError(f"its state lacks {key}")
        value = state[key]
        if value.dtype != dtype or value.ndim != 1 or key == "losses" and len(value) != steps:
            raise ValueError(f"its state has {key} of {value.dtype} and the shape {tuple(value.shape)}")
    for key, value in state.items():
        if key.endswith(NUMBER) and value.numel() != 1:
            raise ValueError(f"its state has {value.numel()} numbers for {key}")
    if state:
        try:
            torch.Generator().set_state(state["generator"])
        except RuntimeError as error:
            raise ValueError(f"its state has no generator ({error})") from error
