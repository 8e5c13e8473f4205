"""Tensors that the backward builds again, instead of keeping them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from . import Attend

Build = Callable[[], Tensor]


@contextmanager
def rebuilt(tensors: Sequence[Tensor], builds: Sequence[Build]) -> Iterator[None]:
    """Keep no copy of some tensors, or of views of them, for the backward of what is done inside.

    Not for inside of a checkpoint, which keeps nothing as it is: what a build needs would be kept there.

    Args:
        tensors: whose storages are theirs alone.
        builds: what rebuilds each, in the same layout.
    """
    # By address, not by tensor: the graph keeps both hooks.
    known = {tensor.untyped_storage()._cdata: build for tensor, build in zip(tensors, builds, strict=True)}

    def pack(saved: Tensor) -> Any:
        build = known.get(saved.untyped_storage()._cdata)
        if build is None:
            return saved.detach()  # a result that knew its graph would hold it for ever, where no backward comes
        return build, saved.shape, saved.stride(), saved.storage_offset()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        build, shape, stride, offset = packed
        with torch.no_grad():
            return build().as_strided(shape, stride, offset)

    with saved_tensors_hooks(pack, unpack):
        yield


def attend_to_copies(
    attend: Attend,
    q: Tensor,
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    heads: int,
    copy: Callable[..., Tensor],
    rebuild: bool,
) -> Tensor:
    """Attend to keys and values that are concatenated for it.

    Args:
        attend: attention kernel.
        q: queries.
        k, v: what the keys and the values are made of.
        heads: number of heads.
        copy: concatenates them.
        rebuild: whether the backward does so again, instead of keeping the copies.
    """
    keys, values = copy(*k), copy(*v)
    if not rebuild:
        return attend(q, keys, values, heads)
    with rebuilt((keys, values), [partial(copy, *(part.detach() for part in parts)) for parts in (k, v)]):
        return attend(q, keys, values, heads)
