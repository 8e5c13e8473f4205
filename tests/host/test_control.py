"""Attention Control in the host, against prompt-to-prompt written independently: source and edit in one batch."""

from dataclasses import replace
from unittest import mock

import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import DisableNoise, Guider_DualCFG, SamplerCustomAdvanced
from torch.nn import functional as F

from consistent_video.modules.attention_control.host import call as control_call
from consistent_video.modules.attention_control.host import control
from consistent_video.modules.attention_control.host.call import CALL, CONTROL, RUN, ControlSettings
from consistent_video.modules.attention_control.host.control import attach_control
from consistent_video.modules.attention_control.host.prompts import Prompts, read_prompts
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, method
from consistent_video.modules.demo_model.host import load_demo_model
from consistent_video.modules.inversion.host.invert import InversionSettings, invert_clip, trajectory
from consistent_video.modules.sampling.host import InvertedClipSampler, SampleSettings, sample_clip
from consistent_video.nodes.control import AttentionControl

from .small import (
    EDIT,
    EMPTY,
    FRAMES,
    SOURCE,
    TOKENS,
    UNET,
    Small,
    clip_latent,
    control_net,
    make_model,
    prompt,
    random_weights,
)

STEPS = 5
PLAIN = InversionSettings(STEPS, 0.0, denoise=1.0)
ALIGNED = (0, 1, -1, 2, 4, -1, 6)
SHARES = [{0: 1.0}, {1: 0.5}, {1: 0.5}, {2: 1.0, 3: 1.0}, {4: 1.0}, {5: 1.0}, {6: 1.0}]  # words of 1, 2, 1 and 2, 1, 1
REPLACEMENT = torch.tensor([[shares.get(i, 0.0) for shares in SHARES] for i in range(TOKENS)])
PROMPTS = Prompts(ALIGNED, (1.0,) * TOKENS, (3, 5), (2, 5), REPLACEMENT, (3, 3))
WEIGHTED = replace(PROMPTS, weights=(1.0, 1.0, 3.0, 1.0, 0.5, 1.0, 1.0))
OFF = ControlSettings("none", 0.0, "replace", 0.0)


def attentive_weights(shapes: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return random weights whose attention is far from uniform and counts."""
    weights = random_weights(shapes, 0.1, dtype)
    return {key: 3 * value if ".attn" in key and value.ndim == 2 else value for key, value in weights.items()}


@pytest.fixture(scope="module")
def base():
    return make_model(Small, UNET, attentive_weights, torch.float32)


@pytest.fixture(scope="module")
def model(base):
    return attach(inflate(base), *method(EI2, 2))


@pytest.fixture(scope="module")
def latent():
    return clip_latent()


@pytest.fixture(scope="module")
def inversion(model, latent):
    return invert_clip(model, SOURCE, SOURCE, latent, PLAIN)


def controlled(model, inversion, settings: ControlSettings, prompts: Prompts = PROMPTS):
    return attach_control(model, inversion, SOURCE, prompts, settings)


def sample(model, inversion, cfg: float = 3.0, positive=EDIT, **settings) -> torch.Tensor:
    return sample_clip(model, positive, EMPTY, inversion, SampleSettings(cfg, **settings))[0]["samples"]


class SideBySide:
    """Prompt-to-prompt as its authors run it: rows of the source, then of the edit, through one UNet call."""

    def __init__(self, model, inversion, settings: ControlSettings, prompts: Prompts = PROMPTS):
        self.model, self.settings, self.prompts = model, settings, prompts
        self.states, self.sigmas = trajectory(model, inversion), inversion["consistent_video_inversion"]["sigmas"]
        self.start = 0.18215 * inversion["samples"]
        self.step = 0

    def attend(self, q, k, v, options):
        """Self-attention, the edit's with the source's queries and keys where the map is half the latent or less."""
        is_coarse = 2 * options["activations_shape"][-2] <= self.states.shape[-2]
        if is_coarse and self.step < self.settings.self_end * STEPS:
            q, k = (torch.cat([x[:FRAMES], x[:FRAMES]]) for x in (q, k))
        return self.earlier(q, k, v, options)

    def earlier(self, q, k, v, options):
        """What attends without control: both clips for themselves."""
        replaced = self.model.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {})
        clips = []
        for clip in (slice(None, FRAMES), slice(FRAMES, None)):
            one = {**options, "cond_or_uncond": [0], "activations_shape": [FRAMES, *options["activations_shape"][1:]]}
            if options["block"] in replaced:
                clips.append(replaced[options["block"]](q[clip], k[clip], v[clip], one))
            else:
                heads = options["n_heads"]
                parts = [x[clip].unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
                clips.append(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return torch.cat(clips)

    def look(self, q, k, v, options):
        """Cross-attention, token by token as the settings say."""
        heads, (source, edit) = options["n_heads"], (slice(None, FRAMES), slice(FRAMES, None))
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2).double() for x in (q, k, v))
        maps = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        if self.step < self.settings.cross_end * STEPS:
            for token in range(TOKENS):
                if self.settings.cross == "refine" and ALIGNED[token] >= 0:
                    maps[edit, ..., token] = maps[source, ..., ALIGNED[token]]
                if self.settings.cross == "replace":
                    taken = SHARES[token].items()
                    maps[edit, ..., token] = sum(share * maps[source, ..., one] for one, share in taken)
            maps[edit] *= torch.tensor(self.prompts.weights, dtype=maps.dtype)
        return (maps @ v).transpose(1, 2).flatten(2).float()

    @torch.no_grad()
    def walk(self, cfg: float) -> torch.Tensor:
        """Return the edit, VAE latent."""
        options = self.model.model_options["transformer_options"]
        places = {block.place for block in transformer_blocks(self.model.model.diffusion_model)}
        patches = {"attn1": dict.fromkeys(places, self.attend), "attn2": dict.fromkeys(places, self.look)}
        bound = torch.cat([SOURCE[0][0].expand(FRAMES, -1, -1), EDIT[0][0].expand(FRAMES, -1, -1)])
        x = self.start.to(self.states)
        for step, (sigma, sigma_next) in enumerate(zip(self.sigmas[:-1], self.sigmas[1:], strict=True)):
            self.step = step
            own = {**options, "patches_replace": patches, "cond_or_uncond": [0, 0]}
            both = torch.cat([self.states[step], x])
            levels = sigma.expand(2 * FRAMES)
            apply = self.model.model.apply_model
            denoised = apply(both, levels, c_crossattn=bound, transformer_options=own)[FRAMES:]
            if cfg != 1:
                free = {**options, "cond_or_uncond": [0]}
                empty = EMPTY[0][0].expand(FRAMES, -1, -1)
                without = apply(x, levels[:FRAMES], c_crossattn=empty, transformer_options=free)
                denoised = without + cfg * (denoised - without)
            x = x + (sigma_next - sigma) * (x - denoised) / sigma
        return x / (1 + self.sigmas[-1] ** 2).sqrt() / 0.18215


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        (ControlSettings("refine", 0.8, "replace", 0.0), PROMPTS),
        (ControlSettings("replace", 0.4, "replace", 0.0), PROMPTS),
        (ControlSettings("none", 0.0, "replace", 0.6), PROMPTS),
        (ControlSettings("refine", 0.6, "replace", 0.4), PROMPTS),
        (ControlSettings("none", 1.0, "replace", 0.0), WEIGHTED),
        (ControlSettings("refine", 1.0, "replace", 1.0), WEIGHTED),
    ],
    ids=str,
)
@pytest.mark.parametrize(("preset", "cfg"), [(EI2, 1.0), (EI2, 3.0), (PER_FRAME, 3.0)])
def test_it_is_prompt_to_prompt(base, latent, settings, prompts, preset, cfg) -> None:
    model = attach(inflate(base), *method(preset, 2))
    inversion = invert_clip(model, SOURCE, SOURCE, latent, PLAIN)
    ours = sample(controlled(model, inversion, settings, prompts), inversion, cfg).cpu()
    expected = SideBySide(model, inversion, settings, prompts).walk(cfg)
    free = sample(model, inversion, cfg).cpu()
    assert (ours - expected).norm() / expected.norm() < 1e-5
    assert (ours - free).norm() > 100 * (ours - expected).norm()


@pytest.mark.parametrize("settings", [OFF, ControlSettings("refine", 0.0, "fusion", 0.0)])
def test_without_a_part_of_the_steps_it_changes_nothing(model, inversion, settings) -> None:
    with mock.patch.object(control, "calc_cond_batch") as source:
        ours = sample(controlled(model, inversion, settings, WEIGHTED), inversion)
    assert torch.equal(ours, sample(model, inversion)) and not source.called


@pytest.mark.parametrize("cross", ["refine", "replace"])
def test_an_unchanged_prompt_gives_the_source_back(model, latent, cross) -> None:
    """With the steps of the inversion refined to their fixed point, sampling comes back along the same states."""
    inversion = invert_clip(model, SOURCE, SOURCE, latent, InversionSettings(8, 0.0, denoise=1.0, refinements=10))
    same = replace(PROMPTS, alignment=tuple(range(TOKENS)), replacement=torch.eye(TOKENS))
    model = controlled(model, inversion, ControlSettings(cross, 1.0, "replace", 1.0), same)
    back = sample(model, inversion, 1.0, SOURCE).cpu()
    assert (back - latent["samples"]).norm() / latent["samples"].norm() < 5e-3


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (ControlSettings("refine", 1.0, "replace", 0.0), STEPS),
        (ControlSettings("refine", 0.4, "replace", 0.2), 2),
        (ControlSettings("none", 0.0, "replace", 0.5), 3),
        (ControlSettings("none", 0.0, "replace", 0.0, local_blend=True), STEPS),
    ],
)
def test_the_source_is_evaluated_once_in_each_controlled_step(model, inversion, settings, count) -> None:
    seen = []
    calc = comfy.samplers.calc_cond_batch

    def counted(inner, conds, x, *args):
        seen.append(x)
        return calc(inner, conds, x, *args)

    with mock.patch.object(control, "calc_cond_batch", counted):
        sample(controlled(model, inversion, settings), inversion)
    states = trajectory(model, inversion)
    assert len(seen) == count
    assert all(torch.equal(x.cpu(), state) for x, state in zip(seen, states, strict=False))


@pytest.mark.parametrize("start", [0, 2])
def test_parts_are_of_the_inversions_steps(model, inversion, start) -> None:
    """From the third of five steps on nothing acts that ends after two."""
    ours = sample(controlled(model, inversion, ControlSettings("refine", 0.4, "replace", 0.4)), inversion, start_step=2)
    assert torch.equal(ours, sample(model, inversion, start_step=2))
    assert not torch.equal(
        sample(controlled(model, inversion, ControlSettings("refine", 0.5)), inversion, start_step=start),
        sample(model, inversion, start_step=start),
    )


@pytest.mark.parametrize("fused", ["replace", "fusion"])
def test_joined_and_split_conditionings_agree(model, inversion, monkeypatch, fused) -> None:
    model = controlled(model, inversion, ControlSettings("refine", 0.8, fused, 0.6, local_blend=True), WEIGHTED)
    rows = []
    apply_model = type(model.model).apply_model

    def counted(self, x, *args, **kwargs):
        rows.append(len(x))
        return apply_model(self, x, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "apply_model", counted)
    joined = sample(model, inversion)
    assert set(rows) == {FRAMES, 2 * FRAMES}
    rows.clear()
    monkeypatch.setattr(type(model.model), "memory_required", lambda *args, **kwargs: float("inf"))
    split = sample(model, inversion)
    assert set(rows) == {FRAMES}
    torch.testing.assert_close(split, joined, rtol=1e-3, atol=1e-3)


def fixed_mask(mask: torch.Tensor):
    """Let every mask be this one, shape (f, 1, 2, 1), in its larger blocks."""
    resize = lambda height, width: F.interpolate(mask, size=(height, width))  # noqa: E731
    return mock.patch.object(control_call, "threshold_mask", lambda maps, threshold, h, w: resize(h, w).to(maps))


def test_fusion_keeps_to_the_source_outside_of_the_mask(model, inversion) -> None:
    """A mask of all is no self-attention control, one of nothing is replacing."""
    fusion, nothing = (ControlSettings("refine", 0.6, "fusion", end) for end in (0.6, 0.0))
    replacing = replace(fusion, self_attention="replace")
    results = {}
    for value in (0.0, 0.5, 1.0):
        with fixed_mask(torch.full((FRAMES, 1, 2, 1), value)):
            results[value] = sample(controlled(model, inversion, fusion), inversion)
    expected = sample(controlled(model, inversion, replacing), inversion)
    torch.testing.assert_close(results[0.0], expected, rtol=1e-4, atol=1e-4)
    expected = sample(controlled(model, inversion, nothing), inversion)
    torch.testing.assert_close(results[1.0], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(results[0.5], results[0.0], atol=1e-2)


def test_local_blend_keeps_the_source_outside_of_the_mask(model, inversion, latent) -> None:
    settings = ControlSettings("refine", 0.8, "replace", 0.5, local_blend=True)
    half = torch.zeros(FRAMES, 1, 2, 1)
    half[:, :, 1] = 1
    with fixed_mask(half):
        ours = sample(controlled(model, inversion, settings), inversion).cpu()
    middle = ours.shape[-2] // 2
    source = latent["samples"]
    torch.testing.assert_close(ours[..., :middle, :], source[..., :middle, :], rtol=1e-4, atol=1e-4)
    assert (ours - source)[..., middle:, :].abs().mean() > 0.1
    with fixed_mask(torch.ones(FRAMES, 1, 2, 1)):
        everywhere = sample(controlled(model, inversion, settings), inversion)
    unblended = sample(controlled(model, inversion, replace(settings, local_blend=False)), inversion)
    torch.testing.assert_close(everywhere, unblended, rtol=1e-4, atol=1e-4)


def test_the_mask_is_made_of_both_prompts_words_over_the_steps(model, inversion) -> None:
    """The maps given to the mask are sums over layers of one size and over the steps so far."""
    given = []
    make = control_call.threshold_mask

    def note(maps, threshold, height, width):
        given.append((maps.clone(), threshold))
        return make(maps, threshold, height, width)

    settings = ControlSettings("none", 0.0, "replace", 0.0, local_blend=True, threshold=0.4)
    with mock.patch.object(control_call, "threshold_mask", note):
        sample(controlled(model, inversion, settings), inversion)
    assert len(given) == 2 * (STEPS - 1) and {threshold for _, threshold in given} == {0.4}
    for maps in (given[::2], given[1::2]):
        totals = [one.sum().item() for one, _ in maps]
        assert totals == sorted(totals) and totals[0] > 0
    assert len({tuple(maps.shape[-2:]) for maps, _ in given}) == 1


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
    sampler = InvertedClipSampler(inversion, SampleSettings())
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
    with (
        mock.patch.object(control, "calc_cond_batch", side_effect=InterruptProcessingException),
        pytest.raises(InterruptProcessingException),
    ):
        sample(clone, inversion)
    assert torch.equal(sample(clone, inversion), expected)
    assert not {RUN, CALL} & set(clone.model_options["transformer_options"])


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
