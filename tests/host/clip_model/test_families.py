"""Clip UNets of SD2.x and SDXL: heads of 64 channels, other depths, linear layers about the blocks, pooled text."""

from dataclasses import dataclass, replace

import pytest
import torch
from comfy.model_base import ModelType, SDXLRefiner
from comfy.model_patcher import ModelPatcher

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import EI2, FULL, PER_FRAME, TUNE_A_VIDEO_PRESET, method

from ..small import FAMILIES, FRAMES, clip_latent, family_model, prompt, sample

CROSS_FRAME = (EI2, TUNE_A_VIDEO_PRESET, FULL)
BLOCKS = {"SD2.x": {64: 3, 128: 3, 192: 1}, "SDXL": {128: 1 * 3, 192: 2 * 4}}  # by width: depth times layers


@dataclass(frozen=True)
class Family:
    """A model with prompts of its width."""

    name: str
    model: ModelPatcher
    prompts: tuple[list, list]

    def sample(self, model: ModelPatcher, latent: dict | None = None, sigmas=(2.0, 1.0)) -> torch.Tensor:
        """Sample one step."""
        return sample(model, latent or clip_latent(), 3.0, *self.prompts, sigmas)

    def patched(self, name: str, **given) -> ModelPatcher:
        return attach(inflate(self.model), *method(name, 2), **given)


@pytest.fixture(scope="module", params=BLOCKS)
def family(request) -> Family:
    width = FAMILIES[request.param][1]["context_dim"]
    return Family(request.param, family_model(request.param), (prompt(5, width), prompt(4, width)))


@pytest.fixture(scope="module")
def base(family: Family) -> torch.Tensor:
    return family.sample(family.model)


def test_the_structure_is_the_familys(family: Family) -> None:
    unet, blocks = family.model.model.diffusion_model, transformer_blocks(family.model.model.diffusion_model)
    assert {width: [b.dim for b in blocks].count(width) for width in {b.dim for b in blocks}} == BLOCKS[family.name]
    assert all(block.heads == block.dim // 64 for block in blocks)
    assert isinstance(unet.middle_block[1].proj_in, torch.nn.Linear)
    assert family.model.model.model_type == {"SD2.x": ModelType.V_PREDICTION, "SDXL": ModelType.EPS}[family.name]
    assert hasattr(unet, "label_emb") == (family.name == "SDXL")


@pytest.mark.parametrize("num_frames", [0, 1, FRAMES])
def test_inflation_alone_changes_nothing(family: Family, base, num_frames: int) -> None:
    assert torch.equal(family.sample(inflate(family.model, num_frames)), base)
    assert torch.equal(family.sample(family.patched(PER_FRAME)), base)


def test_sdxl_takes_pooled_text_and_sizes_of_each_frame() -> None:
    """One frame's pooled text changes that frame alone where attention stays within frames; sizes are the clip's."""
    width = FAMILIES["SDXL"][1]["context_dim"]
    sdxl = Family("SDXL", family_model("SDXL"), (prompt(5, width), prompt(4, width)))
    clip_model = sdxl.patched(PER_FRAME)
    (states, extra), *_ = sdxl.prompts[0]
    pooled = extra["pooled_output"].repeat(FRAMES, 1)
    other = pooled.clone()
    other[2] += 1

    def edited(**values) -> torch.Tensor:
        return replace(sdxl, prompts=([[states, values]], sdxl.prompts[1])).sample(clip_model)

    before = edited(pooled_output=pooled)
    assert torch.equal(before, sdxl.sample(clip_model)), "the same for all frames is one for all"
    changed = [not torch.equal(*frames) for frames in zip(before, edited(pooled_output=other), strict=True)]
    assert changed == [n == 2 for n in range(FRAMES)]
    assert not torch.equal(before, edited(pooled_output=pooled, width=512, height=768, crop_w=8))


def test_the_refiner_is_refused() -> None:
    refiner = family_model("SDXL")
    refiner.model.__class__ = SDXLRefiner
    with pytest.raises(ValueError, match="model is SDXL's refiner.* Load the base checkpoint"):
        inflate(refiner)


@pytest.mark.parametrize("name", CROSS_FRAME)
@pytest.mark.parametrize("off", ["spatial_strength", "temporal_strength"])
def test_each_part_connects_the_frames(family: Family, name: str, off: str) -> None:
    clip, other = clip_latent(), clip_latent()
    other["samples"][0] += 5
    connected = family.patched(name, **{off: 0.0})
    changes = family.sample(connected, other) - family.sample(connected, clip)
    apart = changes.abs().amax(dim=(1, 2, 3))
    if name == TUNE_A_VIDEO_PRESET and off == "spatial_strength":
        assert (apart[1:] == 0).all()  # an untrained zero-initialised branch adds its bias alone
    else:
        assert (apart[1:] > 1e-3).all()


@pytest.mark.parametrize("name", CROSS_FRAME)
def test_the_input_model_is_never_altered(family: Family, base, name: str) -> None:
    assert family.sample(family.patched(name)).isfinite().all()
    assert torch.equal(family.sample(family.model), base)


def test_each_block_has_a_temporal_module_of_its_width(family: Family) -> None:
    bank, blocks = clip_settings(family.patched(EI2)).temporal, transformer_blocks(family.model.model.diffusion_model)
    assert bank is not None and len(bank.bank) == len(blocks) == sum(BLOCKS[family.name].values())
    for block in blocks:
        module = bank.at(block.place, block.index)
        assert (module.to_q.in_features, module.heads) == (block.dim, block.dim // 64)


def test_the_pooled_text_reaches_sdxl_alone(family: Family) -> None:
    clip_model = family.patched(EI2)
    before = family.sample(clip_model)
    (states, extra), *_ = family.prompts[0]
    other = [[states, {"pooled_output": extra["pooled_output"] + 1}]]
    after = replace(family, prompts=(other, family.prompts[1])).sample(clip_model)
    assert torch.equal(before, after) == (family.name == "SD2.x")


@pytest.mark.parametrize("name", CROSS_FRAME)
def test_joined_and_split_conditionings_agree(family: Family, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_model, calls = family.patched(name), []
    kind = type(clip_model.model)
    apply_model = kind.apply_model

    def counted(self, x, *args, **kwargs):
        calls.append(len(x))
        return apply_model(self, x, *args, **kwargs)

    monkeypatch.setattr(kind, "apply_model", counted)
    joined = family.sample(clip_model)
    monkeypatch.setattr(kind, "memory_required", lambda *args, **kwargs: float("inf"))
    split = family.sample(clip_model)
    assert calls == [2 * FRAMES, FRAMES, FRAMES]
    torch.testing.assert_close(split, joined, rtol=0, atol=1e-3)


def test_attention_keeps_the_precision_of_the_family(family: Family) -> None:
    """SD2.x in float16 overflows unless its attention computes in float32."""
    for model in (family.model.clone(), *map(family.patched, CROSS_FRAME)):
        seen = set()

        def note(kernel, *args, seen=seen, **kwargs):
            seen.add(kwargs["attn_precision"])
            return kernel(*args, **kwargs)

        model.model_options["transformer_options"]["optimized_attention_override"] = note
        family.sample(model)
        assert seen == {torch.float32 if family.name == "SD2.x" else None}


@pytest.mark.parametrize(("sigmas", "acts"), [((14.0, 9.0), False), ((2.0, 1.5), True), ((0.4, 0.0), False)])
def test_outside_of_its_part_of_sampling_the_base_model_is_alone(family: Family, sigmas, acts: bool) -> None:
    base, whole, partly = (
        family.sample(model, sigmas=sigmas)
        for model in (family.model, family.patched(EI2), family.patched(EI2, percents=(0.3, 0.6)))
    )
    assert not torch.equal(base, whole)
    assert torch.equal(partly, whole if acts else base)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(name, torch.float16 if name == "SD2.x" else torch.bfloat16) for name in FAMILIES],
    indirect=["family"],
)
def test_half_precision_is_near_full_precision(family: Family, dtype: torch.dtype) -> None:
    """The weights are the same but for their rounding, the temporal modules' too."""
    clip = clip_latent(3)
    half = replace(family, model=family_model(family.name, dtype))
    base = half.sample(half.model, clip)
    assert torch.equal(half.sample(inflate(half.model), clip), base)
    for name in CROSS_FRAME:
        clip_model = half.patched(name)
        assert {parameter.dtype for parameter in clip_settings(clip_model).temporal.parameters()} == {dtype}
        ours, exact = half.sample(clip_model, clip), family.sample(family.patched(name), clip)
        assert ours.isfinite().all() and not torch.equal(ours, base)
        assert (ours - exact).std() < 0.03 * exact.std() < (ours - base).std()
