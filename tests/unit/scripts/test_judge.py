"""The report says what a run did not manage."""

import pytest
import torch

from consistent_video.demo import shapes
from consistent_video.demo.palette import COLOURS, SHAPES
from consistent_video.demo.reader import ShapeReader
from consistent_video.scripts.judge import (
    SYMMETRY,
    get_mean,
    get_motion_errors,
    get_psnr,
    get_turns,
    list_remarks,
    read_edit,
)


def draw_discs(centres: list[tuple[int, int]], colour: tuple[float, float, float]) -> torch.Tensor:
    """Draw one disc of radius 14 at x, y on white for each frame, (f, 3, 128, 128)."""
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    masks = torch.stack([((x - cx) ** 2 + (y - cy) ** 2 < 14**2).float() for cx, cy in centres]).unsqueeze(1)
    return masks * torch.tensor(colour).view(3, 1, 1) + 1 - masks


def draw_turned(shape: str, angles: list[float], centre: tuple[float, float] = (52, 70)) -> torch.Tensor:
    """Draw a red shape of size 26 at some angles on white, (f, 3, 128, 128), by its signed distance."""
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    frames = []
    for angle in angles:
        turn = torch.tensor(angle).deg2rad()
        x, y = (columns - centre[0]) / 26, (rows - centre[1]) / 26
        inside = getattr(shapes, shape)(x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()) < 0
        frames.append(torch.where(inside, torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1), torch.ones(3, 1, 1)))
    return torch.stack(frames)


@pytest.mark.parametrize("shape", list(SYMMETRY))
def test_turns_are_read_from_the_mask(shape: str) -> None:
    turns = get_turns(draw_turned(shape, [10.0, 14.0, 5.0, 5.0]), shape)
    assert turns == [pytest.approx(4, abs=0.6), pytest.approx(-9, abs=0.6), pytest.approx(0, abs=0.01)]


def test_a_turn_that_looks_alike_is_none_and_a_circle_has_no_orientation() -> None:
    assert get_turns(draw_turned("square", [3.0, 93.0]), "square") == [pytest.approx(0, abs=0.3)]
    assert get_turns(draw_turned("circle", [3.0, 40.0]), "circle") == [None]
    assert get_turns(draw_turned("square", [3.0, 40.0]), None) == [None]
    lost = draw_turned("square", [3.0, 40.0, 4.0])
    lost[1] = 1
    assert get_turns(lost, "square") == [None, None]


def make_report(**changes: object) -> dict:
    frames = {"source": 4, "edit": 4}
    return {"frames": frames, "loss": [2.0, 1.0], "reconstruction_psnr": 27.0, "autoencoder_psnr": 29.0, **changes}


def test_psnr_is_that_of_a_known_error() -> None:
    source = torch.full((2, 3, 8, 8), 0.5)
    assert get_psnr(source + 0.1, source) == pytest.approx(20)


def test_motion_errors_are_distances_in_pixels() -> None:
    source = draw_discs([(40, 40), (60, 40), (80, 40)], (0.9, 0.1, 0.1))
    edit = draw_discs([(40, 40), (63, 44), (80, 40)], (0.1, 0.2, 0.9))
    edit[2] = 1
    errors = get_motion_errors(edit, source)
    assert errors == [pytest.approx(0, abs=0.1), pytest.approx(5, abs=0.1), None]
    assert get_mean(errors) == pytest.approx(2.5, abs=0.1)
    assert get_mean([None]) is None


def test_what_an_edit_should_show_is_read_from_its_prompt() -> None:
    frames = draw_discs([(64, 64), (64, 64)], (0.16, 0.27, 0.88))
    edited = read_edit(frames, "A blue Star on the sea", ShapeReader())
    assert edited["wanted"] == {"colour": "blue", "shape": "star"}
    assert edited["colour"] == ["blue", "blue"]
    assert len(edited["shape"]) == 2 and set(edited["shape"]) <= set(SHAPES)
    assert read_edit(frames, "nothing known", ShapeReader())["wanted"] == {"colour": None, "shape": None}
    assert "blue" in COLOURS


def test_a_good_run_leaves_only_the_remark_on_the_measurement() -> None:
    edited = {"wanted": {"colour": "blue", "shape": None}, "colour": ["blue"] * 4, "shape": ["star"] * 4}
    assert len(list_remarks(make_report(edited=edited, motion_errors=[0.5] * 4))) == 1


def test_what_went_wrong_is_remarked_with_its_frames() -> None:
    wanted = {"colour": "blue", "shape": "star"}
    edited = {"wanted": wanted, "colour": ["red", "blue", "red", "blue"], "shape": ["star"] * 4}
    report = make_report(edited=edited, motion_errors=[0.5, None, 3.1, 0.2], loss=[1.0, 1.0], reconstruction_psnr=20.0)
    remarks = " ".join(list_remarks({**report, "turns": [2.0, -7.5, None]}))
    assert "colour does not read as blue in 2 of 4 frames but as red in 0, 2." in remarks
    assert "shape does not" not in remarks
    assert "No object is found in frames 1." in remarks
    assert "source's path in frames 2." in remarks
    assert "loss did not fall" in remarks
    assert "turns by over 5 degrees on the way to frames 2." in remarks
    assert "9.0 dB below" in remarks


def test_clips_of_different_lengths_are_remarked() -> None:
    assert any("differ in length" in remark for remark in list_remarks(make_report(frames={"source": 8, "edit": 4})))
