"""Clip UNets in the host: the base model bit for bit where they should be, frames connected where they should be."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.attention import GEGLU, FeedForward, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_tomesd import TomePatchModel
from diffusers import DDIMScheduler

from consistent_video.modules.clip_model import chunks
from consistent_video.modules.clip_model.attention import scaled_dot_product
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.host.calls import is_far
from consistent_video.modules.clip_model.host.settings import KEY, clip_settings
from consistent_video.modules.clip_model.methods import EI2, FULL, PER_FRAME, PRESETS, TUNE_A_VIDEO_PRESET, method

from .small import EDIT, EMPTY, FRAMES, HEIGHT, UNET, WIDTH, clip_latent, prompt, random_model, sample

CROSS_FRAME = (EI2, TUNE_A_VIDEO_PRESET, FULL)


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def latent():
    return clip_latent()


@pytest.fixture(scope="module")
def base(model, latent):
    return sample(model, latent)


def patched(model, name: str, **given) -> ModelPatcher:
    return attach(inflate(model), *method(name, 2, "area"), **given)


def get_sigma(t: int) -> float:
    """Return the noise level of a timestep, by diffusers' schedule of Stable Diffusion."""
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alpha_bar = schedule.alphas_cumprod[t].double().item()
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


def rearrange_by_hypertile(model: ModelPatcher) -> ModelPatcher:
    return HyperTile.execute(model, tile_size=32, swap_size=2, max_depth=0, scale_depth=False)[0]


def rearrange_by_token_merging(model: ModelPatcher) -> ModelPatcher:
    return TomePatchModel.execute(model, ratio=0.3)[0]


def change_first_frame(latent: dict) -> dict:
    samples = latent["samples"].clone()
    samples[0] += 5
    return {"samples": samples}


@pytest.mark.parametrize("num_frames", [0, 1, FRAMES])
def test_inflation_alone_changes_nothing(model, latent, base, num_frames) -> None:
    assert torch.equal(sample(inflate(model, num_frames), latent), base)


def test_per_frame_preset_changes_nothing(model, latent, base) -> None:
    assert torch.equal(sample(patched(model, PER_FRAME), latent), base)


@pytest.mark.parametrize("name", CROSS_FRAME)
def test_strength_zero_changes_nothing(model, latent, base, name) -> None:
    assert torch.equal(sample(patched(model, name, spatial_strength=0.0, temporal_strength=0.0), latent), base)


@pytest.mark.parametrize("name", CROSS_FRAME)
@pytest.mark.parametrize("off", ["spatial_strength", "temporal_strength"])
def test_each_part_connects_the_frames(model, latent, name, off) -> None:
    connected = patched(model, name, **{off: 0.0})
    apart = (sample(connected, change_first_frame(latent)) - sample(connected, latent)).abs().amax(dim=(1, 2, 3))
    if name == TUNE_A_VIDEO_PRESET and off == "spatial_strength":
        assert (apart[1:] == 0).all()  # an untrained zero-initialised branch adds its bias alone
    else:
        assert (apart[1:] > 0).all()


def test_without_connection_frames_are_apart(model, latent) -> None:
    alone = inflate(model)
    changed = sample(alone, change_first_frame(latent))
    torch.testing.assert_close(changed[1:], sample(alone, latent)[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CROSS_FRAME)
def test_the_input_model_is_never_altered(model, latent, base, name) -> None:
    sample(patched(model, name), latent)
    assert KEY not in model.model_options["transformer_options"]
    assert torch.equal(sample(model, latent), base)


def test_a_second_patch_takes_the_place_of_the_first(model, latent, base) -> None:
    first = patched(model, EI2)
    second = attach(first, *method(TUNE_A_VIDEO_PRESET, 2, "area"))
    assert torch.equal(sample(second, latent), sample(patched(model, TUNE_A_VIDEO_PRESET), latent))
    assert torch.equal(sample(attach(first, None, None), latent), base)


def test_half_strength_lies_between(model, latent, base) -> None:
    whole = sample(patched(model, TUNE_A_VIDEO_PRESET, temporal_strength=0.0), latent)
    half = sample(patched(model, TUNE_A_VIDEO_PRESET, temporal_strength=0.0, spatial_strength=0.5), latent)
    assert 0 < (half - base).norm() < (whole - base).norm()


def test_half_temporal_strength_lies_between(model, latent, base) -> None:
    whole = sample(patched(model, TUNE_A_VIDEO_PRESET, spatial_strength=0.0), latent)
    half = sample(patched(model, TUNE_A_VIDEO_PRESET, spatial_strength=0.0, temporal_strength=0.5), latent)
    assert 0 < (half - base).norm() < (whole - base).norm()


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
    for seen in sizes.values():
        seen.clear()
    sample(inflate(model), latent)
    assert all(max(seen) > 1 for seen in sizes.values()), "what is not patched is the host's own"


def test_layers_whose_weights_are_fetched_are_known() -> None:
    x = torch.zeros(1)
    assert not is_far(torch.nn.Linear(2, 3), x) and is_far(torch.nn.Linear(2, 3, device="meta"), x)


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


def test_clips_in_one_batch_do_not_see_each_other(model) -> None:
    first, second = clip_latent(3, seed=7)["samples"], clip_latent(3, seed=8)["samples"]
    clip_model = attach(inflate(model, 3), *method(EI2, 2, "area"))
    both = sample(clip_model, {"samples": torch.cat([first, second])})
    other = sample(clip_model, {"samples": torch.cat([first, first])})
    torch.testing.assert_close(both[:3], other[:3], rtol=1e-4, atol=1e-4)


def test_joined_and_split_conditionings_agree(model, latent, monkeypatch) -> None:
    clip_model = patched(model, EI2)
    calls = []
    apply_model = type(model.model).apply_model

    def counted(self, x, *args, **kwargs):
        calls.append(len(x))
        return apply_model(self, x, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "apply_model", counted)
    joined = sample(clip_model, latent)
    assert set(calls) == {2 * FRAMES}
    calls.clear()
    monkeypatch.setattr(type(model.model), "memory_required", lambda *args, **kwargs: float("inf"))
    split = sample(clip_model, latent)
    assert set(calls) == {FRAMES}
    torch.testing.assert_close(split, joined, rtol=1e-4, atol=1e-4)


def test_prompts_of_unequal_length_work(model, latent) -> None:
    longer = [[torch.cat([EDIT[0][0], prompt(9)[0][0], EMPTY[0][0]], dim=1)[:, :16], {}]]
    assert sample(patched(model, EI2), latent, positive=longer).isfinite().all()


def test_a_batch_that_is_no_whole_number_of_clips_is_refused(model, latent) -> None:
    with pytest.raises(ValueError, match=rf"{FRAMES} frames.*num_frames = 3"):
        sample(inflate(model, 3), latent)


def test_an_image_model_is_refused_by_the_patch(model) -> None:
    with pytest.raises(ValueError, match="Inflate UNet"):
        attach(model, *method(EI2, 4, "area"))


def test_models_of_other_kinds_are_refused_by_name() -> None:
    flux = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(2, 3)))
    with pytest.raises(ValueError, match="Linear.*Stable Diffusion 1.x"):
        inflate(flux)
    no_blocks = {"transformer_depth": [0, 0], "transformer_depth_output": [0] * 4, "transformer_depth_middle": -1}
    plain = comfy.supported_models.SD15({**UNET, **no_blocks})
    plain.set_inference_dtype(torch.float32, None)
    unet = SimpleNamespace(model=plain.get_model({}, ""))
    with pytest.raises(ValueError, match="UNetModel.*SpatialTransformer"):
        inflate(unet)
    inpainting = comfy.supported_models.SD15({**UNET, "in_channels": 9})
    inpainting.set_inference_dtype(torch.float32, None)
    with pytest.raises(ValueError, match="9 input channels"):
        inflate(SimpleNamespace(model=inpainting.get_model({}, "")))


def test_tokens_rearranged_by_another_patch_are_refused(model, latent) -> None:
    clip_model = patched(model, EI2)
    clip_model.set_model_attn1_patch(lambda n, context, value, _options: (n[:, ::2], n[:, ::2], n[:, ::2]))
    with pytest.raises(ValueError, match="HyperTile"):
        sample(clip_model, latent)


@pytest.mark.parametrize("rearrange", [rearrange_by_hypertile, rearrange_by_token_merging])
def test_the_hosts_own_rearranging_nodes_are_refused_wherever_they_are_connected(
    model, latent, base, rearrange: Callable[[ModelPatcher], ModelPatcher]
) -> None:
    torch.manual_seed(0)  # both draw from the global generator
    assert not torch.equal(sample(rearrange(model), latent), base)
    for clip_model in (rearrange(patched(model, EI2)), patched(rearrange(model), EI2)):
        with pytest.raises(ValueError, match=rf"of {HEIGHT} x {WIDTH}.*HyperTile, Token Merging"):
            sample(clip_model, latent)


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


def test_lora_chains_before_and_after(model, latent) -> None:
    blocks = transformer_blocks(model.model.diffusion_model)
    generator = torch.Generator().manual_seed(10)
    lora = {}
    for block in blocks:
        key = f"diffusion_model.{block.path}.attn1.to_v"
        lora[f"{key}.lora_up.weight"] = torch.randn(block.dim, 2, generator=generator)
        lora[f"{key}.lora_down.weight"] = torch.randn(2, block.dim, generator=generator)
    before = patched(comfy.sd.load_lora_for_models(model, None, lora, 0.5, 0.0)[0], EI2)
    after = comfy.sd.load_lora_for_models(patched(model, EI2), None, lora, 0.5, 0.0)[0]
    out = sample(before, latent)
    assert torch.equal(out, sample(after, latent))
    assert not torch.equal(out, sample(patched(model, EI2), latent))


@pytest.mark.parametrize("name", PRESETS)
def test_one_frame_works(model, name) -> None:
    assert sample(patched(model, name), clip_latent(1)).isfinite().all()


def test_training_kernel_equals_the_hosts(model, latent) -> None:
    clip_model = patched(model, EI2)
    options = clip_model.model_options["transformer_options"]
    expected = sample(clip_model, latent)
    options["optimized_attention_override"] = lambda _, q, k, v, heads, **kwargs: scaled_dot_product(q, k, v, heads)
    torch.testing.assert_close(sample(clip_model, latent), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CROSS_FRAME)
@pytest.mark.parametrize(
    ("t", "factor", "acts"),
    [(999, 1, False), (666, 1.001, False), (666, 0.999, True), (333, 1.001, True), (333, 0.999, False), (0, 1, False)],
)
def test_outside_of_its_part_of_sampling_the_base_model_is_alone(model, latent, name, t, factor, acts) -> None:
    """Percents are of the timesteps 999 to 0, from noise to the clip."""
    sigmas = (factor * get_sigma(t), 0.5 * get_sigma(t))
    base, whole = (sample(m, latent, sigmas=sigmas) for m in (model, patched(model, name)))
    partly = sample(patched(model, name, percents=(1 / 3, 2 / 3)), latent, sigmas=sigmas)
    assert not torch.equal(base, whole)
    assert torch.equal(partly, whole if acts else base)


@pytest.mark.parametrize(("percents", "t"), [((0.0, 0.5), 999), ((0.5, 1.0), 0)])
def test_a_part_of_sampling_reaches_to_its_ends(model, latent, percents, t) -> None:
    for factor in (0.9, 1.1):  # also beyond the model's own noise levels
        sigmas = (factor * get_sigma(t), 0.5 * get_sigma(t))
        partly = sample(patched(model, EI2, percents=percents), latent, sigmas=sigmas)
        assert torch.equal(partly, sample(patched(model, EI2), latent, sigmas=sigmas))


def test_it_begins_and_ends_on_the_way(model, latent) -> None:
    way, turn = (9.0, 3.0, 2.0, 0.5, 0.0), 3
    base, whole = model, patched(model, EI2)
    for percents, first in (((0.0, 0.5), whole), ((0.5, 1.0), base)):  # sigma at 0.5 is 1.6
        partly = patched(model, EI2, percents=percents)
        early = [sample(m, latent, sigmas=way[: turn + 1]) for m in (partly, first)]
        assert torch.equal(*early)
        late = [sample(m, latent, sigmas=way) for m in (partly, base, whole)]
        assert not torch.equal(late[0], late[1]) and not torch.equal(late[0], late[2])


@pytest.mark.parametrize("percents", [(0.6, 0.3), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_an_empty_part_of_sampling_is_refused(model, percents: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"start_percent {percents[0]:g} .* end_percent {percents[1]:g}"):
        patched(model, EI2, percents=percents)


@pytest.mark.parametrize(("name", "keys"), [(EI2, 12 * 8 + 2 * 4 * 6 * 4), (PER_FRAME, 0), (FULL, 0)])
def test_the_host_reckons_with_what_is_put_side_by_side(name: str, keys: int, monkeypatch) -> None:
    base, reckoned = random_model(), []
    load = comfy.model_management.load_models_gpu
    monkeypatch.setattr(
        comfy.model_management,
        "load_models_gpu",
        lambda *given, memory_required=0, **more: reckoned.append(memory_required) or load(*given, **more),
    )
    for model in (inflate(base), attach(inflate(base), *method(name, 2))):
        sample(model, clip_latent())
    row = base.model.memory_required([1, 4, 12, 8])
    extra = 4 * 5 * keys * 32 * 4  # keys and values of both sides of the guidance, float32
    assert extra <= reckoned[1] - reckoned[0] < extra + 2 * row
    assert reckoned[0] == 10 * row
