"""Where tunes lie: the models folder `consistent_video`, beside the host's own."""

import itertools
from pathlib import Path

import folder_paths

from ..weights import Tune, load_tune, save_tune

FOLDER = "consistent_video"


def register_folder() -> None:
    """Tell the host of the folder; safe to call again."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


def tune_files() -> list[str]:
    """Return the names of the saved files."""
    return folder_paths.get_filename_list(FOLDER)


def write_tune(tune: Tune, prefix: str, with_state: bool = False) -> Path:
    """Save a tune under the next free number of a prefix, which may name subfolders; returns the file.

    Args:
        tune: what to save.
        prefix: name without number, below the folder.
        with_state: also what continuing the tuning needs.

    Raises:
        ValueError: the prefix names no file or leads outside the folder.
        OSError: the file could not be written.
    """
    root = Path(folder_paths.get_folder_paths(FOLDER)[0])
    if prefix.endswith(("/", "\\")) or not Path(prefix.strip()).name:
        raise ValueError(f"filename_prefix {prefix!r} names no file. Add a name: clips/swan.")
    if not (root / prefix).resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"filename_prefix {prefix!r} leads outside models/{FOLDER}. Give a name, with subfolders if any."
        )
    root.mkdir(parents=True, exist_ok=True)
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    free = (Path(folder) / f"{name}_{number:05}_.safetensors" for number in itertools.count(counter))
    path = next(path for path in free if not path.exists())
    save_tune(tune, path, with_state)
    return path


def tune_stamp(name: str) -> tuple[int, int]:
    """Return what changes when a saved file is written anew: its time and size."""
    stat = Path(folder_paths.get_full_path_or_raise(FOLDER, name)).stat()
    return stat.st_mtime_ns, stat.st_size


def read_tune(name: str) -> Tune:
    """Load a saved tune by its name in the folder."""
    return load_tune(Path(folder_paths.get_full_path_or_raise(FOLDER, name)))
