"""Files of inversions: the noise of a clip, to edit it again at once."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "consistent_video_inversion"
FORMAT_VERSION = 1
TENSORS = ("samples", "sigmas", "noises", "source")


def save_inversion(tensors: dict[str, Tensor], info: dict[str, Any], path: Path) -> None:
    """Write an inversion as safetensors; the file appears whole or not at all.

    Args:
        tensors: TENSORS: samples at the first of the sigmas and the source (VAE latents, float32), sigmas (float32),
            noises in the order of sampling (float16).
        info: number of frames, power of the samples and what it was made of; JSON values.
        path: of the file.

    Raises:
        OSError: it could not be written.
    """
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "info": json.dumps(info)}
    unfinished = path.with_name(path.name + ".part")
    try:
        save_file({key: tensors[key].detach().cpu().clone().contiguous() for key in TENSORS}, unfinished, metadata)
        os.replace(unfinished, path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path.name} could not be written ({error}). Make room in {path.parent}.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def load_inversion(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an inversion.

    Raises:
        ValueError: the file is damaged, no inversion, or of a newer format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or no safetensors file ({error}). Invert again.") from error
    if metadata.get("format") != FORMAT or not tensors.keys() >= set(TENSORS):
        raise ValueError(
            f"{path.name} is not an inversion of Consistent Video. Choose a file that Save Inversion wrote."
        )
    try:
        version, info = int(metadata["format_version"]), json.loads(metadata["info"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path.name} does not say how it was made. Invert again.") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path.name} has inversion format {version}, this version of Consistent Video reads up to "
            f"{FORMAT_VERSION}. Update the node pack."
        )
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ValueError(f"{path.name} holds values that are not finite. Invert again.")
    return tensors, info
