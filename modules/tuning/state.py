"""The state of a tuning as a flat dictionary of tensors, as files hold it."""

from torch import Tensor

NUMBER = ":number"  # ends the flat name of a value that is no tensor


def flat_name(name: str, value: object) -> str:
    """Return the name that a value is saved under."""
    return name if isinstance(value, Tensor) else name + NUMBER


def unflatten(state: dict[str, Tensor], prefix: str) -> dict:
    """Return copies of the values under a prefix, numbers as numbers; what a node read takes no gradients itself."""
    found = {key.removeprefix(prefix): value.clone() for key, value in state.items() if key.startswith(prefix)}
    return {key.removesuffix(NUMBER): value.item() if key.endswith(NUMBER) else value for key, value in found.items()}
