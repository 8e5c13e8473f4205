"""Where tunes lie: the models folder `consistent_video`, beside the host's own; there lie other projects' too."""

import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import comfy.utils
import folder_paths

FOLDER = "consistent_video"
IMPORTS = "consistent_video_import"  # the host's name of the same folder, with more kinds of files
EXTENSIONS = {FOLDER: {".safetensors"}, IMPORTS: {".safetensors", ".bin", ".pt", ".pth"}}
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


def check_prefix(prefix: str, folder: str) -> Path:
    """Return a models folder in which files of a prefix, which may name subfolders, can lie.

    Raises:
        ValueError: the prefix names no file or leads outside the folder.
    """
    root = Path(folder_paths.get_folder_paths(folder)[0])
    if prefix.endswith(("/", "\\")) or not Path(prefix.strip()).name:
        raise ValueError(f"filename_prefix {prefix!r} names no file. Add a name: clips/swan.")
    if not (root / prefix).resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"filename_prefix {prefix!r} leads outside models/{folder}. Give a name, with subfolders if any."
        )
    return root


def free_path(prefix: str, ending: str = "", folder: str = FOLDER) -> Path:
    """Return the path under the next free number of a prefix, which may name subfolders; the folder is made.

    Raises:
        ValueError: the prefix names no file or leads outside the folder.
    """
    root = check_prefix(prefix, folder)
    root.mkdir(parents=True, exist_ok=True)
    place, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    free = (Path(place) / f"{name}_{number:05}_{ending}" for number in itertools.count(counter))
    return next(path for path in free if not path.exists())


def list_files(folder: str) -> list[str]:
    """Return the names of the files in a models folder, by the host's name of it."""
    return folder_paths.get_filename_list(folder)


def stamp(folder: str, name: str) -> tuple[int, int]:
    """Return what changes when a file is written again: its time and size."""
    stat = Path(folder_paths.get_full_path_or_raise(folder, name)).stat()
    return stat.st_mtime_ns, stat.st_size


@dataclass(frozen=True)
class Shelf(Generic[Kept]):
    """Files of one kind in a models folder of their own, by the host's name of it; how to save and load one."""

    folder: str
    save: Callable[..., None]
    load: Callable[[Path], Kept]

    def write(self, kept: Kept, prefix: str, **how: Any) -> Path:
        """Save under the next free number of a prefix, see `free_path`; returns the file.

        Raises:
            ValueError: the prefix names no file or leads outside the folder.
            OSError: the file could not be written.
        """
        path = free_path(prefix, ".safetensors", self.folder)
        self.save(kept, path, **how)
        return path

    def read(self, name: str) -> Kept:
        """Load a file by its name in the folder.

        Raises:
            ValueError: it is damaged or of another kind.
        """
        return self.load(Path(folder_paths.get_full_path_or_raise(self.folder, name)))


def read_weights(folder: str, name: str) -> dict[str, Any]:
    """Read a file of another project's weights; a pickle only where it holds nothing but weights.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    path = folder_paths.get_full_path_or_raise(folder, name)
    try:
        weights = comfy.utils.load_torch_file(path, safe_load=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name} is damaged or holds more than weights, which could be code that runs when it is read; it was not "
            "read. Save the weights alone, best as safetensors."
        ) from error
    except Exception as error:  # each format has its own, and a file may hold anything
        raise ValueError(f"{name} is damaged or no file of weights ({error}). Copy it again.") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{name} holds more than weights: it is a {type(weights).__name__}. Copy another file.")
    return weights
