"""Fine-coarse frame attention as EI² has it, with nothing but a clip's own frames."""

from torch import Tensor

from consistent_video.modules.clip_model.attention import Attend, Grid, scaled_dot_product
from consistent_video.modules.clip_model.attention.fine_coarse import Downsample, coarse_frames, fine_coarse_attention


def ffam(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    r: int = 4,
    downsample: Downsample = "area",
    attend: Attend = scaled_dot_product,
    rebuild: bool = False,
) -> Tensor:
    return fine_coarse_attention(q, k, v, coarse_frames(k, v, grid, r, downsample), grid, attend, rebuild)
