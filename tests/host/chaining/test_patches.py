"""Patches of other nodes on a clip model: they compose in any order, or are refused by name."""

from collections.abc import Callable

import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from torch import Tensor

from consistent_video.modules.clip_model.methods import PER_FRAME

from ..edits import FRAMES, away, edit, patched
from ..small import UNET

Patch = Callable[[ModelPatcher], ModelPatcher]
PICTURES = torch.randn(FRAMES, 3, UNET["context_dim"], generator=torch.Generator().manual_seed(9))


def free_u(model: ModelPatcher, gain: float = 1.5) -> ModelPatcher:
    return FreeU.execute(model, gain, gain, 1.0, 1.0).args[0]


def free_u_v2(model: ModelPatcher, gain: float = 1.5) -> ModelPatcher:
    return FreeU_V2.execute(model, gain, gain, 1.0, 1.0).args[0]


def perturbed_attention(model: ModelPatcher, gain: float = 3.0) -> ModelPatcher:
    return PerturbedAttentionGuidance.execute(model, gain - 1).args[0]


def rescaled_guidance(model: ModelPatcher, gain: float = 1.7) -> ModelPatcher:
    return RescaleCFG().patch(model, gain - 1)[0]


def more_contrast(model: ModelPatcher, gain: float = 1.5) -> ModelPatcher:
    clone = model.clone()
    clone.set_model_attn1_patch(lambda q, k, v, options: (gain * q, k, v))
    return clone


def look_at_pictures(model: ModelPatcher, gain: float = 2.0) -> ModelPatcher:
    """Patch cross-attention as IPAdapter did at first: tokens of a picture for each frame, behind the prompt's."""
    clone = model.clone()

    def add(q: Tensor, k: Tensor, v: Tensor, options: dict) -> tuple[Tensor, ...]:
        tokens = PICTURES.repeat(len(k) // FRAMES, 1, 1).to(k)
        weight = gain - 1
        return (q, torch.cat([k, tokens], 1), torch.cat([v, weight * tokens], 1)) if weight else (q, k, v)

    clone.set_model_attn2_patch(add)
    return clone


def attend_to_pictures(model: ModelPatcher, gain: float = 1.5) -> ModelPatcher:
    """Replace cross-attention as IPAdapter does now: attention to the prompt plus attention to a frame's picture."""
    clone = model.clone()

    def attend(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        out = optimized_attention(q, k, v, options["n_heads"], attn_precision=options["attn_precision"])
        width = k.shape[-1]
        tokens = PICTURES.repeat(len(k) // FRAMES, 1, width // PICTURES.shape[-1] + 1)[..., :width].to(k)
        return out + (gain - 1) * optimized_attention(q, tokens, tokens, options["n_heads"])

    for place in (("input", 1), ("middle", 0), ("output", 0)):
        clone.set_model_attn2_replace(attend, *place)
    return clone


COMPOSING = (
    free_u,
    free_u_v2,
    perturbed_attention,
    rescaled_guidance,
    more_contrast,
    look_at_pictures,
    attend_to_pictures,
)


@pytest.mark.parametrize("patch", COMPOSING)
def test_what_composes_acts_alike_before_and_after_the_frame_attention(
    base, model, inversion, edited, patch: Callable[..., ModelPatcher]
) -> None:
    after = edit(patch(model), inversion)
    assert after.isfinite().all() and away(after, edited) > 1e-2
    assert torch.equal(edit(patched(base=patch(base)), inversion), after)
    assert away(edit(patch(model, 1.0), inversion), edited) < 1e-5
    assert torch.equal(edit(model, inversion), edited)


def test_each_frame_looks_at_its_own_picture(base, inversion, monkeypatch) -> None:
    alone = patched(base=base, preset=PER_FRAME)
    before = edit(look_at_pictures(alone), inversion)
    changed = PICTURES.clone()
    changed[1] += 1
    monkeypatch.setitem(globals(), "PICTURES", changed)
    apart = [away(*pair) for pair in zip(edit(look_at_pictures(alone), inversion), before, strict=True)]
    assert apart[1] > 1e-2 and max(apart[:1] + apart[2:]) < 1e-5


def guided_by_self_attention(model: ModelPatcher) -> ModelPatcher:
    return SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0]


def attend(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    return optimized_attention(q, k, v, options["n_heads"])


def attention_of_its_own(model: ModelPatcher) -> ModelPatcher:
    clone = model.clone()
    clone.set_model_attn1_replace(attend, "output", 1)
    return clone


def transformers_of_its_own(model: ModelPatcher) -> ModelPatcher:
    clone = model.clone()
    clone.set_model_forward_timestep_embed_patch((SpatialTransformer, lambda layer, x, *rest: x))
    return clone


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (guided_by_self_attention, r"SelfAttentionGuidance \(comfy_extras.nodes_sag\) replaces self-attention"),
        (attention_of_its_own, r"attend \(.*test_patches\) replaces self-attention.*attention_strength to 0"),
        (transformers_of_its_own, r"transformers_of_its_own \(.*test_patches\) runs layers of the UNet"),
    ],
)
def test_what_takes_the_same_place_is_refused_by_name_before_and_after(
    base, model, inversion, patch: Patch, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        patched(base=patch(base))
    other = patch(model)
    with pytest.raises(ValueError, match=message):
        edit(other, inversion)
    alone = patched(base=base, preset=PER_FRAME)
    assert away(edit(patch(alone), inversion), edit(patched(base=patch(base), preset=PER_FRAME), inversion)) == 0


def test_keys_that_another_node_adds_are_refused(base, model, inversion) -> None:
    def reference(model: ModelPatcher) -> ModelPatcher:
        clone = model.clone()
        clone.set_model_attn1_patch(
            lambda q, k, v, options: (q, torch.cat([k, k[:1].expand_as(k)], 1), v.repeat(1, 2, 1))
        )
        return clone

    other = reference(model)
    with pytest.raises(ValueError, match="got 96 keys where the feature map has 48 tokens.*attention_strength"):
        edit(other, inversion)
    assert edit(reference(patched(base=base, preset=PER_FRAME)), inversion).isfinite().all()
