"""Clips survive a file, and are fitted and drawn as they should."""

import struct
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageSequence

from consistent_video.demo.clips import save_video
from consistent_video.modules.judging.grid import GAP
from consistent_video.scripts.clips import fit_square, read_clip, save_animation, save_strip


@pytest.fixture
def frames() -> torch.Tensor:
    """Five smooth frames (5, 3, 32, 48) that grow brighter."""
    ramp = torch.linspace(0.2, 0.6, 48).expand(5, 3, 32, 48)
    return ramp + torch.arange(5).view(5, 1, 1, 1) * 0.08


def test_a_written_clip_reads_back(frames: torch.Tensor, tmp_path: Path) -> None:
    save_video(tmp_path / "clip.mp4", frames, Fraction(10))
    found, rate = read_clip(tmp_path / "clip.mp4")
    assert rate == 10
    torch.testing.assert_close(found, frames, atol=0.02, rtol=0)
    torch.testing.assert_close(read_clip(tmp_path / "clip.mp4", 2)[0], found[:2])


# A track's display matrix: first row, then second, in 16.16 fixed point, for clips shown turned clockwise.
MATRICES = {1: (0, 1, 0, -1, 0, 0), 2: (-1, 0, 0, 0, -1, 0), 3: (0, -1, 0, 1, 0, 0)}


@pytest.mark.parametrize("quarters", MATRICES)
def test_a_clip_that_is_turned_by_its_metadata_is_read_upright(frames, tmp_path: Path, quarters: int) -> None:
    path = tmp_path / "clip.mp4"
    save_video(path, frames, Fraction(10))
    plain, written = read_clip(path)[0], bytearray(path.read_bytes())
    matrix = written.index(b"tkhd") + 44
    written[matrix : matrix + 24] = struct.pack(">6i", *(65536 * value for value in MATRICES[quarters]))
    path.write_bytes(written)
    assert torch.equal(read_clip(path)[0], plain.rot90(-quarters, (2, 3)))


def test_a_frame_is_cropped_about_its_centre(frames: torch.Tensor) -> None:
    square = fit_square(frames, 16)
    assert square.shape == (5, 3, 16, 16)
    torch.testing.assert_close(square.mean((1, 2, 3)), frames.mean((1, 2, 3)), atol=1e-3, rtol=0)


def test_an_animation_shows_every_frame(frames: torch.Tensor, tmp_path: Path) -> None:
    save_animation(tmp_path / "moving.webp", {"before": frames, "after": 1 - frames}, Fraction(8), side=64)
    with Image.open(tmp_path / "moving.webp") as moving:
        moving.load()
        assert moving.n_frames == len(frames) and moving.info["duration"] == 125 and moving.info["loop"] == 0
        assert moving.width == 2 * (96 + GAP)
        shown = [frame.convert("L").getpixel((48, frame.height - 32)) for frame in ImageSequence.Iterator(moving)]
    assert shown == sorted(shown) and shown[-1] > shown[0] + 60


def test_a_strip_has_a_row_for_each_clip(frames: torch.Tensor, tmp_path: Path) -> None:
    save_strip(tmp_path / "strip.png", {"dark": frames * 0, "light": frames * 0 + 1}, columns=3, side=20)
    picture = Image.open(tmp_path / "strip.png")
    numbers, left = picture.height - 2 * (20 + GAP), picture.width - 3 * (30 + GAP)
    assert numbers > 0 and left > 0
    assert [picture.getpixel((left + 45, numbers + y)) for y in (10, 32)] == [(0, 0, 0), (255, 255, 255)]
