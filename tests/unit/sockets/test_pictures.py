"""Images and masks of every kind become frames, or are refused by name."""

import math

import pytest
import torch

from consistent_video.modules.sockets.pictures import read_images, read_mask

PICTURES = torch.rand(3, 5, 7, 3, generator=torch.Generator().manual_seed(0))


def test_alpha_is_left_out_and_grey_is_repeated() -> None:
    alpha = torch.cat([PICTURES, torch.zeros(3, 5, 7, 1)], dim=-1)
    assert torch.equal(read_images(alpha, "source"), PICTURES)
    assert torch.equal(read_images(PICTURES[..., :1], "source"), PICTURES[..., [0, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype) -> None:
    found = read_images(PICTURES.to(dtype), "source")
    assert found.dtype == torch.float32 and torch.equal(found, PICTURES.to(dtype).float())


def test_bytes_are_parts_of_255() -> None:
    found = read_images((PICTURES * 255).round().byte(), "source")
    torch.testing.assert_close(found, PICTURES, atol=0.5 / 255, rtol=0)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (PICTURES[0], r"edit_2 has the shape \(5, 7, 3\); images are \(frames, height, width, 3\)"),
        (PICTURES[None], r"edit_2 has the shape \(1, 3, 5, 7, 3\)"),
        (PICTURES[..., :2], r"edit_2 has the shape \(3, 5, 7, 2\)"),
        (PICTURES[:0], r"edit_2 is empty, of shape \(0, 5, 7, 3\)"),
        (PICTURES[:, :0], r"edit_2 is empty, of shape \(3, 0, 7, 3\)"),
        (PICTURES * math.nan, "edit_2 holds values that are not finite"),
        (PICTURES / 0, "edit_2 holds values that are not finite"),
        ((PICTURES * 255).long(), "edit_2 holds int64 values"),
        (PICTURES.to(torch.float8_e4m3fn), "edit_2 holds float8_e4m3fn values"),
        ({"samples": PICTURES}, "edit_2 has the shape dict"),
    ],
)
def test_what_are_no_images_is_refused_with_what_to_connect(images, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}.*Connect the frames of a clip"):
        read_images(images, "edit_2")


def test_a_mask_keeps_its_values() -> None:
    mask = PICTURES[..., 0]
    assert torch.equal(read_mask(mask), mask) and torch.equal(read_mask(mask[0]), mask[:1])
    assert torch.equal(read_mask(mask > 0.5), (mask > 0.5).float()) and read_mask(mask.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (PICTURES, r"mask has the shape \(3, 5, 7, 3\)"),
        (PICTURES[:0, ..., 0], r"mask is empty, of shape \(0, 5, 7\)"),
        (PICTURES[..., 0] * math.nan, "mask holds values that are not finite"),
        (PICTURES[..., 0].byte(), "mask holds uint8 values"),
    ],
)
def test_what_is_no_mask_is_refused_with_what_to_connect(mask: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}.*Connect a mask"):
        read_mask(mask)
