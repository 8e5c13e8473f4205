"""Tensors that the backward builds once more, in the place of keeping them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Build = Callable[[], Tensor]


@contextmanager
def rebuilt(tensors: Sequence[Tensor], builds: Sequence[Build]) -> Iterator[None]:
    """Keep no copy of some tensors, or of views of them, for the backward of what is done inside.

    Not for inside of a checkpoint, which keeps nothing as it is: what a build needs would be kept there.

    Args:
        tensors: whose storages are theirs alone.
        builds: what gives each of them again, in the same layout.
    """
    # By address, not by tensor: the graph keeps both hooks.
    known = {tensor.untyped_storage()._cdata: build for tensor, build in zip(tensors, builds, strict=True)}

    def pack(saved: Tensor) -> Any:
        build = known.get(saved.untyped_storage()._cdata)
        return saved if build is None else (build, saved.shape, saved.stride(), saved.storage_offset())

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        build, shape, stride, offset = packed
        with torch.no_grad():
            return build().as_strided(shape, stride, offset)

    with saved_tensors_hooks(pack, unpack):
        yield
