"""Nodes for a server that is measured, in which this file lies alone among the custom nodes."""

import dataclasses
import gc
import hashlib
from typing import Any

import torch


class Anything(str):
    """A type of sockets that fits every other."""

    def __ne__(self, other: object) -> bool:
        return False


def add_to(digest: Any, value: Any) -> None:
    """Add all bits of a value to a digest.

    Raises:
        TypeError: it holds something that is neither numbers, texts and tensors nor made of them.
    """
    digest.update(type(value).__name__.encode())
    if isinstance(value, torch.Tensor):
        bits = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode() + bits.numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            add_to(digest, key)
            add_to(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(str(len(value)).encode())
        for each in value:
            add_to(digest, each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            add_to(digest, getattr(value, field.name))
    elif isinstance(value, str | int | float | None):
        digest.update(repr(value).encode())
    else:
        raise TypeError(f"{type(value)} has no bits to compare")


class Digest:
    """Shows what tells a value from others: of a text all of it."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "execute", "faults", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (Anything("*"),)}}

    def execute(self, value: Any) -> dict[str, Any]:
        if isinstance(value, str):
            return {"ui": {"text": [value]}}
        digest = hashlib.sha256()
        add_to(digest, value)
        return {"ui": {"text": [digest.hexdigest()]}}


class CountTensors:
    """Shows how many tensors the process holds."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "execute", "faults", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> float:
        return float("nan")  # always

    def execute(self) -> dict[str, Any]:
        gc.collect()
        return {"ui": {"text": [str(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))]}}


NODE_CLASS_MAPPINGS = {"FaultsDigest": Digest, "FaultsCountTensors": CountTensors}
