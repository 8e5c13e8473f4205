"""What our functions are measured against says the same as they do."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from consistent_video.bench.baselines import naive_fine_coarse, naive_temporal, softmax_attention
from consistent_video.modules.clip_model.attention import Grid, scaled_dot_product
from consistent_video.modules.clip_model.attention.fine_coarse import coarse_frames, fine_coarse_attention
from consistent_video.modules.clip_model.temporal import STAM, TUNE_A_VIDEO, TemporalModule

FRAMES, HEIGHT, WIDTH, HEADS, DIM = 3, 6, 4, 2, 10


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("r", [1, 2, 4])
def test_the_loop_over_frames_is_fine_coarse_attention(r: int) -> None:
    z, w_q, w_k, w_v = draw(FRAMES, HEIGHT * WIDTH, DIM), draw(DIM, DIM), draw(DIM, DIM) / 3, draw(DIM, DIM)
    naive = naive_fine_coarse(z, w_q, w_k, w_v, HEADS, HEIGHT, WIDTH, r)
    q, k, v = (F.linear(z, weight) for weight in (w_q, w_k, w_v))
    grid = Grid(HEADS, FRAMES, HEIGHT, WIDTH)
    torch.testing.assert_close(naive, fine_coarse_attention(q, k, v, coarse_frames(k, v, grid, r), grid))


def test_attention_with_the_matrix_of_scores_is_scaled_dot_product_attention() -> None:
    q, k, v = draw(FRAMES, 5, DIM), draw(FRAMES, 7, DIM), draw(FRAMES, 7, DIM)
    torch.testing.assert_close(softmax_attention(q, k, v, HEADS), scaled_dot_product(q, k, v, HEADS))


@pytest.mark.parametrize("config", [STAM, TUNE_A_VIDEO])
def test_the_naive_temporal_module_is_the_module(config) -> None:
    module, x = TemporalModule(DIM, HEADS, config, torch.Generator().manual_seed(1)), draw(2 * FRAMES, 4, DIM)
    torch.nn.init.normal_(module.to_out.weight, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(naive_temporal(module, x, FRAMES, 0.5), module(x, FRAMES, 0.5))
