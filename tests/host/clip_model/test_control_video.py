"""ControlVideo's temporal module in the host's UNet: where it stands, what it starts from, which blocks have none."""

import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import CONTROL_VIDEO_PRESET, method

from ..small import FRAMES, family_model, sample


@pytest.fixture(scope="module")
def base():
    return family_model("SD1.x")


def test_at_first_it_is_key_frame_attention_to_the_bit(base, latent) -> None:
    alone = attach(inflate(base), *method(CONTROL_VIDEO_PRESET, temporal="none"))
    assert torch.equal(sample(attach(inflate(base), *method(CONTROL_VIDEO_PRESET)), latent), sample(alone, latent))


def test_it_starts_as_self_attention_and_the_middle_block_has_none(base) -> None:
    unet, bank = (
        base.model.diffusion_model,
        clip_settings(attach(inflate(base), *method(CONTROL_VIDEO_PRESET))).temporal,
    )
    blocks = transformer_blocks(unet)
    assert bank.paths == [block.path for block in blocks if block.place[0] != "middle"] != [b.path for b in blocks]
    for path, module in zip(bank.paths, bank.bank, strict=True):
        attn1 = unet.get_submodule(f"{path}.attn1")
        for name in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias"):
            assert torch.equal(module.get_parameter(name.replace(".0", "")), attn1.get_parameter(name))


def test_it_starts_from_the_checkpoint_whatever_patches_are_loaded(base, latent) -> None:
    expected = clip_settings(attach(inflate(base), *method(CONTROL_VIDEO_PRESET))).temporal.tensors()
    patched = inflate(base).clone()
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight"
    before = patched.model.get_parameter(key).detach().clone()
    assert patched.add_patches({key: (torch.ones_like(before),)}) == [key]
    sample(patched, latent)
    assert not torch.equal(patched.model.get_parameter(key), before), (
        "the host puts patches into the weights that all clones share"
    )
    found = clip_settings(attach(inflate(base), *method(CONTROL_VIDEO_PRESET))).temporal.tensors()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@torch.no_grad()
def test_it_stands_after_self_attention(base, latent) -> None:
    """A block written out from its own layers, with key-frame attention and the module on what its norm returns."""
    clip_model = attach(inflate(base), *method(CONTROL_VIDEO_PRESET))
    bank, unet = clip_settings(clip_model).temporal, clip_model.model.diffusion_model
    generator = torch.Generator().manual_seed(3)
    for module in bank.bank:
        for parameter in module.zero_out.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    path, seen = bank.paths[1], []
    block = unet.get_submodule(path)
    hook = block.register_forward_hook(
        lambda _block, given, kept, out: seen.append((*given, kept, out)), with_kwargs=True
    )
    sample(clip_model, latent, cfg=1.0, sigmas=(2.0, 1.0))
    hook.remove()
    x, *rest, out = seen[0]
    context = next(value for value in (*rest, *rest[-1].values()) if isinstance(value, torch.Tensor))
    attn1, normed = block.attn1, block.norm1(x)
    q, k, v = attn1.to_q(normed), attn1.to_k(normed), attn1.to_v(normed)
    k, v = (value[:1].expand_as(value) for value in (k, v))
    h = x + attn1.to_out(optimized_attention(q, k, v, block.n_heads))
    h = bank.bank[1](h, FRAMES, 1.0, False, normed)
    h = h + block.attn2(block.norm2(h), context=context)
    torch.testing.assert_close(out, h + block.ff(block.norm3(h)), rtol=1e-4, atol=1e-4)
    assert not block._forward_hooks and not block.norm1._forward_hooks and not attn1.to_out._forward_hooks
