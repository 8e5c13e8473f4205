"""How many frames a UNet call holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistent_video.modules.clip_model.frames import frames_per_clip


@pytest.mark.parametrize(
    ("rows", "chunks", "num_frames", "frames"),
    [
        (8, 1, 0, 8),  # one conditioning, one clip
        (16, 2, 0, 8),  # CFG: negative and positive joined
        (16, 2, 8, 8),
        (16, 2, 4, 4),  # two clips of four frames in each conditioning
        (1, 1, 0, 1),
        (3, 3, 0, 1),
        (6, 1, 1, 1),
    ],
)
def test_frames_of_known_calls(rows: int, chunks: int, num_frames: int, frames: int) -> None:
    assert frames_per_clip(rows, chunks, num_frames) == frames


@given(chunks=st.integers(1, 4), clips=st.integers(1, 4), frames=st.integers(1, 9))
def test_a_call_of_whole_clips_is_counted(chunks: int, clips: int, frames: int) -> None:
    rows = len([(c, b, n) for c in range(chunks) for b in range(clips) for n in range(frames)])
    assert frames_per_clip(rows, chunks, frames) == frames
    assert frames_per_clip(rows, chunks, 0) == clips * frames


@given(rows=st.integers(1, 40), chunks=st.integers(1, 4), num_frames=st.integers(1, 12))
def test_every_other_call_is_refused(rows: int, chunks: int, num_frames: int) -> None:
    whole = [chunks * clips * num_frames for clips in range(1, 41)]
    if rows in whole:
        assert frames_per_clip(rows, chunks, num_frames) == num_frames
    else:
        with pytest.raises(ValueError):
            frames_per_clip(rows, chunks, num_frames)


def test_refusals_name_the_numbers_and_the_remedy() -> None:
    with pytest.raises(ValueError, match="batch of 7 rows does not divide into 2 conditionings"):
        frames_per_clip(7, 2, 0)
    with pytest.raises(ValueError, match=r"has 5 frames.*num_frames = 3.*Inflate UNet to 0 .*a divisor of 5"):
        frames_per_clip(10, 2, 3)
