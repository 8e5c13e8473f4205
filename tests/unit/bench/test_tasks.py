"""The edits are drawn as they should be, and judged by what is known of them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from consistent_video.bench.tasks import KINDS, LOST, Task, Truth, draw_task, list_tasks, pairs
from consistent_video.demo.model import WEIGHTS
from consistent_video.demo.reader import ShapeReader, find_object

CHANGES = {**{kind: {kind} for kind in KINDS}, "several": {"colour", "shape", "background"}}


@pytest.fixture(scope="module")
def reader() -> ShapeReader:
    return ShapeReader.load(WEIGHTS / "reader.safetensors")


@pytest.mark.parametrize("held_out", [True, False])
def test_an_edit_changes_what_its_kind_says_to_an_object_of_its_set(held_out: bool) -> None:
    for number in range(6):
        for kind in KINDS:
            task = draw_task(kind, number, held_out)
            assert set(task.changed) == CHANGES[kind], (kind, number)
            assert ((task.wanted.colour, task.wanted.shape) in pairs(True)) == held_out
            before, after = task.prompts
            assert before != after and task.wanted.shape in after


def test_the_sets_share_no_edit_and_are_the_same_at_each_call() -> None:
    chosen, measured = (
        [draw_task(kind, n, held_out) for kind in KINDS for n in range(40)] for held_out in (False, True)
    )
    seeds = [{task.source.seed for task in tasks} for tasks in (chosen, measured)]
    assert len(seeds[0]) == len(seeds[1]) == 240 and not seeds[0] & seeds[1] and min(seeds[0] | seeds[1]) >= 10_000
    assert draw_task("shape", 3, True) == draw_task("shape", 3, True) != draw_task("shape", 4, True)
    assert len(pairs(True)) == 7 and len(pairs(False)) == 49


def test_objects_stay_in_the_picture_and_move() -> None:
    for task in list_tasks(3, held_out=True).values():
        truth = Truth(task)
        for clip in (truth.source, truth.wanted):
            assert max(side.max().item() for side in (clip.mask[:, 0], clip.mask[:, -1])) == 0
            assert max(side.max().item() for side in (clip.mask[..., 0], clip.mask[..., -1])) == 0
        assert (truth.source.path[-1] - truth.source.path[0]).norm() > 12


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="--kinds colours: there are colour"):
        list_tasks(1, True, ("colours",))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_world_draws_is_a_right_edit(kind: str, reader: ShapeReader) -> None:
    truth = Truth(draw_task(kind, 0, held_out=True))
    right, nothing = (truth.judge(clip.frames, reader) for clip in (truth.wanted, truth.source))
    assert right["obeyed"] > 0.85 and nothing["obeyed"] == 0, "what a mosaic hides is read less surely"
    assert right["kept"] > 0.7 and nothing["kept"] > 0.7
    assert right["motion_error"] < 1 and right["texture"] == 1 and right["ghosts"] < 0.01
    if kind in ("colour", "shape", "texture"):
        assert nothing["background"] == 100 and right["background"] > 60
    else:
        assert right["background"] is None


def plain_task() -> Task:
    task = draw_task("colour", 1, held_out=True)
    return Task("colour", *(_plain(recipe) for recipe in (task.source, task.wanted)))


def _plain(recipe):
    from dataclasses import replace

    return replace(recipe, background="white", texture="plain", style="flat", angle=(0.0, 0.0), pan=(0.0, 0.0))


def test_an_edit_off_its_path_or_lost_is_told(reader: ShapeReader) -> None:
    truth = Truth(plain_task())
    frames = truth.wanted.frames
    moved = truth.judge(frames.roll((3, 4), (2, 3)), reader)
    assert moved["motion_error"] == pytest.approx(5, abs=0.3)
    lost = torch.where(torch.arange(8).view(-1, 1, 1, 1) < 4, frames, torch.full_like(frames, 0.97))
    assert truth.judge(lost, reader)["motion_error"] == pytest.approx(LOST / 2, abs=0.5)
    assert truth.judge(lost, reader)["obeyed"] == pytest.approx(0.5)


def test_a_second_object_is_a_ghost_and_flicker_is_of_the_area(reader: ShapeReader) -> None:
    truth = Truth(plain_task())
    frames = truth.wanted.frames.clone()
    free = truth.apart.prod(dim=0)
    row, column = (int(value) for value in find_free(free))
    frames[:, :, row : row + 12, column : column + 12] = torch.tensor([0.2, 0.3, 0.9]).view(3, 1, 1)
    ghost = truth.judge(frames, reader)["ghosts"]
    area = find_object(frames)[0].sum() - find_object(truth.wanted.frames)[0].sum()
    assert ghost == pytest.approx((area / truth.wanted.mask.sum()).item(), rel=0.1) and ghost > 0.02
    assert truth.judge(truth.wanted.frames, reader)["flicker"] < 0.02
    flickering = frames.clone()
    flickering[::2] = truth.wanted.frames[::2]
    assert truth.judge(flickering, reader)["flicker"] > 0.02


def find_free(free: Tensor) -> tuple[int, int]:
    """Where a square of 16 pixels is free."""
    whole = F.avg_pool2d(free[None], 16, 1)[0] == 1
    row, column = whole.nonzero()[0].tolist()
    return row + 2, column + 2


def test_brightness_that_flickers_is_a_warp_error_and_blur_takes_texture(reader: ShapeReader) -> None:
    truth = Truth(draw_task("background", 1, held_out=True))
    frames = truth.wanted.frames * (0.8 + 0.1 * (torch.arange(8) % 2).view(-1, 1, 1, 1))
    still = truth.judge(0.8 * truth.wanted.frames, reader)["warp_error"]
    assert truth.judge(frames, reader)["warp_error"] > still + 0.5
    blurred = F.avg_pool2d(truth.wanted.frames, 3, 1, 1)
    assert truth.judge(blurred, reader)["texture"] < 0.85
