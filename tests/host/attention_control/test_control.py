"""Attention control beside what else the host does, and its node."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import DisableNoise, Guider_DualCFG, SamplerCustomAdvanced

from consistent_video.modules.attention_control.host import call
from consistent_video.modules.attention_control.host.call import CALL, CONTROL, RUN, ControlSettings
from consistent_video.modules.attention_control.host.control import attach_control
from consistent_video.modules.attention_control.host.prompts import read_prompts
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, method
from consistent_video.modules.demo_model.host import load_demo_model
from consistent_video.modules.inversion.host.invert import inversion_of, invert_clip
from consistent_video.modules.inversion.inversion import InversionSettings
from consistent_video.modules.sampling.host import InvertedClipSampler, SampleSettings, sample_clip
from consistent_video.modules.slices import host
from consistent_video.modules.slices.host import SliceSettings, attach_slices
from consistent_video.nodes.control import AttentionControl

from ..small import EDIT, EMPTY, FRAMES, SOURCE, TOKENS, clip_latent, control_net, in_windows, prompt
from .controlled import PLAIN, PROMPTS, STEPS, controlled, sample, watched


def test_controlnet_and_masks_of_the_edit_work_and_the_source_stays_without(model, inversion) -> None:
    positive = [[EDIT[0][0], {**EDIT[0][1]}]]
    hint = torch.rand(FRAMES, 3, 96, 64, generator=torch.Generator().manual_seed(8))
    positive[0][1]["control"] = control_net().copy().set_cond_hint(hint, 1.0, (0.0, 1.0))
    model = controlled(model, inversion, ControlSettings())
    guided = sample(model, inversion, positive=positive)
    assert guided.isfinite().all() and not torch.equal(guided, sample(model, inversion))
    with pytest.raises(ValueError, match="source_positive carries control"):
        attach_control(model, inversion, positive, PROMPTS, ControlSettings())


def test_the_rows_are_the_edited_prompts_whatever_the_guider_calls_them(model, inversion) -> None:
    """A guider with two guidances evaluates the negative prompt first."""
    model = controlled(model, inversion, ControlSettings("refine", 1.0, "replace", 1.0))
    guider = Guider_DualCFG(model)
    guider.set_conds(EDIT, EMPTY, EMPTY)
    guider.set_cfg(3.0, 1.0)
    sampler = InvertedClipSampler(inversion_of(inversion), SampleSettings())
    (noise,) = DisableNoise.execute().result
    ours = SamplerCustomAdvanced.execute(noise, guider, sampler, sampler.sigmas, inversion).result[0]["samples"]
    torch.testing.assert_close(ours, sample(model, inversion), rtol=1e-3, atol=1e-3)


def test_the_input_model_is_never_altered_and_nothing_stays(model, inversion) -> None:
    before = sample(model, inversion)
    clone = controlled(model, inversion, ControlSettings())
    sample(clone, inversion)
    options = clone.model_options["transformer_options"]
    assert CONTROL in options and RUN not in options and CALL not in options
    assert CONTROL not in model.model_options["transformer_options"]
    assert not model.get_wrappers(WrappersMP.PREDICT_NOISE, CONTROL)
    assert torch.equal(sample(model, inversion), before)
    layers = [m for m in model.model.diffusion_model.modules() if isinstance(m, SpatialTransformer)]
    assert layers and not any(block._forward_hooks for layer in layers for block in layer.transformer_blocks)


def test_an_interrupt_in_the_sources_call_leaves_nothing(model, inversion) -> None:
    clone = controlled(model, inversion, ControlSettings())
    expected = sample(clone, inversion)
    with pytest.raises(InterruptProcessingException):
        sample(watched(clone, mock.Mock(side_effect=InterruptProcessingException)), inversion)
    assert torch.equal(sample(clone, inversion), expected)
    assert not {RUN, CALL} & set(clone.model_options["transformer_options"])


def test_nothing_is_computed_that_nothing_follows(model, inversion, monkeypatch) -> None:
    """The source is called while something follows it, each map is computed once a call, and no slices of it."""
    calls = list[torch.Tensor]()
    faded = ControlSettings("refine", 0.4, "replace", 0.2, local_blend=True, recipe="FateZero")  # it blends after 1, 2
    sample(watched(controlled(model, inversion, faded), calls.append), inversion)
    assert len(calls) == 3

    maps, slices = mock.Mock(side_effect=call.cross_maps), mock.Mock(side_effect=host.predict_slices)
    monkeypatch.setattr(call, "cross_maps", maps)
    monkeypatch.setattr(host, "predict_slices", slices)
    sliced = attach_slices(model, EMPTY, SliceSettings())
    blending = controlled(sliced, inversion, ControlSettings("refine", 1.0, "replace", 1.0, local_blend=True))
    sample(blending, inversion, cfg=1.0)
    layers = len(list(transformer_blocks(model.model.diffusion_model)))
    assert maps.call_count == 3 * STEPS * layers * FRAMES  # the source's for the mask, then both prompts' to mix
    assert slices.call_count == STEPS


@pytest.mark.parametrize("fix", [True, False])
@pytest.mark.parametrize(
    "settings",
    [ControlSettings("refine", 0.8, "replace", 0.6), ControlSettings("refine", 1.0, "fusion", 1.0, local_blend=True)],
)
def test_frames_that_do_not_see_each_other_follow_theirs_in_windows(base, latent, settings, fix) -> None:
    """Each window follows the source's frames of its own, and the mask is of the whole clip."""
    alone = attach(inflate(base), *method(PER_FRAME))
    inversion = invert_clip(alone, SOURCE, SOURCE, latent, PLAIN)
    model = controlled(alone, inversion, settings)
    windowed, whole = sample(in_windows(model, 3, causal_window_fix=fix), inversion), sample(model, inversion)
    torch.testing.assert_close(windowed, whole, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(whole, sample(alone, inversion), rtol=1e-2)


def test_with_frame_attention_windows_follow_too(model, inversion) -> None:
    own = controlled(model, inversion, ControlSettings())
    whole, windowed = sample(own, inversion), sample(in_windows(own, FRAMES - 1), inversion)
    assert (windowed - whole).norm() < 0.3 * (windowed - sample(model, inversion)).norm()


def test_a_second_control_takes_the_place_of_the_first(model, inversion) -> None:
    first = controlled(model, inversion, ControlSettings("refine", 1.0, "replace", 1.0))
    second = ControlSettings("refine", 0.4, "replace", 0.2)
    assert torch.equal(
        sample(controlled(first, inversion, second), inversion), sample(controlled(model, inversion, second), inversion)
    )


def test_the_order_of_control_and_frame_attention_does_not_matter(base, latent) -> None:
    plain, settings = inflate(base), ControlSettings()
    ffam = method(EI2, 2)
    model = attach(plain, *ffam)
    inversion = invert_clip(model, SOURCE, SOURCE, latent, PLAIN)
    after = attach(controlled(plain, inversion, settings), *ffam)
    assert torch.equal(sample(after, inversion), sample(controlled(model, inversion, settings), inversion))


def test_what_it_does_not_know_is_refused(model, inversion, latent) -> None:
    with pytest.raises(ValueError, match="not inverted"):
        controlled(model, latent, ControlSettings())
    with pytest.raises(ValueError, match="2 conditionings"):
        attach_control(model, inversion, SOURCE + EDIT, PROMPTS, ControlSettings())
    nowhere = replace(PROMPTS, source_words=())
    with pytest.raises(ValueError, match="mask of fusion .* mask_words"):
        controlled(model, inversion, ControlSettings(self_attention="fusion"), nowhere)
    controlled(model, inversion, ControlSettings(local_blend=True), nowhere)
    with pytest.raises(ValueError, match="prompts have the same"):
        controlled(model, inversion, ControlSettings(local_blend=True), replace(nowhere, edited_words=()))
    with pytest.raises(ValueError, match="model of the inversion carries Attention Control"):
        invert_clip(controlled(model, inversion, ControlSettings()), SOURCE, SOURCE, latent, InversionSettings(STEPS))
    with pytest.raises(ValueError, match="they have 4 and 5, or .* Choose refine"):
        controlled(model, inversion, ControlSettings("replace"), replace(PROMPTS, replacement=None, words=(4, 5)))
    with pytest.raises(ValueError, match="unknown control"):
        ControlSettings("all")
    own = controlled(model, inversion, ControlSettings())
    other = invert_clip(model, SOURCE, SOURCE, latent, replace(PLAIN, steps=STEPS + 1))
    with pytest.raises(ValueError, match="Smooth Sample from the inversion"):
        sample(own, other)
    short = invert_clip(model, SOURCE, SOURCE, clip_latent(FRAMES - 1), PLAIN)
    with pytest.raises(ValueError, match="source of shape .5, 4, 12, 8. and the clip that is sampled has .4, 4, 12, 8"):
        sample(own, short)
    longer = [[torch.cat([EDIT[0][0], prompt(9)[0][0]], dim=1), {}]]
    with pytest.raises(ValueError, match=f"prompts of {TOKENS} tokens and a conditioning has {2 * TOKENS}"):
        sample(own, inversion, positive=longer)
    taken = own.clone()
    taken.set_model_attn2_replace(lambda q, k, v, options: q, "middle", 0)
    with pytest.raises(ValueError, match="IPAdapter"):
        sample(taken, inversion)
    area = [[EDIT[0][0], {"area": (6, 8, 0, 0)}]]
    with pytest.raises(ValueError, match="for an area"):
        sample(own, inversion, positive=area)


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


def test_prompts_are_read_with_the_hosts_tokenizer(demo) -> None:
    clip = demo[1]
    read = read_prompts(clip, "a red circle on the sea", "a big blue circle on the sea", "Blue , sea", 2.5)
    assert read.alignment[:9] == (0, 1, -1, -1, 3, 4, 5, 6, 7)
    assert read.replacement is None and read.words == (6, 7) and len(read.alignment) == 77
    assert [(i, weight) for i, weight in enumerate(read.weights) if weight != 1] == [(3, 2.5), (7, 2.5)]
    assert (read.source_words, read.edited_words) == ((2,), (2, 3))
    masked = read_prompts(clip, "a red circle", "a blue square", mask="circle, square")
    assert (masked.source_words, masked.edited_words) == ((3,), (3,))
    paired = read_prompts(clip, "a red circle", "a light-blue square").replacement
    padding = next(iter(clip.tokenize("").values()))[0][1][0]
    count = [token for token, _ in next(iter(clip.tokenize("light-blue").values()))[0]].index(padding) - 1
    assert count > 1 and torch.equal(paired[2, 2 : 2 + count], torch.full((count,), 1 / count))
    assert paired[3, 2 + count] == 1 and paired[4, 3 + count] == 1
    assert read_prompts(clip, "a big red circle", "a (big blue:1.2) square").replacement is None
    with pytest.raises(ValueError, match="'green' is not in edit_text"):
        read_prompts(clip, "a red circle", "a blue circle", "green")
    with pytest.raises(ValueError, match="source_text takes 2 pieces"):
        read_prompts(clip, "sea " * 90, "a blue circle")


def test_the_node_attaches_what_it_says(demo) -> None:
    patcher, clip, _ = demo
    model = attach(inflate(patcher), *method(EI2, 4))
    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    source, empty = encode("a red circle"), encode("")
    samples = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    inversion = invert_clip(model, source, empty, {"samples": samples}, InversionSettings(3, 0.0))
    given = {"cross": "refine", "cross_end": 0.7, "self_end": 0.4, "local_blend": True, "mask_threshold": 0.6}
    texts = {"source_text": "a red circle", "edit_text": "a blue square"}
    node = AttentionControl.execute(model, inversion, source, clip, **texts, **given, self_attention="fusion")
    attached = node.result[0].model_options["transformer_options"][CONTROL]
    assert attached.settings == ControlSettings("refine", 0.7, "fusion", 0.4, True, 0.6)
    assert attached.prompts == read_prompts(clip, *texts.values())
    edited, _ = sample_clip(node.result[0], encode("a blue square"), empty, inversion, SampleSettings(4.0))
    assert edited["samples"].isfinite().all()
