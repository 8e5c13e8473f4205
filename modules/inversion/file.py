"""Files of inversions: the noise of a clip, to edit it again at once."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ..files.tensor_file import Kind, read_file, write_file

FILE = Kind(
    format="consistent_video_inversion",
    version=1,
    name="inversion",
    again="Invert again.",
    instead="Choose a file that Save Inversion wrote.",
)
TENSORS = ("samples", "sigmas", "noises", "source")


def save_inversion(tensors: dict[str, Tensor], info: dict[str, Any], path: Path) -> None:
    """Write an inversion as safetensors; the file appears whole or not at all.

    Args:
        tensors: TENSORS: samples at the first of the sigmas and the source (VAE latents, float32), sigmas (float32),
            noises in the order of sampling (float16).
        info: number of frames, digest of the model and what it was made of; JSON values.
        path: of the file.

    Raises:
        OSError: it could not be written.
    """
    write_file(FILE, {key: tensors[key] for key in TENSORS}, info, path)


def load_inversion(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an inversion.

    Raises:
        ValueError: the file is damaged, no inversion, or of a newer format.
    """
    tensors, info = read_file(FILE, path)
    if not tensors.keys() >= set(TENSORS):
        raise ValueError(f"{path.name} is not {FILE.named} of Consistent Video: it lacks tensors. {FILE.instead}")
    return tensors, info
