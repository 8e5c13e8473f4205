"""Tunes: what one-shot tuning learned, in memory and as a file."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "consistent_video_tune"
FORMAT_VERSION = 1
NEEDED = ("spatial", "spatial_strength", "temporal", "temporal_strength")


@dataclass(frozen=True)
class Tune:
    """What was learned on one clip.

    Attributes:
        tensors: by the host's block paths: `<block>.attn1.to_q.diff` and `<block>.attn2.to_q.diff` are differences to
            the base model's weights (the names a LoRA file uses), `<block>.attn_temp.*` the temporal module.
        info: how it was made: frames, spatial, temporal, steps, learning_rate, seed, prediction, loss; JSON values.
    """

    tensors: dict[str, Tensor]
    info: dict[str, Any]


def save_tune(tune: Tune, path: Path) -> None:
    """Write a tune as safetensors; the file appears whole or not at all."""
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "info": json.dumps(tune.info)}
    unfinished = path.with_name(path.name + ".part")
    try:
        tensors = {key: value.detach().cpu().clone().contiguous() for key, value in tune.tensors.items()}
        save_file(tensors, unfinished, metadata)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_tune(path: Path) -> Tune:
    """Read a tune.

    Raises:
        ValueError: the file is damaged, not a tune, or of a newer format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or no safetensors file ({error}). Save the tune again.") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path.name} is not a tune of Consistent Video (its format is {metadata.get('format')!r}). "
            "Choose a file that Save Tune wrote; LoRA files belong into Load LoRA."
        )
    try:
        version, info = int(metadata["format_version"]), json.loads(metadata["info"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path.name} does not say how it was made. Save the tune again.") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path.name} has tune format {version}, this version of Consistent Video reads up to {FORMAT_VERSION}. "
            "Update the node pack."
        )
    if not isinstance(info, dict) or not info.keys() >= set(NEEDED):
        raise ValueError(f"{path.name} does not say how it was made. Save the tune again.")
    return Tune(tensors, info)
