"""Where tunes lie: the models folder `consistent_video`, beside the host's own; there lie other projects' too."""

import itertools
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import comfy.utils
import folder_paths
from torch import Tensor

from .names import check_prefix, shown
from .weight_file import check_packed, check_weights
from .whole import PART, explained

FOLDER = "consistent_video"
IMPORTS = "consistent_video_import"  # the host's name of the same folder, with more kinds of files
EXTENSIONS = {FOLDER: {".safetensors"}, IMPORTS: {".safetensors", ".bin", ".pt", ".pth"}}
AUTOSAVES = "autosave"  # of tunings, below the tunes' folder
INVERSIONS = "consistent_video_inversions"
OPTICAL_FLOW, LPIPS, CLIP_FOLDERS = "optical_flow", "lpips", "clip_score"  # what measures: the first is the host's own
WEIGHTS = {".safetensors", ".pt", ".pth"}
PROMPT_TOKENS = "consistent_video_prompt_tokens"
Kept = TypeVar("Kept")


def register_folder() -> None:
    """Tell the host of the folders; safe to call again."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    for name, extensions in EXTENSIONS.items():
        folder_paths.folder_names_and_paths[name] = (paths, extensions)
    for name in (INVERSIONS, PROMPT_TOKENS):
        folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))
        folder_paths.folder_names_and_paths[name] = (folder_paths.get_folder_paths(name), {".safetensors"})
    for name in (OPTICAL_FLOW, LPIPS, CLIP_FOLDERS):
        folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))
        paths, extensions = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, extensions or set(WEIGHTS))


def place_of(prefix: str, folder: str) -> tuple[Path, str]:
    """Return a models folder by the host's name of it, and a prefix as it lies in it.

    Raises:
        ValueError: the prefix names no file, or leads outside the folder.
    """
    root, prefix = Path(folder_paths.get_folder_paths(folder)[0]), check_prefix(prefix)
    if not (root / prefix).resolve().is_relative_to(root.resolve()):
        raise ValueError(f"filename_prefix {prefix!r} is a link that leads outside models/{folder}. Give another name.")
    return root, prefix


def save_new(save: Callable[[Path], None], prefix: str, ending: str = "", folder: str = FOLDER) -> Path:
    """Save under the next free number of a prefix, which may name subfolders and is made where it lacks.

    Args:
        save: saves to a path; FileExistsError where it is taken, by another ComfyUI perhaps.
        prefix: name without number and ending.
        ending: of the file.
        folder: the host's name of a models folder.

    Returns:
        Where it was saved.

    Raises:
        ValueError: the prefix names no file, or leads outside the folder.
        OSError: the file could not be written.
    """
    root, prefix = place_of(prefix, folder)
    with explained(root / prefix):
        root.mkdir(parents=True, exist_ok=True)
        place, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    for number in itertools.count(counter):
        with suppress(FileExistsError):
            path = Path(place) / f"{name}_{number:05}_{ending}"
            save(path)
            return path
    raise AssertionError("numbers do not end")


def list_files(folder: str) -> list[str]:
    """Return the names of the files in a models folder, by the host's name of it.

    Those still being written are left out, and of what can be imported our own autosaves.
    """
    names = {name: Path(name).as_posix() for name in folder_paths.get_filename_list(folder)}
    return [
        name
        for name, path in names.items()
        if f"{PART}/" not in path and not (folder == IMPORTS and path.startswith(f"{AUTOSAVES}/"))
    ]


def find_file(folder: str, name: str) -> Path:
    """Return where a file of a models folder lies; FileNotFoundError where it does not."""
    try:
        return Path(folder_paths.get_full_path_or_raise(folder, name))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{shown(name)} is not in models/{folder}. Copy it there, or choose another file."
        ) from error


def stamp(folder: str, name: str) -> tuple[int, int]:
    """Return what changes when a file is written again: its time and size."""
    stat = find_file(folder, name).stat()
    return stat.st_mtime_ns, stat.st_size


@dataclass(frozen=True)
class Shelf(Generic[Kept]):
    """Files of one kind in a models folder of their own, by the host's name of it; how to save and load one."""

    folder: str
    save: Callable[..., None]
    load: Callable[[Path], Kept]

    def write(self, kept: Kept, prefix: str, **how: Any) -> Path:
        """Save under the next free number of a prefix, see `save_new`; returns the file.

        Raises:
            ValueError: the prefix names no file or leads outside the folder.
            OSError: the file could not be written.
        """
        return save_new(partial(self.save, kept, new=True, **how), prefix, ".safetensors", self.folder)

    def read(self, name: str) -> Kept:
        """Load a file by its name in the folder.

        Raises:
            ValueError: it is damaged or of another kind.
        """
        return self.load(find_file(self.folder, name))


def read_weights(folder: str, name: str) -> dict[str, Tensor]:
    """Read a file of another project's weights; a pickle only where it holds nothing but weights.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    path = find_file(folder, name)
    try:
        check_packed(path)
        weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name} is damaged or holds more than weights, which could be code that runs when it is read; it was not "
            "read. Save the weights alone, best as safetensors."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # each format has its own, and a file may hold anything
        raise ValueError(f"{name} is damaged or no file of weights ({error}). Copy it again.") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{name} holds more than weights: it is a {type(weights).__name__}. Copy another file.")
    check_weights(weights, name, path.stat().st_size)
    return {key: value.detach() for key, value in weights.items()}
