"""What the patch does to the host's layers: order, chunks, devices, hooks, memory."""

from functools import partial

import comfy.model_management
import pytest
import torch
from comfy.ldm.modules.attention import GEGLU, FeedForward, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_base import BaseModel
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import group_norm

from consistent_video.modules.clip_model import chunks
from consistent_video.modules.clip_model.attention import scaled_dot_product
from consistent_video.modules.clip_model.host import calls
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.host.calls import COPIED_BYTES, is_far
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import EI2, FULL, PER_FRAME, TUNE_A_VIDEO_PRESET, method

from ..small import clip_latent, in_windows, random_model, sample
from .patched import CROSS_FRAME, patched


def test_the_temporal_module_follows_the_feed_forward(model, latent, monkeypatch) -> None:
    clip_model = patched(model, EI2)
    bank = clip_settings(clip_model).temporal
    order = []
    for block in transformer_blocks(model.model.diffusion_model):
        layer = model.model.diffusion_model.get_submodule(block.path)
        forward = layer.ff.forward

        def ff(x, path=block.path, forward=forward):
            order.append(("ff", path))
            return forward(x)

        def temporal(x, *args, path=block.path, **kwargs):
            order.append(("temporal", path))
            return x

        monkeypatch.setattr(layer.ff, "forward", ff)
        monkeypatch.setattr(bank.at(block.place, block.index), "forward", temporal)
    sample(clip_model, latent)
    assert order and all(a == ("ff", b[1]) and b[0] == "temporal" for a, b in zip(order[::2], order[1::2], strict=True))


def over_all_rows(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Normalise over the frames as well, as AnimateDiff-Evolved does for some motion models."""
    together = rearrange(x, "rows c h w -> 1 c rows h w")
    normed = group_norm(together, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return rearrange(normed, "1 c rows h w -> rows c h w")


@pytest.mark.parametrize("name", CROSS_FRAME)
def test_layers_in_chunks_give_what_they_give_at_once(model, latent, name, monkeypatch) -> None:
    whole, sizes = sample(patched(model, name), latent), {FeedForward: set(), ResBlock: set()}
    for kind, seen in sizes.items():

        def counted(self, x, *args, forward=kind.forward, seen=seen):
            seen.add(len(x))
            return forward(self, x, *args)

        monkeypatch.setattr(kind, "forward", counted)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1)
    torch.testing.assert_close(sample(patched(model, name), latent), whole, rtol=1e-4, atol=1e-4)
    assert sizes == {FeedForward: {1}, ResBlock: {1}}
    monkeypatch.setattr(nn.GroupNorm, "forward", over_all_rows)
    sizes[ResBlock].clear()
    sample(patched(model, name), latent)
    assert 1 not in sizes[ResBlock], "norms over frames need them at once"
    for seen in sizes.values():
        seen.clear()
    sample(inflate(model), latent)
    assert all(max(seen) > 1 for seen in sizes.values()), "what is not patched is the host's own"


@pytest.mark.gpu
def test_layers_whose_weights_are_fetched_are_known() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "meta")
    x = torch.zeros(1, device=device)
    assert is_far(torch.nn.Linear(2, 3, device="cpu"), x) and not is_far(torch.nn.Linear(2, 3, device=device), x)


def test_the_feed_forwards_stay_as_they_are_also_where_a_call_fails(model, latent, monkeypatch) -> None:
    unet = model.model.diffusion_model
    layers = [unet.get_submodule(block.path).ff for block in transformer_blocks(unet)]
    own = layers[0].forward = partial(FeedForward.forward, layers[0])  # as another patch may have put it there

    def fail(_self, x):
        raise comfy.model_management.InterruptProcessingException

    with monkeypatch.context() as failing:
        failing.setattr(GEGLU, "forward", fail)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(patched(model, EI2), latent)
    assert layers[0].forward is own and not any("forward" in vars(layer) for layer in layers[1:])
    sample(patched(model, EI2), latent)
    assert layers[0].forward is own and not any("forward" in vars(layer) for layer in layers[1:])
    del layers[0].forward


def test_a_module_left_on_another_device_is_brought_along(model, latent) -> None:
    clip_model = patched(model, EI2)
    expected, moved = sample(clip_model, latent), []
    bank = clip_settings(clip_model).temporal.bank

    def bring(module, weights, device) -> None:
        moved.append(device)
        module.to_empty(device=device).load_state_dict(weights)

    for module in bank:
        weights = {key: value.clone() for key, value in module.state_dict().items()}
        module.to_empty(device="meta")
        module.to = partial(bring, module, weights)
    assert torch.equal(sample(clip_model, latent), expected)
    assert len(moved) == len(bank)
    assert {device.type for device in moved} == {comfy.model_management.get_torch_device().type}


def test_blocks_are_named_as_the_host_calls_them(model, latent) -> None:
    seen = []
    probe = model.clone()
    probe.set_model_attn1_patch(
        lambda n, context, value, options: (seen.append((options["block"], options["block_index"])), n, n, n)[1:]
    )
    sample(probe, latent)
    blocks = transformer_blocks(model.model.diffusion_model)
    assert {(block.place, block.index) for block in blocks} == set(seen)
    assert len(set(block.path for block in blocks)) == len(blocks)


def test_no_hook_stays_on_the_shared_layers(model, latent) -> None:
    sample(patched(model, EI2), latent)
    layers = [m for m in model.model.diffusion_model.modules() if isinstance(m, SpatialTransformer)]
    assert layers and not any(block._forward_hooks for layer in layers for block in layer.transformer_blocks)


def test_temporal_modules_are_moved_by_the_host(model, latent) -> None:
    clip_model = patched(model, EI2)
    bank = clip_settings(clip_model).temporal
    assert [patcher.model for patcher in clip_model.clone().get_additional_models()] == [bank]
    sample(clip_model, latent)
    assert next(bank.parameters()).device.type == comfy.model_management.get_torch_device().type


def test_training_kernel_equals_the_hosts(model, latent) -> None:
    clip_model = patched(model, EI2)
    options = clip_model.model_options["transformer_options"]
    expected = sample(clip_model, latent)
    options["optimized_attention_override"] = lambda _, q, k, v, heads, **kwargs: scaled_dot_product(q, k, v, heads)
    torch.testing.assert_close(sample(clip_model, latent), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "frames", "window", "others", "at_once", "limit"),
    [
        (EI2, 5, 5, 4, 5, COPIED_BYTES),
        (EI2, 5, 3, 4, 3, COPIED_BYTES),
        (EI2, 35, 3, 2 + 12, 3, COPIED_BYTES),
        (EI2, 5, 3, 4, 1, 1),  # a frame's are concatenated even if they exceed the limit
        (TUNE_A_VIDEO_PRESET, 5, 3, None, 3, 1),  # which has none
        (PER_FRAME, 5, 3, None, 3, 1),
        (FULL, 5, 3, None, 3, 1),
    ],
)
def test_the_hosts_estimate_includes_what_is_concatenated(
    name: str, frames: int, window: int, others: int | None, at_once: int, limit: int, monkeypatch
) -> None:
    """Keys and values of both sides of the guidance, float32; a column of a frame is said to take 16 bytes."""
    base, estimates = random_model(), []

    def count(_model: BaseModel, shape: list[int], **_) -> float:
        estimates.append(16.0 * shape[0] * shape[-1])
        return estimates[-1]

    monkeypatch.setattr(type(base.model), "memory_required", count)
    monkeypatch.setattr(calls, "COPIED_BYTES", limit)
    sample(in_windows(attach(inflate(base), *method(name, 2)), window), clip_latent(frames))
    keys = 0 if others is None else 12 * 8 + others * 6 * 4  # of 35 frames every third is held for the others
    if name == TUNE_A_VIDEO_PRESET:
        keys = 2 * 12 * 8
    more, column = 4 * at_once * keys * 32 * 4, 2 * 16 * window
    assert more <= max(estimates) - 8 * column < more + column
