"""Tunes: what one-shot tuning learned, in memory and as a file."""

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..clip_model.attention.spatial import SpatialConfig
from ..clip_model.temporal import TemporalConfig
from ..files.record import Count, Part, read_record
from ..files.tensor_file import STATE, Kind, read_file, write_file
from .state import check_state

DIFFERENCES = {"weight": "diff", "bias": "diff_b"}  # as a LoRA file names them
SNAPSHOT = "snapshot."


@dataclass(frozen=True)
class Made:
    """What a tune's info says that it is applied by; the rest of the info is only shown and compared.

    Attributes:
        spatial, spatial_strength, temporal, temporal_strength, percents: of the patch that it was made with.
        frames: of its clip, 0 = not known.
        tunes: digests of those that its model had.
        loss: of each step, None where it was undefined.
    """

    OPEN: ClassVar = True
    spatial: SpatialConfig | None
    spatial_strength: Part
    temporal: TemporalConfig | None
    temporal_strength: Part
    percents: tuple[Part, Part] = (0.0, 1.0)
    frames: Count = 0
    tunes: list[str] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.percents[0] >= self.percents[1]:
            raise ValueError(f"percents are {self.percents}, so that nothing would act")


FILE = Kind(
    format="consistent_video_tune",
    version=2,
    name="tune",
    again="Save the tune again.",
    instead="Choose a file that Save Tune wrote; LoRA files belong into Load LoRA.",
    info=Made,
    tensors={},
)


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

    @property
    def made(self) -> Made:
        """What its info says that it is applied by; ValueError where that is damaged."""
        try:
            return read_record(Made, self.info, "info")
        except ValueError as error:
            raise ValueError(f"The tune does not say how it was made: {error}. {FILE.again}") from error

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


def save_tune(tune: Tune, path: Path, with_state: bool = False, new: bool = False) -> None:
    """Write a tune as safetensors; the file appears whole or not at all.

    Args:
        tune: what to write.
        path: of the file.
        with_state: also what continuing the tuning needs, three times the size of `tensors`.
        new: whether nothing may be replaced.

    Raises:
        FileExistsError: the path is to be new, and is not.
        OSError: it could not be written.
    """
    tensors = dict(tune.tensors)
    for step, snapshot in tune.snapshots.items():
        tensors |= {f"{SNAPSHOT}{step}.{key}": value for key, value in snapshot.items()}
    if with_state:
        tensors |= {f"{STATE}{key}": value for key, value in tune.state.items()}
    write_file(FILE, tensors, tune.info, path, new)


def load_tune(path: Path) -> Tune:
    """Read a tune.

    Raises:
        ValueError: the file is damaged, not a tune, or of a newer format.
    """
    tensors, info = read_file(FILE, path)
    tune = Tune({}, info)
    for key, value in tensors.items():
        if found := re.fullmatch(rf"{SNAPSHOT}(0|[1-9][0-9]*)\.(.+)", key):
            tune.snapshots.setdefault(int(found[1]), {})[found[2]] = value
        elif key.startswith(STATE):
            tune.state[key.removeprefix(STATE)] = value
        else:
            tune.tensors[key] = value
    try:
        steps = len(tune.made.loss)
        check_snapshots(tune, steps)
        check_state(tune.state, steps)
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}. {FILE.again}") from error
    return tune


def check_snapshots(tune: Tune, steps: int) -> None:
    """Refuse snapshots after more steps than a tune has, or of other tensors than it has."""
    for step, snapshot in tune.snapshots.items():
        if step > steps:
            raise ValueError(f"it has a snapshot after {step} steps, and {steps} steps")
        for key, value in snapshot.items():
            if key not in tune.tensors or value.shape != tune.tensors[key].shape:
                raise ValueError(
                    f"its snapshot after {step} steps has {key} of the shape {tuple(value.shape)}, unlike it"
                )
