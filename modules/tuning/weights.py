"""Tunes: what one-shot tuning learned, in memory and as a file."""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.tensor_file import Kind, read_file, write_file

FILE = Kind(
    format="consistent_video_tune",
    version=2,
    name="tune",
    again="Save the tune again.",
    instead="Choose a file that Save Tune wrote; LoRA files belong into Load LoRA.",
)
DIFFERENCES = {"weight": "diff", "bias": "diff_b"}  # as a LoRA file names them
SNAPSHOT, STATE = "snapshot.", "state."
NEEDED = ("spatial", "spatial_strength", "temporal", "temporal_strength")


@dataclass(frozen=True)
class Tune:
    """What was learned on one clip.

    Attributes:
        tensors: by the host's block paths: `<block>.attn1.to_q.diff` and `<block>.attn2.to_q.diff`, with ControlVideo's
            module `<block>.attn1.to_out.0.diff` and `.diff_b`, are differences to the base model's weights (the names a
            LoRA file uses), `<block>.attn_temp.*` the temporal module.
        info: how it was made: frames, spatial, temporal, steps, learning_rate, seed, prediction, loss; JSON values.
        snapshots: what `tensors` were after some numbers of steps, 0 = before the first; float16, zeros left out.
        state: of the tuning at its end, to continue it; empty where it was not kept.
    """

    tensors: dict[str, Tensor]
    info: dict[str, Any]
    snapshots: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)

    def digest(self) -> str:
        """Return what tells this tune from others."""
        return hashlib.sha256(json.dumps(self.info, sort_keys=True).encode()).hexdigest()

    def at(self, progress: float) -> "Tune":
        """Return the tune as it was after a part of its steps, between the snapshots on either side by interpolation.

        Args:
            progress: 0 = before the first step, 1 = at the end.

        Raises:
            ValueError: it has no snapshots, or progress is no part of the steps.
        """
        if progress == 1:
            return self
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is {progress:g}. Set it from 0, before the tuning, to 1, its end.")
        if not self.snapshots:
            raise ValueError(
                f"The tune has no snapshots, so that it is known at its end alone and not at {progress:g} of its "
                "steps. Set snapshots in One-Shot Tune, or leave progress at 1."
            )
        last = len(self.info["loss"])
        known = {**self.snapshots, last: self.tensors}
        steps, step = sorted(known), progress * last
        after = steps[bisect_left(steps, step)]
        before = steps[max(0, bisect_left(steps, step) - 1)]
        weight = (step - before) / (after - before) if after > before else 1.0

        def value(step: int, key: str) -> Tensor:
            return known[step].get(key, torch.zeros_like(self.tensors[key])).float()

        tensors = {key: torch.lerp(value(before, key), value(after, key), weight) for key in self.tensors}
        return replace(self, tensors=tensors, snapshots={}, state={})


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of tensors' values in float32, whatever their device."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_tune(tune: Tune, path: Path, with_state: bool = False) -> None:
    """Write a tune as safetensors; the file appears whole or not at all.

    Args:
        tune: what to write.
        path: of the file.
        with_state: also what continuing the tuning needs, three times the size of `tensors`.

    Raises:
        OSError: it could not be written.
    """
    tensors = dict(tune.tensors)
    for step, snapshot in tune.snapshots.items():
        tensors |= {f"{SNAPSHOT}{step}.{key}": value for key, value in snapshot.items()}
    if with_state:
        tensors |= {f"{STATE}{key}": value for key, value in tune.state.items()}
    write_file(FILE, tensors, tune.info, path)


def load_tune(path: Path) -> Tune:
    """Read a tune.

    Raises:
        ValueError: the file is damaged, not a tune, or of a newer format.
    """
    tensors, info = read_file(FILE, path)
    if not isinstance(info, dict) or not info.keys() >= set(NEEDED):
        raise ValueError(f"{path.name} does not say how it was made. {FILE.again}")
    tune = Tune({}, info)
    for key, value in tensors.items():
        if key.startswith(SNAPSHOT):
            step, name = key.removeprefix(SNAPSHOT).split(".", 1)
            tune.snapshots.setdefault(int(step), {})[name] = value
        elif key.startswith(STATE):
            tune.state[key.removeprefix(STATE)] = value
        else:
            tune.tensors[key] = value
    return tune
