"""What a file of tensors may hold."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open

from consistent_video.modules.files.tensor_file import Kind, check_tensors, read_file, write_file


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
