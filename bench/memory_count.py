"""Memory of tensors: measured on a GPU, counted where there is none."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..modules.tuning.accounting import Held
from .timing import Call, synchronise

GIB, MIB = 2**30, 2**20
OUT_OF_MEMORY = "out of memory"
Measured = TypeVar("Measured")


def if_it_fits(measure: Callable[[], Measured]) -> Measured | None:
    """Return what is measured; None where the memory of the GPU does not suffice."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        pass
    gc.collect()  # what it had made until then
    return None


class HeldWithoutValues(Held):
    """The same for tensors without values: a number that is asked for is 1, tensors are equal, the first is nonzero."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if func is torch.ops.aten.equal.default:
            return True
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_zeros(1, args[0].ndim, dtype=torch.long)
        return super().__torch_dispatch__(func, types, args, kwargs)


def replace_parameters(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Stand in for the method behind `nn.Module.to`, which cannot exchange tensors without values in place."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    with torch.no_grad():
        for key, parameter in self._parameters.items():
            if parameter is not None:
                self._parameters[key] = nn.Parameter(fn(parameter), parameter.requires_grad)
        for key, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[key] = fn(buffer)
    return self


def write_gib(held: int | None) -> str:
    """Return bytes in GiB; None is what did not fit."""
    return OUT_OF_MEMORY if held is None else f"{held / GIB:.3g}"


@contextmanager
def without_values() -> Iterator[Held]:
    """Let tensors that are made have shapes and no values, and count the memory that they would hold.

    Operations then take next to no time and memory. What a kernel holds inside itself, and what an allocator wastes,
    is not seen.
    """
    with mock.patch.object(nn.Module, "_apply", replace_parameters), FakeTensorMode(), HeldWithoutValues() as held:
        yield held


def extra_memory(call: Call, device: torch.device) -> int:
    """Return the bytes that a call holds at most beyond what was there before it."""
    if device.type != "cuda":
        with Held() as held:
            call()
        return held.peak
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before


class Peak:
    """The most that is held between `begin` and `end`: of a GPU measured, else of tensors without values."""

    def __init__(self, held: Held | None):
        self.held = held
        self.dtype = None if held is None else torch.bfloat16  # of the model; None = the host's choice

    def begin(self) -> None:
        """Forget what was held before."""
        if self.held is not None:
            self.held.peak = self.held.now
        else:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def now(self) -> int:
        """Return the bytes held at present."""
        return self.held.now if self.held is not None else torch.cuda.memory_allocated()

    def end(self) -> int:
        """Return the most bytes held since."""
        return self.held.peak if self.held is not None else torch.cuda.max_memory_allocated()


@contextmanager
def measured_peak(device: str) -> Iterator[Peak]:
    """Measure memory on a GPU; elsewhere let tensors have no values, and account for them."""
    if device == "cuda":
        yield Peak(None)
    else:
        with without_values() as held:
            yield Peak(held)
