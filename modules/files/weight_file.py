"""Other projects' files of weights: what is refused before and after they are read."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def check_packed(path: Path) -> None:
    """Refuse an archive of PyTorch's that is compressed, as PyTorch never writes it: it could grow a thousandfold.

    Raises:
        ValueError: a part is compressed.
        zipfile.BadZipFile: it begins as an archive and is none.
    """
    with open(path, "rb") as file:
        is_archive = file.read(2) == b"PK"
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            packed = [part.filename for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"its part {packed[0]} is compressed")


def check_weights(weights: Mapping[Any, Any], name: str, size: int) -> None:
    """Refuse what is not plain tensors by name, none of them larger than their file.

    Args:
        weights: as they were read.
        name: of the file.
        size: of the file, bytes.

    Raises:
        ValueError: names the file, the first such entry and what it is.
    """
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value if isinstance(key, str) else key).__name__
            raise ValueError(
                f"{name} holds more than weights, {key!s:.100} is {kind}: perhaps the state of a training. Choose a "
                "file of weights alone."
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
            raise ValueError(f"{name} stores {key:.100} as another kind of tensor than a dense one. Save it dense.")
        if value.numel() * value.element_size() > size:
            raise ValueError(f"{name} says that {key:.100} is larger than the file: it is damaged. Copy it again.")
