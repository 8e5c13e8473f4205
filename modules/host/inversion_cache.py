"""Inversions on disk: saved by name, and kept by what they were made of."""

import logging
import time
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher

from ..inversion_file import FILE, load_inversion, save_inversion
from .files import INVERSIONS, free_path, stamp
from .identity import NotIdentified, digest, model_digest
from .inversion import INVERSION, InversionSettings, inversion_of, invert_clip

CACHE = "cache"
CACHE_GB = 20.0  # the inversions that were used longest ago go beyond it
METHOD_VERSION = 2  # raised when the same inputs give another inversion
log = logging.getLogger(__name__)


def inversion_files() -> list[str]:
    """Return the names of the saved inversions."""
    return [name for name in folder_paths.get_filename_list(INVERSIONS) if Path(name).parts[0] != CACHE]


def to_file(inversion: dict[str, Any], path: Path) -> None:
    """Write an inversion.

    Raises:
        OSError: it could not be written.
    """
    made = inversion[INVERSION]
    tensors = {"samples": inversion["samples"].float(), **{key: made[key] for key in ("sigmas", "noises", "source")}}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_inversion(tensors, {key: made[key] for key in ("num_frames", "model", "made")}, path)


def from_file(path: Path) -> dict[str, Any]:
    """Read an inversion as a LATENT.

    Raises:
        ValueError: the file is damaged or no inversion.
    """
    tensors, info = load_inversion(path)
    kept = {key: tensors[key] for key in ("sigmas", "noises", "source")}
    return {"samples": tensors["samples"], INVERSION: {"model": "", **kept, **info, "start": tensors["samples"]}}


def write_inversion(inversion: dict[str, Any], prefix: str) -> Path:
    """Save an inversion under the next free number of a prefix; returns the file.

    Raises:
        ValueError: the latent is no inversion, or the prefix names no file or leads outside the folder.
        OSError: it could not be written.
    """
    inversion_of(inversion)
    if Path(prefix).parts[:1] == (CACHE,):
        raise ValueError(f"filename_prefix {prefix!r} leads into the folder of kept inversions. Choose another folder.")
    path = free_path(prefix, ".safetensors", INVERSIONS)
    to_file(inversion, path)
    return path


def read_inversion(name: str) -> dict[str, Any]:
    """Load a saved inversion by its name in the folder."""
    return from_file(Path(folder_paths.get_full_path_or_raise(INVERSIONS, name)))


def inversion_stamp(name: str) -> tuple[int, int]:
    """Return what changes when a saved inversion is written anew."""
    return stamp(INVERSIONS, name)


def invert_once(
    model: ModelPatcher, positive: list, negative: list, latent: dict[str, Any], settings: InversionSettings
) -> tuple[dict[str, Any], bool]:
    """Invert a clip, or take the inversion of the same model, prompts, clip and settings from disk.

    A damaged file is replaced. Where a model or prompt holds what cannot be told apart, nothing is kept.

    Returns:
        LATENT as `invert_clip`, and whether it was there.
    """
    began = time.monotonic()
    try:
        name = digest(
            FILE.version, METHOD_VERSION, model_digest(model), positive, negative, latent["samples"], settings
        )
    except NotIdentified as what:
        log.warning("The inversion is not kept: what it depends on holds %s, which cannot be told from others.", what)
        return invert_clip(model, positive, negative, latent, settings), False
    path = Path(folder_paths.get_folder_paths(INVERSIONS)[0]) / CACHE / f"{name}.safetensors"
    if path.is_file():
        try:
            inversion = {**latent, **from_file(path)}
            inversion.pop("noise_mask", None)
            path.touch()
            log.info("Inversion taken from %s in %.1f s", path.name, time.monotonic() - began)
            return inversion, True
        except (ValueError, OSError) as error:
            log.warning("%s", error)
    inversion = invert_clip(model, positive, negative, latent, settings)
    try:
        to_file(inversion, path)
        prune(path.parent, CACHE_GB * 1e9)
    except OSError as error:  # the inversion is there, only not kept
        log.warning("The inversion is not kept: %s", error)
    return inversion, False


def prune(folder: Path, limit: float) -> None:
    """Remove the files of a folder that were used longest ago until the rest has at most so many bytes."""
    newest_first = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    used = 0
    for path in newest_first:
        used += path.stat().st_size
        if used > limit and path != newest_first[0]:
            path.unlink()
            log.info("Removed the kept inversion %s: all take more than %.0f GB", path.name, limit / 1e9)
