"""Other projects' weights: what is refused before and after they are read."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from consistent_video.modules.files.weight_file import check_packed, check_weights


def test_an_archive_that_is_compressed_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "whole.bin")
    check_packed(tmp_path / "whole.bin")
    made = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "whole.bin") as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(10**6) if name.endswith("data/0") else old.read(name))
    (tmp_path / "packed.bin").write_bytes(made.getvalue())
    with pytest.raises(ValueError, match="is compressed"):
        check_packed(tmp_path / "packed.bin")
    (tmp_path / "other.bin").write_bytes(b"no archive")
    check_packed(tmp_path / "other.bin")


ONE = torch.ones(4)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": ONE.expand(2**34, 4)}, "says that a is larger than the file"),
        ({"a": ONE.to_sparse()}, "stores a as another kind of tensor"),
        ({"a": ONE.to("meta")}, "stores a as another kind of tensor"),
        ({"a": torch.quantize_per_tensor(ONE, 0.1, 0, torch.qint8)}, "stores a as another kind of tensor"),
        ({"a": [ONE]}, "holds more than weights, a is list"),
        ({3: ONE}, "holds more than weights, 3 is int"),
    ],
)
def test_what_is_no_plain_tensor_is_refused_by_name(weights: dict, words: str) -> None:
    check_weights({"a": ONE, "b": ONE.int()}, "x.bin", 16)
    with pytest.raises(ValueError, match=rf"^x\.bin {words}"):
        check_weights(weights, "x.bin", 1000)
