"""Inversions saved on disk."""

from pathlib import Path
from typing import Any

import folder_paths

from ...files.host import INVERSIONS, free_path, stamp
from ..file import load_inversion, save_inversion
from .invert import INVERSION, inversion_of


def inversion_files() -> list[str]:
    """Return the names of the saved inversions."""
    return folder_paths.get_filename_list(INVERSIONS)


def to_file(inversion: dict[str, Any], path: Path) -> None:
    """Write an inversion.

    Raises:
        OSError: it could not be written.
    """
    made = inversion[INVERSION]
    tensors = {"samples": inversion["samples"].float(), **{key: made[key] for key in ("sigmas", "noises", "source")}}
    save_inversion(tensors, {key: made[key] for key in ("num_frames", "model", "made")}, path)


def from_file(path: Path) -> dict[str, Any]:
    """Read an inversion as a LATENT.

    Raises:
        ValueError: the file is damaged or no inversion.
    """
    tensors, info = load_inversion(path)
    kept = {key: tensors[key] for key in ("sigmas", "noises", "source")}
    return {"samples": tensors["samples"], INVERSION: {**kept, **info, "start": tensors["samples"]}}


def write_inversion(inversion: dict[str, Any], prefix: str) -> Path:
    """Save an inversion under the next free number of a prefix; returns the file.

    Raises:
        ValueError: the latent is no inversion, or the prefix names no file or leads outside the folder.
        OSError: it could not be written.
    """
    inversion_of(inversion)
    path = free_path(prefix, ".safetensors", INVERSIONS)
    to_file(inversion, path)
    return path


def read_inversion(name: str) -> dict[str, Any]:
    """Load a saved inversion by its name in the folder."""
    return from_file(Path(folder_paths.get_full_path_or_raise(INVERSIONS, name)))


def inversion_stamp(name: str) -> tuple[int, int]:
    """Return what changes when a saved inversion is written again."""
    return stamp(INVERSIONS, name)
