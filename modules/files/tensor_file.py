"""Safetensors files of the pack: what a file is, what it holds, its version, and how its content was made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..sockets.pictures import FRACTIONS
from .record import read_record
from .strict_json import read_json, without_undefined
from .whole import appearing

MOST_INFO = 8 * 2**20  # characters of how a file was made: 100,000 steps of all losses are less
NEEDED = "float32, float16 or bfloat16 are needed"
STATE = "state."  # begins the names of tensors that may be of any type


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        format: what the metadata calls it.
        version: of the format, the only one that is read.
        name: what a user calls it, "tune".
        again: how to get a whole one, "Save the tune again."
        instead: which files are of this kind, "Choose a file that Save Tune wrote."
        info: a record of what it must say of how it was made; it may say more.
        tensors: names of the axes of those that it must hold, "f c h w": axes of one name are equally long, none is
            empty but those that end with "?".
    """

    format: str
    version: int
    name: str
    again: str
    instead: str
    info: type
    tensors: Mapping[str, str]

    @property
    def named(self) -> str:
        """Its name with the article."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


def write_file(kind: Kind, tensors: dict[str, Tensor], info: dict[str, Any], path: Path, new: bool = False) -> None:
    """Write tensors and how they were made, JSON values; the file appears whole or not at all.

    Raises:
        ValueError: it would not be read again.
        FileExistsError: the path is to be new, and is not.
        OSError: it could not be written.
    """
    made = json.dumps(without_undefined(info), allow_nan=False)
    if len(made) > MOST_INFO:
        raise ValueError(f"{path.name} would say in {len(made)} characters how it was made. Shorten the noted prompt.")
    metadata = {"format": kind.format, "format_version": str(kind.version), "info": made}
    with appearing(path, new) as unfinished:
        save_file(
            {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, unfinished, metadata
        )


def read_file(kind: Kind, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a file's tensors and how they were made, all as the kind of file says.

    Raises:
        ValueError: the file is damaged, of another kind, or of another version of the format, or holds numbers that
            are not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            keys = file.keys() if metadata.get("format") == kind.format else ()
            tensors = {key: file.get_tensor(key) for key in keys}
    except OSError:
        raise
    except Exception as error:  # the library has several, and a file may say anything
        raise ValueError(f"{path.name} is damaged or no safetensors file ({error}). {kind.again}") from error
    info = read_info(kind, metadata, path.name)
    try:
        check_axes(tensors, kind.tensors)
    except ValueError as error:
        raise ValueError(f"{path.name} is not {kind.named} of Consistent Video: {error}. {kind.instead}") from error
    check_tensors(tensors, path.name, kind.again)
    for key, value in tensors.items():
        if not key.startswith(STATE) and not value.is_floating_point():
            raise ValueError(f"{path.name} stores {key} in {type_name(value)}; {NEEDED}. {kind.again}")
    return tensors, info


def read_info(kind: Kind, metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """Return from a file's metadata how it was made.

    Raises:
        ValueError: it is of another kind, of another version of the format, or does not say what it must.
    """
    if metadata.get("format") != kind.format:
        raise ValueError(
            f"{name} is not {kind.named} of Consistent Video (its format is {metadata.get('format')!r:.60}). "
            f"{kind.instead}"
        )
    version, text = metadata.get("format_version", ""), metadata.get("info", "")
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise ValueError(f"{name} does not say how it was made: its version is {version!r:.60}. {kind.again}")
    if int(version) < kind.version:
        raise ValueError(
            f"{name} has {kind.name} format {version}, from before the first release, and is not read any more. "
            f"{kind.again}"
        )
    if int(version) > kind.version:
        raise ValueError(
            f"{name} has {kind.name} format {version}, this version of Consistent Video reads up to {kind.version}. "
            "Update the node pack."
        )
    try:
        if len(text) > MOST_INFO:
            raise ValueError(f"it takes {len(text)} characters to")
        info = read_json(text)
        read_record(kind.info, info, "info")
    except ValueError as error:
        raise ValueError(f"{name} does not say how it was made: {error}. {kind.again}") from error
    return info


def check_axes(tensors: Mapping[str, Tensor], axes: Mapping[str, str]) -> None:
    """Refuse tensors that are absent, or whose axes do not agree; see `Kind.tensors`."""
    sizes: dict[str, int] = {}
    for key, named in axes.items():
        if key not in tensors:
            raise ValueError(f"it lacks the tensor {key}")
        shape, names = tuple(tensors[key].shape), named.split()
        fits = len(names) == len(shape) and all(
            sizes.setdefault(name, size) == size and (size or name.endswith("?"))
            for name, size in zip(names, shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"{key} has the shape {shape}, not ({', '.join(names)}) with {sizes or 'none of it empty'}"
            )


def type_name(value: Tensor) -> str:
    """Return the name of a tensor's type."""
    return str(value.dtype).removeprefix("torch.")


def check_tensors(tensors: Mapping[str, Tensor], source: str, instead: str) -> None:
    """Refuse numbers that float32 cannot hold to its precision, such as float8, or not finite; whole numbers pass.

    Raises:
        ValueError: names the file, the first such tensor and what is wrong with it.
    """
    for key, value in tensors.items():
        if (value.is_floating_point() or value.is_complex()) and value.dtype not in FRACTIONS:
            raise ValueError(f"{source} stores {key} in {type_name(value)}; {NEEDED}. {instead}")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise ValueError(f"{source} holds values that are not finite (NaN or infinity) in {key}. {instead}")
