"""The config chooses which tokens of which frames a frame sees."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.clip_model.attention import Grid, scaled_dot_product
from consistent_video.modules.clip_model.attention.spatial import SpatialConfig, attend_across_frames

HEADS, DIM = 3, 6


class Note:
    """An attention kernel that keeps what it was given."""

    def __init__(self) -> None:
        self.keys, self.values, self.heads = torch.empty(0), torch.empty(0), 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        self.keys, self.values, self.heads = k, v, heads
        return scaled_dot_product(q, k, v, heads)


def number_tokens(num_frames: int, count: int) -> Tensor:
    """Tokens whose every feature is 100 frame + token, shape (f, count, d)."""
    values = 100.0 * torch.arange(num_frames).view(-1, 1) + torch.arange(count)
    return values.unsqueeze(-1).expand(-1, -1, DIM).contiguous()


def attend(config: SpatialConfig, num_frames: int, height: int, width: int) -> Note:
    note, k = Note(), number_tokens(num_frames, height * width)
    out = attend_across_frames(config, k / 1000, k, -k, Grid(HEADS, num_frames, height, width), note)
    assert out.shape == k.shape and note.heads == HEADS
    assert torch.equal(note.keys, -note.values)
    return note


def test_sparse_causal_sees_the_first_frame_and_the_one_before() -> None:
    keys = attend(SpatialConfig("sparse-causal"), 4, 1, 3).keys[..., 0]
    first = [0, 1, 2]
    assert keys.tolist() == [first + first, first + first, first + [100, 101, 102], first + [200, 201, 202]]


def test_fine_coarse_sees_itself_and_the_coarse_others() -> None:
    keys = attend(SpatialConfig("fine-coarse", r=2, downsample="strided"), 3, 3, 4).keys[1, :, 0]
    own, firsts = [100 + i for i in range(12)], [0, 2, 8, 10]
    assert keys.tolist() == own + firsts + [200 + i for i in firsts]


def test_the_kind_of_downsampling_is_passed_on() -> None:
    keys = attend(SpatialConfig("fine-coarse", r=2, downsample="area"), 2, 2, 4).keys[1, 8:, 0]
    assert keys.tolist() == [(0 + 1 + 4 + 5) / 4, (2 + 3 + 6 + 7) / 4]


@pytest.mark.parametrize(("height", "width", "fitting"), [(2, 3, 2), (3, 2, 2), (1, 5, 1), (4, 7, 4), (9, 8, 4)])
def test_the_factor_is_at_most_the_shorter_side(height: int, width: int, fitting: int) -> None:
    config = SpatialConfig("fine-coarse", r=4, downsample="strided")
    keys = attend(config, 2, height, width).keys[0, height * width :, 0]
    cells = [100 + y * width + x for y in range(0, height, fitting) for x in range(0, width, fitting)]
    assert keys.tolist() == cells


def test_the_defaults_are_those_of_ei2() -> None:
    assert SpatialConfig() == SpatialConfig(kind="fine-coarse", r=4, downsample="area")
