"""Optical flow and warping, against rolled pictures, dots and drawn scenes."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.motion.flow import Motion, motion_of, read_flow, seen_in_both, warp


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def even_flow(frames: int, height: int, width: int, right: float, down: float) -> Tensor:
    """A flow that is the same everywhere."""
    return torch.tensor([right, down], dtype=torch.float64).view(1, 2, 1, 1).expand(frames, 2, height, width)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, 0), (0, 2), (-1, -4)])
def test_warping_by_whole_pixels_is_rolling(right: int, down: int) -> None:
    frames = draw(2, 3, 13, 17)
    warped = warp(frames, even_flow(2, 13, 17, right, down))
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(warped[inside], frames.roll((-down, -right), (-2, -1))[inside])


def test_a_flow_leads_to_where_a_point_lies_in_the_other_frame() -> None:
    here, there = torch.zeros(2, 1, 1, 8, 11).double()
    here[0, 0, 2, 7], there[0, 0, 6, 4] = 1, 1  # it goes 3 to the left and 4 down
    flow = even_flow(1, 8, 11, -3, 4)
    torch.testing.assert_close(warp(there, flow), here)
    torch.testing.assert_close(warp(here, -flow), there)


def test_between_pixels_warping_is_bilinear() -> None:
    frames = draw(2, 3, 6, 9)
    half = warp(frames, even_flow(2, 6, 9, 0.5, 0))
    torch.testing.assert_close(half[..., :-1], (frames[..., :-1] + frames[..., 1:]) / 2)
    quarter = warp(frames, even_flow(2, 6, 9, 0, -0.25))
    torch.testing.assert_close(quarter[..., 1:, :], 0.75 * frames[..., 1:, :] + 0.25 * frames[..., :-1, :])


def test_beyond_an_edge_lies_the_edge() -> None:
    frames = draw(1, 2, 4, 5)
    torch.testing.assert_close(warp(frames, even_flow(1, 4, 5, 9, 0)), frames[..., -1:].expand_as(frames))
    torch.testing.assert_close(warp(frames, even_flow(1, 4, 5, 0, -9)), frames[..., :1, :].expand_as(frames))


def test_each_frame_and_pixel_has_its_own_flow() -> None:
    frames, flow = draw(2, 1, 6, 7), torch.zeros(2, 2, 6, 7, dtype=torch.float64)
    flow[1, 0, 2, 3], flow[1, 1, 2, 3] = 2, -1
    expected = frames.clone()
    expected[1, 0, 2, 3] = frames[1, 0, 1, 5]
    torch.testing.assert_close(warp(frames, flow), expected)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (0, -3), (1.5, 2.5)])
def test_flows_that_agree_see_all_but_what_leaves_the_frame(right: float, down: float) -> None:
    flow = even_flow(2, 9, 12, right, down)
    seen = seen_in_both(flow, -flow)
    rows, columns = torch.meshgrid(torch.arange(9) + down, torch.arange(12) + right, indexing="ij")
    inside = (rows >= 0) & (rows <= 8) & (columns >= 0) & (columns <= 11)
    assert torch.equal(seen, inside.double().expand(2, 1, 9, 12))


def test_flows_that_contradict_each_other_see_nothing() -> None:
    flow = even_flow(1, 9, 12, 2, 1)
    assert not seen_in_both(flow, flow).any()
    assert seen_in_both(flow, -flow + 0.4)[..., 1:7, 1:9].all(), "within the check's half a pixel"
    assert not seen_in_both(flow, -flow + 0.6).any()


def square_flows(height: int, width: int, left: int, right: int, step: int) -> tuple[Tensor, Tensor]:
    """The flows there and back of a square between two columns that moves right before a still background."""
    flow, back = torch.zeros(2, 1, 2, height, width, dtype=torch.float64)
    flow[:, 0, 3:8, left:right] = step
    back[:, 0, 3:8, left + step : right + step] = -step
    return flow, back


def test_what_is_hidden_in_the_other_frame_is_not_seen() -> None:
    flow, back = square_flows(11, 20, 4, 9, 6)
    expected = torch.ones(1, 1, 11, 20, dtype=torch.float64)
    covered = expected.clone()
    covered[..., 3:8, 10:15] = 0  # where the square comes to lie
    covered[..., 3:8, 9] = 1
    assert torch.equal(seen_in_both(flow, back), covered)
    uncovered = expected.clone()
    uncovered[..., 3:8, 4:9] = 0  # where it lay
    assert torch.equal(seen_in_both(back, flow), uncovered)
    motion = motion_of(flow, back)
    assert torch.equal(motion.seen_forward, covered) and torch.equal(motion.seen_backward, uncovered)
    assert motion.forward is flow and motion.backward is back


@pytest.mark.parametrize(("height", "width"), [(4, 3), (8, 12), (16, 24), (3, 5)])
def test_on_another_size_flows_are_in_its_pixels(height: int, width: int) -> None:
    flow = even_flow(2, 8, 12, 6, -4)
    resized = motion_of(flow, -flow).resized(height, width)
    expected = even_flow(2, height, width, 6 * width / 12, -4 * height / 8)
    torch.testing.assert_close(resized.forward, expected)
    torch.testing.assert_close(resized.backward, -expected)
    assert resized.seen_forward.shape == resized.seen_backward.shape == (2, 1, height, width)


def test_on_a_smaller_size_flows_are_means_and_half_seen_is_unseen() -> None:
    flow, back = draw(2, 1, 2, 8, 12)
    seen = (draw(1, 1, 8, 12, seed=3) > 0).double()
    seen[..., :4, :4] = torch.tensor([1.0, 0.0]).repeat(2)  # half of it
    motion = Motion(flow, back, seen, 1 - seen)
    small = motion.resized(2, 3)
    blocks = flow.reshape(1, 2, 2, 4, 3, 4).mean(dim=(3, 5)) / 4
    torch.testing.assert_close(small.forward, blocks)
    part = seen.reshape(1, 1, 2, 4, 3, 4).mean(dim=(3, 5))
    assert torch.equal(small.seen_forward, (part > 0.5).double())
    assert torch.equal(small.seen_backward, (part < 0.5).double())
    assert small.seen_forward[0, 0, 0, 0] == small.seen_backward[0, 0, 0, 0] == 0


def test_a_motion_takes_the_precision_of_what_it_is_used_on() -> None:
    flow = even_flow(1, 4, 5, 1, 0)
    motion = motion_of(flow, -flow).to(torch.zeros(1, dtype=torch.float32))
    assert {value.dtype for value in vars(motion).values()} == {torch.float32}


def test_flows_are_read_in_every_form() -> None:
    flow = draw(3, 2, 5, 7).float()
    last = flow.movedim(1, -1)
    for given in (flow, last, flow.numpy(), list(last), [one.numpy() for one in flow]):
        torch.testing.assert_close(read_flow(given, "forward", 9.0), flow)
    for others in (1, 2):  # blue, and alpha
        pictures = torch.cat([0.5 + last / 18, draw(3, 5, 7, others).float()], dim=-1)
        torch.testing.assert_close(read_flow(pictures, "forward", 9.0), flow)


def test_flows_of_other_precisions_are_the_same() -> None:
    flow = (8 * draw(3, 2, 5, 7)).round()
    for dtype in (torch.float16, torch.float64, torch.int16, torch.int8):
        assert torch.equal(read_flow(flow.to(dtype), "forward", 9.0), flow.float())
    pictures = (255 * draw(3, 5, 7, 3).sigmoid()).byte()
    assert torch.equal(read_flow(pictures, "forward", 9.0), read_flow(pictures / 255, "forward", 9.0))


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        (torch.ones(2, 2, 5, 7, dtype=torch.uint8), "forward holds uint8 values"),
        (torch.ones(2, 2, 5, 7, dtype=torch.complex64), "forward holds complex64 values"),
        (torch.zeros(0, 2, 5, 7), "forward is empty"),
        ({"samples": torch.ones(2, 2, 5, 7)}, "forward is a dict that cannot be read as flow"),
        ("flow", "forward is a str that cannot be read as flow"),
        ([None], "forward is a list that cannot be read as flow"),
    ],
)
def test_what_cannot_be_flow_is_refused(flow, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}.*Flows are"):
        read_flow(flow, "forward", 1.0)


def test_what_is_no_flow_is_refused() -> None:
    for shape in ((2, 5, 7), (3, 4, 5, 7), (3, 5, 7, 1), (1, 3, 2, 5, 7)):
        with pytest.raises(ValueError, match="backward has the shape"):
            read_flow(torch.zeros(shape), "backward", 1.0)
    with pytest.raises(ValueError, match="backward holds values that are not finite"):
        read_flow(torch.full((1, 2, 3, 4), float("nan")), "backward", 1.0)
    with pytest.raises(ValueError, match=r"forward has the shape \(2, 2, 3, 4\) and backward \(3, 2, 3, 4\)"):
        motion_of(torch.zeros(2, 2, 3, 4), torch.zeros(3, 2, 3, 4))
