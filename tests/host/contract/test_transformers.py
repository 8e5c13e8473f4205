"""What ComfyUI promises of its transformers, one test for each hook that the pack relies on."""

from typing import Any

import pytest
import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_rebatch import ImageRebatch, LatentRebatch

from nodes import VAEDecode, VAEEncode

from ..flows import EDIT, FRAMES, HEIGHT, KINDS, TOKENS, WIDTH, as_encoded, clip_of, draw, make, sample, video_vae

OVERRIDE = "optimized_attention_override"
PICTURE = HEIGHT // 2 * WIDTH // 2


def plain(name: str) -> ModelPatcher:
    model = make(name)
    model.wrappers.clear()
    return model


@pytest.mark.parametrize("name", list(KINDS))
def test_apply_model_wrappers_see_the_batch_and_may_change_its_options(name: str) -> None:
    model, seen, asked = plain(name), [], []

    def kernel(host_kernel, q, k, v, heads, *given: Any, **named: Any) -> torch.Tensor:
        asked.append((q.shape[-2], named["transformer_options"].get("block_index")))
        return host_kernel(q, k, v, heads, *given, **named)

    def wrap(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        seen.append((executor.class_obj, x.shape, sorted(transformer_options["cond_or_uncond"])))
        options = {**transformer_options, OVERRIDE: kernel}
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    expected = sample(model, clip_of())
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "ours", wrap)
    assert torch.equal(sample(model, clip_of()), expected)
    assert seen == [(model.model, (2 * FRAMES, *expected.shape[1:]), [0, 1])]
    if name == "Z-Image":  # text alone, picture alone, both
        assert asked == [(32, None), (32, None), (64, 0)]
    elif name == "SD3":  # whose first block has a second one of the picture alone
        assert [length for length, _ in asked] == [TOKENS + PICTURE, PICTURE, TOKENS + PICTURE]
    else:
        assert [length for length, _ in asked] == 2 * [TOKENS + PICTURE]


@pytest.mark.parametrize("name", ["Flux", "Qwen-Image"])
def test_keys_are_handed_on_before_and_after_they_are_rotated(name: str) -> None:
    model, ids, before, after = plain(name), [], [], []

    def note(args: dict[str, Any]) -> dict[str, Any]:
        ids.append(args["img_ids"])
        return args

    def patch(q, k, v, pe, attn_mask, extra_options) -> dict[str, Any]:
        before.append((k, pe, extra_options["img_slice"]))
        return {}

    def kernel(host_kernel, q, k, *given: Any, **named: Any) -> torch.Tensor:
        after.append(k)
        return host_kernel(q, k, *given, **named)

    model.set_model_patch(note, "post_input")
    model.set_model_patch(patch, "attn1_patch")
    model.model_options["transformer_options"][OVERRIDE] = kernel
    sample(model, clip_of(), cfg=1.0)
    assert len(before) == len(after) == 2
    for (k, pe, (start, stop)), rotated in zip(before, after, strict=True):
        assert (start, stop) == (TOKENS, TOKENS + PICTURE) == (start, k.shape[2])
        torch.testing.assert_close(apply_rope1(k, pe), rotated)
    assert ids[0].shape == (FRAMES, PICTURE, 3)
    torch.testing.assert_close(model.model.diffusion_model.pe_embedder(ids[0]), before[0][1][:, :, TOKENS:])


@pytest.mark.parametrize("name", ["Flux", "Qwen-Image"])
def test_it_is_told_how_many_tokens_of_references_follow_the_picture(name: str) -> None:
    model, told = plain(name), []

    def kernel(host_kernel, q, *given: Any, **named: Any) -> torch.Tensor:
        told.append((q.shape[2], named["transformer_options"]["reference_image_num_tokens"]))
        return host_kernel(q, *given, **named)

    model.model_options["transformer_options"][OVERRIDE] = kernel
    picture = as_encoded(model, {"samples": draw(1, 16, 4, 6, seed=8)})["samples"]
    references = [[EDIT[0][0], {**EDIT[0][1], "reference_latents": [picture]}]]
    sample(model, clip_of(), cfg=1.0, positive=references)
    assert told == 2 * [(TOKENS + PICTURE + 6, [6])]


@torch.inference_mode()
def test_a_vae_of_videos_encodes_pictures_one_by_one_where_they_are_rebatched() -> None:
    """It takes a batch for a video, of which it compresses four frames after the first to one; any batch it decodes."""
    vae, images = video_vae(), draw(5, 32, 24, 3, seed=2).sigmoid()
    (video,) = VAEEncode().encode(vae, images)
    assert video["samples"].shape == (1, 16, 2, 4, 3)
    few, one = (VAEEncode().encode(vae, images[:count])[0]["samples"] for count in (4, 1))
    assert torch.equal(few, one), "what does not fill four frames is dropped"
    (pictures,) = ImageRebatch.execute([images], [1]).args
    encoded = [VAEEncode().encode(vae, picture)[0] for picture in pictures]
    ((clip,),) = LatentRebatch.execute(encoded, [4096]).args
    assert clip["samples"].shape == (5, 16, 1, 4, 3) and "noise_mask" not in clip
    assert torch.equal(clip["samples"][3], encoded[3]["samples"][0])
    (decoded,) = VAEDecode().decode(vae, clip)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded[3:4], VAEDecode().decode(vae, encoded[3])[0])
    assert decoded.std() > 0.1
