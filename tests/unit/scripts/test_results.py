"""The template browser's pictures of what comes of each workflow."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image

from consistent_video.demo.clips import save_video
from consistent_video.scripts.clips import read_clip
from consistent_video.scripts.descriptions import workflows
from consistent_video.scripts.results import (
    AFTER,
    ALSO,
    CAPTIONS,
    FRAMES,
    SAME,
    SIDE,
    draw_result,
    in_order,
    mark,
    needed,
    place_clips,
    read_mark,
)


def node(title: str, **inputs: object) -> dict:
    return {"class_type": title, "inputs": inputs, "_meta": {"title": title}}


PROMPT = {
    "1": node("Model"),
    "2": node("Source clip", file="a.mp4"),
    "3": node("Edit", model=["1", 0], video=["2", 0], steps=3),
    "4": node("Save edit", video=["3", 0]),
    "5": node("Reconstruction", model=["1", 0]),
}


def plain(path: Path, *colours: tuple[float, float, float]) -> Path:
    """Write a clip with a frame of each colour."""
    save_video(path, torch.tensor(colours)[:, :, None, None].expand(-1, 3, 32, 32), Fraction(8))
    return path


def test_every_workflow_has_a_caption_and_what_it_loads_is_saved_before() -> None:
    assert CAPTIONS.keys() == workflows().keys()
    assert {*SAME, *SAME.values(), *AFTER} <= CAPTIONS.keys() and {*AFTER.values()} == ALSO.keys()
    assert max(map(len, CAPTIONS.values())) <= 28, "it is to be read at a third of its size"
    order = list(in_order(["edit", "resume_tune", "saved_tune"]))
    assert sorted(order) == ["edit", "ei2", "resume_tune", "saved_tune", "tuning_settings"]
    assert all(order.index(AFTER[name]) < order.index(name) for name in ("resume_tune", "saved_tune"))


def test_of_a_prompt_stays_what_the_picture_needs() -> None:
    assert needed(PROMPT, ["Save edit"]).keys() == {"1", "2", "3", "4"}
    assert needed(PROMPT, ["Reconstruction"]).keys() == {"1", "5"}


def test_the_source_is_on_the_left_and_the_edit_on_the_right(tmp_path: Path) -> None:
    red, blue, green = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)
    source, file = plain(tmp_path / "a.mp4", red, green, red), plain(tmp_path / "b.mp4", blue, red, green)
    picture = draw_result(file, source, "A caption")
    assert picture.size == (SIDE, SIDE)
    for place, colour in ((1 / 4, 2 / 5), red), ((3 / 4, 2 / 5), blue), ((1 / 4, 4 / 5), red), ((3 / 4, 4 / 5), green):
        shown = picture.getpixel((round(SIDE * place[0]), round(SIDE * place[1])))
        assert shown == pytest.approx([255 * part for part in colour], abs=40), place


def test_a_plot_is_shown_whole(tmp_path: Path) -> None:
    Image.new("RGB", (900, 300), "yellow").save(tmp_path / "plot.png")
    picture = draw_result(tmp_path / "plot.png", tmp_path / "a.mp4", "A caption")
    wide = sum(picture.getpixel((x, SIDE // 2 + 16)) == (255, 255, 0) for x in range(SIDE))
    assert wide == pytest.approx(SIDE - 12, abs=2)


def test_a_picture_knows_what_it_shows(tmp_path: Path) -> None:
    path, shown = tmp_path / "edit.jpg", mark(PROMPT, "edit")
    assert read_mark(path) == ""
    Image.new("RGB", (8, 8)).save(path, comment=shown.encode())
    assert read_mark(path) == shown
    other = {**PROMPT, "3": node("Edit", model=["1", 0], video=["2", 0], steps=4)}
    assert len({shown, mark(other, "edit"), mark(PROMPT, "ei2")}) == 3


def test_frames_are_taken_over_the_whole_clip(tmp_path: Path) -> None:
    place_clips(tmp_path)
    frames, _ = read_clip(tmp_path / "red_circle.mp4")
    whole, _ = read_clip(Path(__file__).parents[3] / "demo" / "clips" / "red_circle.mp4")
    assert len(frames) == FRAMES
    assert (frames[-1] - whole[-1]).abs().mean() < 0.02 < (frames[-1] - whole[FRAMES - 1]).abs().mean()
