"""What a file of tensors may hold."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open

from consistent_video.modules.files.tensor_file import MOST_INFO, Kind, check_tensors, read_file, write_file


@dataclass(frozen=True)
class Made:
    """Nothing that must be said."""

    OPEN: ClassVar = True


KIND = Kind("a_format", 1, "thing", "Make it again.", "Choose another.", Made, {})


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8]
)
def test_numbers_that_float32_holds_pass(dtype: torch.dtype) -> None:
    check_tensors({"a": torch.ones(3), "b": torch.ones(3, dtype=dtype)}, "x.safetensors", "")


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu, torch.complex64]
)
def test_other_fractions_are_refused_by_name(dtype: torch.dtype) -> None:
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"^x\.pt stores b\.weight in {kind}; float32.* are needed\. Copy it\."):
        check_tensors({"a": torch.ones(2), "b.weight": torch.ones(2).to(dtype)}, "x.pt", "Copy it.")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_what_is_not_finite_in_float32_is_refused_by_name(value: float, tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.tensor([1.0, value], dtype=torch.float64)}
    write_file(KIND, tensors, {}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"^x\.safetensors holds values that are not finite .* in b\. Make it again\."):
        read_file(KIND, tmp_path / "x.safetensors")


def test_how_it_was_made_is_strict_json(tmp_path: Path) -> None:
    write_file(KIND, {"a": torch.ones(1)}, {"loss": [0.5, math.nan], "prompt": "\ud800"}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert "NaN" not in file.metadata()["info"]
    assert read_file(KIND, tmp_path / "x.safetensors")[1] == {"loss": [0.5, None], "prompt": "\ud800"}


def test_what_would_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^x\.safetensors would say in .* characters how it was made\. Shorten"):
        write_file(KIND, {"a": torch.ones(1)}, {"prompt": "x" * MOST_INFO}, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


AXES = replace(KIND, tensors={"clip": "f c h", "noises": "steps f c h", "tokens": "n? c"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clip": torch.ones(2, 3)}, r"clip has the shape \(2, 3\), not \(f, c, h\)"),
        ({"noises": torch.ones(5, 2, 4, 4)}, r"noises has the shape \(5, 2, 4, 4\), not \(steps, f, c, h\)"),
        ({"clip": torch.ones(0, 3, 4), "noises": torch.ones(5, 0, 3, 4)}, r"clip has the shape \(0, 3, 4\)"),
        ({"tokens": torch.ones(0, 2)}, r"tokens has the shape \(0, 2\)"),
        ({"tokens": torch.ones(0, 3, dtype=torch.int8)}, "stores tokens in int8; float32, float16 or bfloat16 are"),
    ],
)
def test_axes_agree(change: dict[str, torch.Tensor], words: str, tmp_path: Path) -> None:
    tensors = {"clip": torch.ones(2, 3, 4), "noises": torch.ones(5, 2, 3, 4), "tokens": torch.ones(0, 3)}
    write_file(AXES, tensors | {"state.x": torch.ones(1, dtype=torch.int8)}, {}, tmp_path / "x.safetensors")
    read_file(AXES, tmp_path / "x.safetensors")
    write_file(AXES, tensors | change, {}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"^x\.safetensors .*{words}"):
        read_file(AXES, tmp_path / "x.safetensors")
