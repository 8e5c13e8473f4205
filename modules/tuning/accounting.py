"""How much memory a computation takes, counted on tensors without values."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import arg_tree_leaves, tree_leaves


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that PyTorch's operations make as long as they live.

    A storage counts once, however many views it has; one that an operation was given and that none made does not.

    Attributes:
        now, peak: bytes held at present, and at most.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}
        for tensor in held:
            self.note(tensor, True)

    def note(self, value: Any, counts: bool) -> None:
        """Remember the storage of a tensor until it is freed."""
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes() if counts else 0
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        """Take a freed storage off the count."""
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # asked of each tensor of each operation
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        for given in arg_tree_leaves(*args, **kwargs):
            self.note(given, False)
        made = func(*args, **kwargs)
        for new in tree_leaves(made):
            self.note(new, True)
        return made
