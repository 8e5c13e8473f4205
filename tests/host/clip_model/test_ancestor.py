"""The inflated UNet against diffusers' own, inflated here from the papers' words, with the same weights."""

from collections.abc import Callable

import comfy.utils
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import (
    CONTROL_VIDEO_PRESET,
    EI2,
    FULL,
    PER_FRAME,
    PRESETS,
    TUNE_A_VIDEO_PRESET,
    method,
)

from ..small import (
    EDIT,
    EMPTY,
    FRAMES,
    HEIGHT,
    UNET,
    WIDTH,
    clip_latent,
    draw_noise,
    family_model,
    lively_weights,
    sample,
    unet_shapes,
)

CFG, R, TIMESTEP, HEADS, SCALE = 3.0, 2, 600, 8, 0.18215
GRIDS = {HEIGHT * WIDTH // side**2: (HEIGHT // side, WIDTH // side) for side in (1, 2)}

See = Callable[[Tensor, int], Tensor]


def shrink(frame: Tensor) -> Tensor:
    """Average R x R tokens of a frame, (l, d)."""
    grid = frame.T.unflatten(1, GRIDS[len(frame)])
    return nn.functional.avg_pool2d(grid, R).flatten(1).T


def see_fine_and_coarse(clip: Tensor, i: int) -> Tensor:
    """EI² (10): the frame and every other one downsampled."""
    return torch.cat([clip[i], *(shrink(clip[j]) for j in range(len(clip)) if j != i)])


def see_first_and_previous(clip: Tensor, i: int) -> Tensor:
    """Tune-A-Video: the first frame and the one before."""
    return torch.cat([clip[0], clip[max(i - 1, 0)]])


def see_first(clip: Tensor, _i: int) -> Tensor:
    """ControlVideo: the first frame."""
    return clip[0]


def see_all(clip: Tensor, _i: int) -> Tensor:
    return clip.flatten(0, 1)


SEE: dict[str, See | None] = {
    EI2: see_fine_and_coarse,
    TUNE_A_VIDEO_PRESET: see_first_and_previous,
    CONTROL_VIDEO_PRESET: see_first,
    FULL: see_all,
    PER_FRAME: None,
}


class AcrossFrames:
    """A processor of diffusers whose self-attention sees the tokens of a clip that `see` picks for each frame."""

    def __init__(self, see: See):
        self.see = see

    def __call__(self, attn: Attention, hidden_states: Tensor, **_given: object) -> Tensor:
        frames = []
        for i, frame in enumerate(hidden_states):
            seen = self.see(hidden_states, i)
            q, k, v = (
                x.unflatten(1, (HEADS, -1)).movedim(1, 0) for x in (attn.to_q(frame), attn.to_k(seen), attn.to_v(seen))
            )
            weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
            frames.append(attn.to_out[0]((weights @ v).movedim(0, 1).flatten(1)))
        return torch.stack(frames)


class OverFrames(nn.Module):
    """The temporal module: z + Attention(norm(z)) over the frames of each token of a clip, (f, l, d)."""

    def __init__(self, name: str, weights: dict[str, Tensor]):
        super().__init__()
        width = len(weights["to_q.weight"])
        self.name, self.norm = name, nn.LayerNorm(width)
        self.attn = Attention(width, heads=HEADS, dim_head=width // HEADS)
        self.attn.load_state_dict({key.replace("to_out.", "to_out.0."): value for key, value in weights.items()})

    def forward(self, clip: Tensor) -> Tensor:
        normed = self.norm(clip) if self.name == TUNE_A_VIDEO_PRESET else clip - clip.mean(0)
        return clip + self.attn(normed.movedim(0, 1)).movedim(1, 0)


class BesideSelfAttention(nn.Module):
    """ControlVideo's: Attention(z) over the frames of what self-attention is given, through a linear layer."""

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        own = {key: value for key, value in weights.items() if "zero_out" not in key}
        self.inner = OverFrames(CONTROL_VIDEO_PRESET, own).attn
        self.last = nn.utils.skip_init(nn.Linear, *weights["zero_out.weight"].shape)
        self.last.load_state_dict({key: weights[f"zero_out.{key}"] for key in ("weight", "bias")})

    def forward(self, normed: Tensor) -> Tensor:
        return self.last(self.inner(normed.movedim(0, 1)).movedim(1, 0))


def ancestor() -> UNet2DConditionModel:
    """Return diffusers' UNet with the weights of the host's, by the host's own table of names."""
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=HEADS,
        cross_attention_dim=UNET["context_dim"],
    )
    del unet.mid_block.attentions[0].transformer_blocks[1]  # the host's has a depth of its own there
    weights, names = lively_weights(unet_shapes(UNET), torch.float32), comfy.utils.unet_to_diffusers(UNET)
    unet.load_state_dict({theirs: weights[ours] for theirs, ours in names.items() if ours in weights})
    return unet.eval().requires_grad_(False)


def inflate_ancestor(unet: UNet2DConditionModel, name: str, see: See | None, tensors: dict[str, Tensor]) -> None:
    """Replace self-attention by attention across frames and put a preset's temporal module after each block."""
    paths = {ours: theirs for theirs, ours in comfy.utils.unet_to_diffusers(UNET).items()}
    if see is not None:
        own = unet.attn_processors
        unet.set_attn_processor({key: AcrossFrames(see) if ".attn1." in key else own[key] for key in own})
    for host_path in {key.split(".attn_temp.")[0].removeprefix("diffusion_model.") for key in tensors}:
        prefix = f"diffusion_model.{host_path}.attn_temp."
        weights = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        block = unet.get_submodule(paths[f"{host_path}.norm1.weight"].removesuffix(".norm1.weight"))
        assert isinstance(block, BasicTransformerBlock)
        if name == CONTROL_VIDEO_PRESET:
            beside = BesideSelfAttention(weights).requires_grad_(False)
            block.attn1.register_forward_hook(lambda _attn1, given, found, beside=beside: found + beside(given[0]))
            continue
        module = OverFrames(name, weights).requires_grad_(False)
        block.register_forward_hook(lambda _block, _given, clip, module=module: module(clip))


def draw_tensors(model, name: str) -> dict[str, Tensor]:
    """Return random weights for the temporal modules of a preset, strong ones; EI²'s with their spectral norm."""
    bank, generator = clip_settings(attach(model, *method(name, R))).temporal, torch.Generator().manual_seed(8)
    tensors = {}
    for key, value in (bank.tensors() if bank is not None else {}).items():
        drawn = torch.randn(value.shape, generator=generator)
        if value.ndim == 1:
            tensors[key] = 0.1 * drawn
        elif name != TUNE_A_VIDEO_PRESET and key.endswith(("to_v.weight", "to_out.weight")):
            tensors[key] = drawn / float(np.linalg.svd(drawn.numpy(), compute_uv=False)[0])
        else:
            tensors[key] = drawn / value.shape[0] ** 0.5
    return tensors


def make_noisy(sigma: float, latent: dict[str, Tensor]) -> Tensor:
    return latent["samples"] * SCALE + sigma * draw_noise(latent)


def predict_in_host(model, sigma: float, latent: dict[str, Tensor]) -> Tensor:
    """Return the noise that a model finds, from a single Euler step of the host to the clean clip."""
    clean = sample(model, latent, CFG, sigmas=(sigma, 0.0)) * SCALE
    return (make_noisy(sigma, latent) - clean) / sigma


def predict_in_ancestor(unet: UNet2DConditionModel, sigma: float, latent: dict[str, Tensor]) -> Tensor:
    """Return the noise that diffusers' UNet finds in the same latent, with classifier-free guidance."""
    x = make_noisy(sigma, latent) / (1 + sigma**2) ** 0.5
    empty, edit = (unet(x, TIMESTEP, given[0][0].expand(FRAMES, -1, -1)).sample for given in (EMPTY, EDIT))
    return empty + CFG * (edit - empty)


@pytest.mark.parametrize("off", [None, "spatial_strength", "temporal_strength"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_inflated_unet_is_that_of_diffusers(name: str, off: str | None) -> None:
    """With all of a preset or one part of it, which must change enough for the comparison to mean something."""
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alpha_bar = schedule.alphas_cumprod[TIMESTEP].item()
    sigma, latent = ((1 - alpha_bar) / alpha_bar) ** 0.5, clip_latent()
    model, unet = inflate(family_model("SD1.x")), ancestor()
    tensors, strengths = draw_tensors(model, name), {off: 0.0} if off else {}
    ours = predict_in_host(attach(model, *method(name, R), tensors=tensors or None, **strengths), sigma, latent)
    image_model = predict_in_ancestor(unet, sigma, latent)
    see = SEE[name] if off != "spatial_strength" else None
    inflate_ancestor(unet, name, see, tensors if off != "temporal_strength" else {})
    theirs = predict_in_ancestor(unet, sigma, latent)
    assert 0.5 < theirs.std() < 5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    apart = (theirs - image_model).std() / theirs.std()
    assert apart == 0 if name == PER_FRAME else apart > 0.1
