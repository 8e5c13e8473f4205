"""Safetensors files of the pack: what a file is, its version, and how its content was made."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..sockets.pictures import FRACTIONS
from .strict_json import without_undefined


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        format: what the metadata calls it.
        version: of the format, the only one that is read.
        name: what a user calls it, "tune".
        again: how to get a whole one, "Save the tune again."
        instead: which files are of this kind, "Choose a file that Save Tune wrote."
    """

    format: str
    version: int
    name: str
    again: str
    instead: str

    @property
    def named(self) -> str:
        """Its name with the article."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"


def write_file(kind: Kind, tensors: dict[str, Tensor], info: dict[str, Any], path: Path) -> None:
    """Write tensors and how they were made, JSON values; the file appears whole or not at all.

    Raises:
        OSError: it could not be written.
    """
    made = json.dumps(without_undefined(info), allow_nan=False)
    metadata = {"format": kind.format, "format_version": str(kind.version), "info": made}
    unfinished = path.with_name(path.name + ".part")
    try:
        save_file(
            {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, unfinished, metadata
        )
        os.replace(unfinished, path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path.name} could not be written ({error}). Make room in {path.parent}.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def read_file(kind: Kind, path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return a file's tensors and how they were made.

    Raises:
        ValueError: the file is damaged, of another kind, or of another version of the format, or holds numbers that
            are not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or no safetensors file ({error}). {kind.again}") from error
    if metadata.get("format") != kind.format:
        raise ValueError(
            f"{path.name} is not {kind.named} of Consistent Video (its format is {metadata.get('format')!r}). "
            f"{kind.instead}"
        )
    try:
        version, info = int(metadata["format_version"]), json.loads(metadata["info"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path.name} does not say how it was made. {kind.again}") from error
    if version < kind.version:
        raise ValueError(
            f"{path.name} has {kind.name} format {version}, from before the first release, and is not read any more. "
            f"{kind.again}"
        )
    if version > kind.version:
        raise ValueError(
            f"{path.name} has {kind.name} format {version}, this version of Consistent Video reads up to "
            f"{kind.version}. Update the node pack."
        )
    check_tensors(tensors, path.name, kind.again)
    return tensors, info


def check_tensors(tensors: Mapping[str, Tensor], source: str, instead: str) -> None:
    """Refuse numbers that float32 cannot hold to its precision, such as float8, or not finite; whole numbers pass.

    Raises:
        ValueError: names the file, the first such tensor and what is wrong with it.
    """
    for key, value in tensors.items():
        kind = str(value.dtype).removeprefix("torch.")
        if (value.is_floating_point() or value.is_complex()) and value.dtype not in FRACTIONS:
            raise ValueError(f"{source} stores {key} in {kind}; float32, float16 or bfloat16 are needed. {instead}")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise ValueError(f"{source} holds values that are not finite (NaN or infinity) in {key}. {instead}")
