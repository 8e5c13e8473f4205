"""The demonstration's clips are what the script draws, and hold what their notes say."""

import json
from pathlib import Path

import pytest
import torch

from consistent_video.demo.clips import CLIPS, CRF, RATE, Recipe, describe, draw_recipe, read_recipes, save_video
from consistent_video.demo.reader import find_object, read_colour
from consistent_video.demo.sheet import save_sheet

av = pytest.importorskip("av")
BY_NAME = pytest.mark.parametrize("recipe", read_recipes(), ids=lambda recipe: recipe.name)


def read_frames(path: Path) -> torch.Tensor:
    """Return a video's frames (f, 3, h, w) in [0, 1]."""
    with av.open(str(path)) as file:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == RATE
    return torch.stack(frames).movedim(-1, 1) / 255


@BY_NAME
def test_the_committed_clip_is_what_the_script_draws(recipe: Recipe) -> None:
    clip = draw_recipe(recipe)
    frames = read_frames(CLIPS / f"{recipe.name}.mp4")
    assert frames.shape == clip.frames.shape
    assert (frames - clip.frames).square().mean() < 1e-3
    assert json.loads((CLIPS / f"{recipe.name}.json").read_text()) == json.loads(json.dumps(describe(recipe, clip)))


@BY_NAME
def test_the_judges_read_the_committed_clip(recipe: Recipe) -> None:
    frames, note = read_frames(CLIPS / f"{recipe.name}.mp4"), json.loads((CLIPS / f"{recipe.name}.json").read_text())
    assert set(read_colour(frames)) == {recipe.colour}
    assert (find_object(frames)[1] - torch.tensor(note["path"])).norm(dim=-1).max() < 1.5


@BY_NAME
def test_the_object_moves_and_stays_inside(recipe: Recipe) -> None:
    clip = draw_recipe(recipe)
    step = (clip.path[1:] - clip.path[:-1]).norm(dim=-1)
    assert 0.5 < step.min() and step.max() < 12
    assert clip.mask[:, 0].max() == clip.mask[:, -1].max() == clip.mask[..., 0].max() == clip.mask[..., -1].max() == 0


def test_the_main_clip_is_the_one_of_the_documentation() -> None:
    note = json.loads((CLIPS / "red_circle.json").read_text())
    assert note["prompt"] == "a red circle on a white background" and note["frames"] == 8 and CRF <= 10
    assert note["edit"] == "a blue square on a white background"


def test_a_video_survives_its_file(tmp_path: Path) -> None:
    frames = torch.linspace(0.1, 0.9, 32).expand(3, 3, 16, 32)
    save_video(tmp_path / "ramp.mp4", frames)
    torch.testing.assert_close(read_frames(tmp_path / "ramp.mp4"), frames, atol=0.03, rtol=0)


def test_a_contact_sheet_holds_every_picture(tmp_path: Path) -> None:
    from PIL import Image

    save_sheet(tmp_path / "sheet.png", torch.full((5, 3, 20, 30), 0.5), [f"picture {i}" for i in range(5)], columns=3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 3 * 34 and sheet.getpixel((10, 10)) == (128, 128, 128)
