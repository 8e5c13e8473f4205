"""What Attention Control keeps of the source from one edit to the next, as far as a budget goes."""

import logging
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import folder_paths
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Where = Literal["nowhere", "GPU", "CPU", "disk"]
Place = tuple[Any, ...]
Maps = dict[tuple[int, int], Tensor]
GB = 1e9  # bytes
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """What the source's call at a step computed.

    Attributes:
        projected: queries and keys by attention layer.
        maps: word maps by their height and width.
    """

    projected: dict[Place, tuple[Tensor, Tensor]] = field(default_factory=dict)
    maps: Maps = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """Return all tensors in a fixed order."""
        return [x for pair in self.projected.values() for x in pair] + list(self.maps.values())

    def with_tensors(self, tensors: list[Tensor]) -> "Kept":
        """Return the same with other tensors in that order."""
        left = iter(tensors)
        projected = {place: (next(left), next(left)) for place in self.projected}
        return Kept(projected, {size: next(left) for size in self.maps})


class SourceStore:
    """The source's calls at some steps, on the GPU, the CPU or the disk.

    Args:
        where: they are kept.
        budget: bytes that they may take in all; what does not fit is not kept.
    """

    def __init__(self, where: Where, budget: float):
        self.where, self.budget, self.used = where, budget, 0
        self.steps: dict[int, Kept] = {}
        self.sizes: dict[int, int] = {}
        self.folder: Path | None = None

    def put(self, step: int, kept: Kept) -> None:
        """Keep the call of a step, if it fits."""
        tensors = kept.tensors()
        size = sum(x.nbytes for x in tensors)
        if step in self.steps or self.used + size > self.budget:
            return
        if self.where == "disk":
            try:
                save_file({str(i): x.contiguous() for i, x in enumerate(tensors)}, self.file(step))
            except (OSError, SafetensorError) as error:
                log.warning("Attention Control keeps no more of the source: %s", error)
                self.budget = self.used
                return
            tensors = [torch.empty(0)] * len(tensors)
        elif self.where == "CPU":
            tensors = [x.cpu() for x in tensors]
        self.used, self.sizes[step] = self.used + size, size
        self.steps[step] = kept.with_tensors(tensors)

    def get(self, step: int, device: torch.device) -> Kept | None:
        """Return the call of a step on a device, None where it was not kept."""
        kept = self.steps.get(step)
        if kept is None:
            return None
        tensors = kept.tensors()
        if self.where == "disk":
            try:
                read = load_file(self.file(step))
            except (OSError, SafetensorError) as error:
                log.warning("What Attention Control kept of step %d is computed again: %s", step, error)
                del self.steps[step]
                self.used -= self.sizes.pop(step)
                return None
            tensors = [read[str(i)] for i in range(len(tensors))]
        return kept.with_tensors([x.to(device) for x in tensors])

    def file(self, step: int) -> Path:
        """Return the file of a step, in a folder that goes when the store does."""
        if self.folder is None:
            temporary = Path(folder_paths.get_temp_directory())
            temporary.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix="consistent_video_source_", dir=temporary))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        return self.folder / f"{step}.safetensors"


STORES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by the noises of an inversion: they go with it


def store_of(noises: Tensor, key: str, where: Where, budget: float) -> SourceStore:
    """Return the store of an inversion, a new one where what is to be kept has changed.

    Args:
        noises: of the inversion, the very tensor.
        key: what the source's calls depend on besides.
        where, budget: of the store.
    """
    found = STORES.get(noises)
    if found is None or found[0] != (key, where, budget):
        found = STORES[noises] = (key, where, budget), SourceStore(where, budget)
    return found[1]
