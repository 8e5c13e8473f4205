"""Attention across frames in flow-matching transformers, by the host's hooks alone."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from torch import Tensor

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.joint import OVERRIDE
from consistent_video.modules.clip_model.methods import spatial_attention

from ..flows import EDIT, FRAMES, KINDS, TOKENS, as_encoded, clip_of, draw, make, sample
from ..small import in_windows
from .dense import GRID, PICTURE, dense

SEEN = {"sparse-causal": [[0], [0], [0, 1], [0, 2]], "full": [[0, 1, 2, 3]] * 4, "first-frame": [[0]] * 4}


def connected(model: ModelPatcher, name: str, r: int = 2, **given: Any) -> ModelPatcher:
    return attach(model, spatial_attention(name, r), None, **given)


@pytest.fixture(scope="module", params=list(KINDS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family: str) -> ModelPatcher:
    return make(family)


@pytest.fixture(scope="module")
def flux() -> ModelPatcher:
    return make("Flux")


@pytest.fixture(scope="module")
def base(model) -> Tensor:
    return sample(model, clip_of())


def offered(family: str) -> list[str]:
    return [*SEEN, *(["FFAM"] if family != "Z-Image" else [])]


def with_kernel(model: ModelPatcher, kernel: Callable[..., Tensor]) -> ModelPatcher:
    clone = model.clone()
    clone.model_options["transformer_options"][OVERRIDE] = kernel
    return clone


@pytest.mark.parametrize("name", list(SEEN))
def test_it_is_one_dense_attention_of_the_whole_batch(family: str, model, base, name: str) -> None:
    """So text attends within its frame, and the sides of CFG, which lie in one batch, do not mix."""
    found, expected = sample(connected(model, name), clip_of()), sample(with_kernel(model, dense(family, SEEN[name])),
                                                                         clip_of())  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - base).abs().amax() > 1e-2


@pytest.mark.parametrize("name", list(SEEN))
def test_frames_that_are_equal_are_the_base_models(model, name: str) -> None:
    still = {"samples": clip_of()["samples"][:1].repeat(FRAMES, 1, 1, 1)}
    expected = sample(model, still, alike=True)
    torch.testing.assert_close(sample(connected(model, name), still, alike=True), expected, rtol=1e-4, atol=1e-4)


def test_one_frame_is_the_base_models_to_the_bit(family: str, model) -> None:
    one = clip_of(1)
    expected = sample(model, one)
    for name in offered(family):
        assert torch.equal(sample(connected(model, name), one), expected)


def test_where_nothing_acts_it_is_the_base_model_to_the_bit(family: str, model, base) -> None:
    name = offered(family)[-1]
    patched = connected(model, name)
    assert not torch.equal(sample(patched, clip_of()), base)
    assert torch.equal(sample(attach(patched, None, None), clip_of()), base)
    assert torch.equal(sample(connected(patched, name, percents=(0.9, 1.0)), clip_of()), base)
    assert torch.equal(sample(connected(patched, name, spatial_strength=0.0), clip_of()), base)
    assert torch.equal(sample(connected(inflate(patched, 1), name), clip_of()), base), "clips of one frame"
    assert torch.equal(sample(model, clip_of()), base)


def test_clips_of_one_batch_do_not_mix(family: str, model) -> None:
    pairs, other = clip_of(), clip_of()
    other["samples"][2:] += 1
    for name in offered(family):
        two = connected(inflate(model, 2), name)
        assert torch.equal(sample(two, other)[:2], sample(two, pairs)[:2])
    with pytest.raises(ValueError, match="does not divide into clips of num_frames = 3"):
        sample(inflate(model, 3), pairs)


def test_joined_and_split_conditionings_agree(family: str, model, monkeypatch: pytest.MonkeyPatch) -> None:
    patched = connected(model, offered(family)[-1])
    joined = sample(patched, clip_of())
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: float("inf"))
    torch.testing.assert_close(sample(patched, clip_of()), joined, rtol=0, atol=1e-4)


def test_bfloat16_is_near_full_precision(family: str, model, base) -> None:
    """The attention adds no errors of rounding to the base model's, and changes far more than these."""
    half = make(family, torch.bfloat16)
    rounded = (sample(half, clip_of()) - base).norm()
    for name in offered(family):
        exact = sample(connected(model, name), clip_of())
        error = (sample(connected(half, name), clip_of()) - exact).norm()
        assert 0 < error < 1.2 * rounded and 3 * error < (exact - base).norm()


def test_half_the_strength_is_half_of_what_a_single_attention_changes(flux) -> None:
    """Seen in the first block, whose inputs are the same."""
    outputs = {}
    for strength in (0.5, 1.0):
        held = outputs.setdefault(strength, [])
        patched = connected(flux, "full", spatial_strength=strength)
        patched.set_model_patch(lambda attended, _, held=held: held.append(attended) or attended, "attn1_output_patch")
        sample(patched, clip_of(), cfg=1.0)
    own: list[Tensor] = []
    plain = flux.clone()
    plain.set_model_patch(lambda attended, _: own.append(attended) or attended, "attn1_output_patch")
    sample(plain, clip_of(), cfg=1.0)
    torch.testing.assert_close(outputs[0.5][0], (own[0] + outputs[1.0][0]) / 2, rtol=1e-4, atol=1e-5)


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate pairs of features by the positions of tokens, as rotary embeddings do, from the formula."""
    parts = []
    for axis, width in enumerate(KINDS["Flux"][1]["axes_dim"]):
        angles = positions[:, axis, None] / 10000 ** (torch.arange(0, width, 2) / width)
        pairs = x[..., sum(KINDS["Flux"][1]["axes_dim"][:axis]) :][..., :width].unflatten(-1, (-1, 2))
        turned = [pairs[..., 0] * angles.cos() - pairs[..., 1] * angles.sin(),
                  pairs[..., 0] * angles.sin() + pairs[..., 1] * angles.cos()]  # fmt: skip
        parts.append(torch.stack(turned, dim=-1).flatten(-2))
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize(("name", "first"), [("Flux", (0, 0)), ("Qwen-Image", (-2, -1))])
def test_keys_are_shrunk_before_they_are_rotated(name: str, first: tuple[int, int]) -> None:
    """Cells of 2 x 2 tokens, of 2 x 1 at the right edge; the first token's place is the family's."""
    unrotated, seen = [], []

    def note(q, k, v, **_: Any) -> dict:
        unrotated.append((k[..., TOKENS:, :], v[..., TOKENS:, :]))
        return {}

    def watch(kernel, q, k, v, *given: Any, **named: Any) -> Tensor:
        seen.append((q.shape[-2], k, v))
        return kernel(q, k, v, *given, **named)

    patched = with_kernel(connected(make(name), "FFAM"), watch)
    patched.set_model_patch(note, "attn1_patch")
    sample(patched, clip_of(), cfg=1.0)
    assert len(unrotated) == 2 and [queries for queries, *_ in seen] == 2 * [*FRAMES * [PICTURE], TOKENS]
    centres = torch.tensor([[0, row, column] for row in (0.5, 2.5) for column in (0.5, 2.0)])
    places = torch.tensor([[0.0, row, column] for row in range(GRID[0]) for column in range(GRID[1])])
    centres, places = (x + torch.tensor([0, *first]) for x in (centres, places))
    for block, (k, v) in enumerate(unrotated):
        grids = k.unflatten(2, GRID), v.unflatten(2, GRID)
        cells = [
            [grid[:, :, row : row + 2, column : column + 2].mean(dim=(2, 3)) for row in (0, 2) for column in (0, 2)]
            for grid in grids
        ]
        coarse_k, coarse_v = rotated(torch.stack(cells[0], dim=2), centres), torch.stack(cells[1], dim=2)
        for frame in range(FRAMES):
            _, keys, values = seen[(FRAMES + 1) * block + frame]
            others = [i for i in range(FRAMES) if i != frame]
            assert keys.shape[2] == 2 * TOKENS + PICTURE + 3 * 4, "the text counts twice"
            torch.testing.assert_close(keys[0, :, -12 - PICTURE : -12], rotated(k[frame], places))
            torch.testing.assert_close(keys[0, :, -12:], torch.cat([*coarse_k[others]], dim=1))
            torch.testing.assert_close(values[0, :, -12:], torch.cat([*coarse_v[others]], dim=1))


def test_shrinking_rotated_keys_would_be_wrong() -> None:
    """A cell of equal keys is that key at its centre; a mean of rotated keys is shorter, most where they turn fast."""
    key, places = draw(1, 24, seed=1), torch.tensor([[0.0, row, column] for row in range(4) for column in range(4)])
    cell, centre = key.expand(16, -1), places.mean(dim=0, keepdim=True)
    before, after = rotated(cell.mean(dim=0, keepdim=True), centre), rotated(cell, places).mean(dim=0, keepdim=True)
    torch.testing.assert_close((rotated(key, centre) * before).sum(), key.square().sum())
    fastest = slice(8, 10)  # of the rows, by one radian from token to token
    torch.testing.assert_close(before[:, fastest].norm(), key[:, fastest].norm())
    torch.testing.assert_close(
        after[:, fastest].norm(), key[:, fastest].norm() * math.sin(2) / (4 * math.sin(0.5)), rtol=1e-5, atol=0
    )


def test_windows_see_the_coarse_tokens_of_the_whole_clip(flux) -> None:
    clip, other = clip_of(8), clip_of(8)
    other["samples"][7] += 1
    far = [(sample(in_windows(connected(flux, name), 4), other) - sample(in_windows(connected(flux, name), 4), clip))[0]
           for name in ("FFAM", "full")]  # fmt: skip
    assert far[0].abs().amax() > 1e-4 and far[1].abs().amax() == 0


@pytest.mark.parametrize("window", [FRAMES, 3])
@pytest.mark.parametrize("name", ["per frame", "first-frame", "full", "FFAM"])
def test_the_host_counts_the_keys_of_a_frame(flux, monkeypatch: pytest.MonkeyPatch, name: str, window: int) -> None:
    """In float32, as keys and values, of both sides of CFG; a column of a frame is said to take 16 bytes."""
    counted, asked = [], []

    def watch(kernel, q, k, *given: Any, **named: Any) -> Tensor:
        asked.append(k.shape[-2])
        return kernel(q, k, *given, **named)

    def count(_model: BaseModel, shape: list[int], **_: Any) -> float:
        counted.append(16.0 * shape[0] * shape[-1])
        return counted[-1]

    monkeypatch.setattr(type(flux.model), "memory_required", count)
    references = [[EDIT[0][0], {**EDIT[0][1], "reference_latents": [draw(1, 16, 4, 6, seed=8)]}]]
    sample(in_windows(with_kernel(connected(flux, name), watch), window), clip_of(), positive=references)
    keys = max(asked) if name != "per frame" else 0
    more = 2 * 2 * 4 * keys * KINDS["Flux"][1]["hidden_size"]
    column = 2 * 16 * window
    assert more <= max(counted) - column * clip_of()["samples"].shape[-1] < more + column


@pytest.mark.parametrize("family", ["Flux", "SD3"])
def test_layers_that_are_skipped_for_guidance_leave_the_whole_clips_tokens_as_they_are(family: str) -> None:
    model = in_windows(connected(make(family), "FFAM"), 4)
    (guided,) = SkipLayerGuidanceDiT.execute(model, 1e-9, 0.0, 1.0, "0", "").args
    torch.testing.assert_close(sample(guided, clip_of(8)), sample(model, clip_of(8)))


def test_a_cache_may_skip_calls(flux) -> None:
    (cached,) = EasyCacheNode.execute(connected(flux, "full"), 10.0, 0.0, 1.0, False).args
    asked = []
    with flux.model.diffusion_model.img_in.register_forward_hook(lambda *_: asked.append(1)):
        assert sample(cached, clip_of(), sigmas=(0.9, 0.8, 0.7, 0.6, 0.5)).isfinite().all()
    assert 0 < len(asked) < 4


def test_what_a_family_does_not_take_is_refused_by_name(flux) -> None:
    z_image = make("Z-Image")
    with pytest.raises(ValueError, match="FFAM does not apply to Z-Image and Lumina 2. .* Set spatial to"):
        connected(z_image, "FFAM")
    z_image.model.diffusion_model = torch.nn.Identity()
    with pytest.raises(ValueError, match="Identity is not one of ComfyUI's networks"):
        connected(z_image, "full")
    masked = [[EDIT[0][0], {**EDIT[0][1], "attention_mask": torch.ones(1, TOKENS + PICTURE, TOKENS + PICTURE),
                            "attention_mask_img_shape": GRID}]]  # fmt: skip
    patched = connected(flux, "full")
    with pytest.raises(ValueError, match="The conditioning has an attention mask .* set attention_strength"):
        sample(patched, clip_of(), positive=masked)
    merged = patched.clone()
    merged.set_model_patch(lambda q, k, v, **_: {"k": k[..., 1:, :], "v": v[..., 1:, :], "pe": None}, "attn1_patch")
    with pytest.raises(ValueError, match="17 tokens with 16 keys .* adds or merges tokens"):
        sample(merged, clip_of())
    skipped = patched.clone()
    for kind in ("double", "single"):
        skipped.set_model_patch_replace(lambda args, _: args, "dit", f"{kind}_block", 0)
    with pytest.raises(ValueError, match="no attention of text and picture"):
        sample(skipped, clip_of())


def test_videos_padded_prompts_and_other_inputs_of_qwen_image_are_refused() -> None:
    """Its text's mask hides what pads the shorter of two prompts; ComfyUI counts the channels of four positions."""
    model = make("Qwen-Image")
    patched = connected(model, "full")
    padded = torch.tensor([[1, 1, 1, 1, 0]])
    with pytest.raises(ValueError, match="The conditioning has an attention mask .* prompts of different lengths"):
        sample(patched, clip_of(), positive=[[EDIT[0][0], {**EDIT[0][1], "attention_mask": padded}]])
    with pytest.raises(ValueError, match=r"shape \(1, 16, 4, 8, 6\): a video, .* Rebatch Images with batch_size 1"):
        sample(patched, {"samples": clip_of()["samples"].movedim(0, 1)[None]}, cfg=1.0)
    model.model.model_config.unet_config["in_channels"] += 1
    with pytest.raises(ValueError, match="model takes 17 input channels"):
        inflate(model)


@pytest.mark.parametrize("name", ["Flux", "Qwen-Image"])
def test_references_attend_within_their_frame(name: str) -> None:
    """As text does: 6 tokens of one lie after the picture."""
    asked, own, seen = [], [], []

    def note(q, k, v, **_: Any) -> dict:
        own.append(v[..., TOKENS : TOKENS + PICTURE, :])
        return {}

    def watch(kernel, q, k, v, *given: Any, **named: Any) -> Tensor:
        asked.append((q.shape[-2], k.shape[-2]))
        seen.append(v[..., FRAMES * TOKENS : FRAMES * (TOKENS + PICTURE), :])
        return kernel(q, k, v, *given, **named)

    model = connected(make(name), "full")
    picture = as_encoded(model, {"samples": draw(1, 16, 4, 6, seed=8)})["samples"]
    references = [[EDIT[0][0], {**EDIT[0][1], "reference_latents": [picture]}]]
    model.set_model_patch(note, "attn1_patch")
    sample(with_kernel(model, watch), clip_of(), cfg=1.0, positive=references)
    one = TOKENS + PICTURE + 6
    assert asked == 2 * [*FRAMES * [(PICTURE, FRAMES * one)], (TOKENS + 6, one)]
    assert all(seen[i].equal(torch.cat([*own[0]], dim=1)[None]) for i in range(FRAMES))


@pytest.mark.parametrize("name", ["Flux", "Qwen-Image"])
def test_references_that_frames_would_not_have_are_refused(name: str) -> None:
    model = make(name)
    pictures = as_encoded(model, {"samples": draw(FRAMES, 16, 4, 6, seed=8)})["samples"]

    def by(references: Tensor, windows: int = FRAMES) -> Tensor:
        positive = [[EDIT[0][0], {**EDIT[0][1], "reference_latents": [references]}]]
        return sample(in_windows(model, windows), clip_of(), cfg=1.0, positive=positive)

    torch.testing.assert_close(by(pictures)[2], by(pictures[2:3], 3)[2])
    for given, said in {
        (pictures[:3], FRAMES): "has 3 pictures and the clip 4 frames",
        (pictures, 3): "without context windows, one for each",
        (pictures.reshape(FRAMES, 16, 1, 4, 6).transpose(0, 2), FRAMES): r"shape \(1, 16, 4, 4, 6\), a video or",
    }.items():
        with pytest.raises(ValueError, match=f"A reference latent .*{said}"):
            by(*given)
