"""Inversions saved on disk."""

from pathlib import Path
from typing import Any

import folder_paths

from ...files.host import INVERSIONS, free_path, stamp
from ..file import load_inversion, save_inversion
from ..inversion import Inversion
from .invert import inversion_of


def inversion_files() -> list[str]:
    """Return the names of the saved inversions."""
    return folder_paths.get_filename_list(INVERSIONS)


def write_inversion(latent: dict[str, Any], prefix: str) -> Path:
    """Save an inversion under the next free number of a prefix; returns the file.

    Raises:
        ValueError: the latent is no inversion, or the prefix names no file or leads outside the folder.
        OSError: it could not be written.
    """
    inversion = inversion_of(latent)
    path = free_path(prefix, ".safetensors", INVERSIONS)
    save_inversion(inversion, path)
    return path


def read_inversion(name: str) -> Inversion:
    """Load a saved inversion by its name in the folder.

    Raises:
        ValueError: the file is damaged or no inversion.
    """
    return load_inversion(Path(folder_paths.get_full_path_or_raise(INVERSIONS, name)))


def inversion_stamp(name: str) -> tuple[int, int]:
    """Return what changes when a saved inversion is written again."""
    return stamp(INVERSIONS, name)
