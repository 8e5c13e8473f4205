"""One-shot tuning in the host: what it learns, what it leaves, what it refuses."""

import gc

import comfy.sd
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_tomesd import TomePatchModel

from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, PRESETS, TUNE_A_VIDEO_PRESET
from consistent_video.modules.clip_model.temporal import spectral_normalised
from consistent_video.modules.tuning.host import progress
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.settings import TuneSettings

from ..small import EMPTY, SOURCE, Small, SmallV, clip_latent, family_model, prompt, random_model, sample
from .tuned import SETTINGS, assert_gone, distance, lora_of, patched, run, watch_copies


def test_same_seed_same_tune_and_torchs_generator_stays(tune) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = run(patched(EI2))
    assert torch.equal(torch.get_rng_state(), before)
    assert again.info == tune.info
    assert all(torch.equal(again.tensors[key], value) for key, value in tune.tensors.items())


def test_another_seed_is_another_tune(tune) -> None:
    other = run(patched(EI2), SETTINGS.changed(seed=12))
    assert any(not torch.equal(other.tensors[key], value) for key, value in tune.tensors.items())


def test_exactly_the_query_projections_and_temporal_modules_are_trained(tune) -> None:
    start = {**patched(EI2).get_additional_models()[0].model.tensors()}
    blocks = transformer_blocks(random_model().model.diffusion_model)
    queries = {f"diffusion_model.{b.path}.{a}.to_q.diff" for b in blocks for a in ("attn1", "attn2")}
    assert set(tune.tensors) == queries | set(start)
    assert all(tune.tensors[key].abs().max() > 0 for key in queries)
    assert all(not torch.equal(tune.tensors[key], value) for key, value in start.items())


def test_spectral_norm_is_baked_in(tune) -> None:
    weights = [v for k, v in tune.tensors.items() if k.endswith(("attn_temp.to_v.weight", "attn_temp.to_out.weight"))]
    assert weights
    for weight in weights:
        torch.testing.assert_close(weight, spectral_normalised(weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Small, SmallV])
def test_the_loss_falls(kind) -> None:
    settings = TuneSettings(30).changed(learning_rate=4e-3)
    loss = run(patched(TUNE_A_VIDEO_PRESET, random_model(kind)), settings).info["loss"]
    assert sum(loss[-10:]) < sum(loss[:10])


@pytest.mark.parametrize("name", PRESETS)
def test_the_model_stays_and_the_tuned_one_differs(latent, name) -> None:
    base = random_model()
    clip_model = patched(name, base)
    before, patched_before = sample(base, latent), sample(clip_model, latent)
    tuned = apply_tune(base, run(clip_model))
    assert not torch.allclose(sample(tuned, latent), patched_before, rtol=1e-3)
    assert torch.equal(sample(base, latent), before)
    assert torch.equal(sample(clip_model, latent), patched_before)


def test_tuning_goes_on_from_a_tuned_model(tune) -> None:
    base = random_model()
    again = run(apply_tune(base, tune))
    assert again.info["loss"][0] != tune.info["loss"][0]
    key = next(key for key in tune.tensors if key.endswith("to_q.weight"))
    near = (again.tensors[key] - tune.tensors[key]).norm()
    assert near < (again.tensors[key] - patched(EI2).get_additional_models()[0].model.tensors()[key]).norm()


def test_the_private_copy_is_unloaded_and_freed(monkeypatch) -> None:
    copies = watch_copies(monkeypatch)
    run(patched(EI2))
    assert_gone(copies)


@pytest.mark.parametrize("warn_only", [False, True])
def test_torchs_switches_are_put_back(monkeypatch, warn_only) -> None:
    monkeypatch.setattr(progress, "throw_exception_if_processing_interrupted", lambda: 1 / 0)
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        with pytest.raises(ZeroDivisionError):
            run(patched(EI2))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.use_deterministic_algorithms(False)


def test_training_does_not_use_the_hosts_attention_kernel(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("the host's kernel need not have a backward")

    clip_model = patched(EI2)
    options = clip_model.model_options["transformer_options"]
    options["optimized_attention_override"] = refuse
    assert run(clip_model).info["loss"]


def test_tuning_starts_from_the_model_with_its_lora() -> None:
    base = random_model()
    with_lora = comfy.sd.load_lora_for_models(base, None, lora_of(base), 0.5, 0.0)[0]
    assert run(patched(EI2, with_lora)).info["loss"][0] != run(patched(EI2, base)).info["loss"][0]


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(ValueError, match="Inflate UNet"):
        run(random_model())
    lonely = random_model()
    lonely.cached_patcher_init = None
    with pytest.raises(ValueError, match="cannot load it a second time"):
        run(patched(EI2, lonely))
    with pytest.raises(ValueError, match="2 conditionings"):
        run(patched(EI2), positive=SOURCE + EMPTY)
    with pytest.raises(ValueError, match="positive carries mask, start_percent"):
        run(patched(EI2), positive=[[SOURCE[0][0], {"mask": None, "start_percent": 0.2}]])
    with pytest.raises(ValueError, match="latent holds values that are not finite"):
        run(patched(EI2), latent={"samples": clip_latent()["samples"] * float("inf")})


def test_one_frame_can_be_tuned(caplog) -> None:
    assert run(patched(EI2), latent=clip_latent(1)).info["frames"] == 1
    assert "1 frame: its temporal modules have nothing to connect" in caplog.text
    caplog.clear()
    run(patched(PER_FRAME), latent=clip_latent(1))
    assert "temporal" not in caplog.text


def test_per_frame_preset_trains_the_query_projections_alone() -> None:
    tune = run(patched(PER_FRAME))
    assert tune.info["temporal"] is None and all(key.endswith(".diff") for key in tune.tensors)


def test_nothing_of_a_tuning_is_held_afterwards(monkeypatch) -> None:
    copies = watch_copies(monkeypatch)
    gc.disable()
    try:
        run(patched(EI2))
        assert copies and not any(copy() for copy in copies)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", [EI2, PER_FRAME])
def test_rearranged_tokens_are_refused(name: str) -> None:
    clip_model = patched(name, TomePatchModel.execute(random_model(), ratio=0.3)[0])
    with pytest.raises(ValueError, match="HyperTile, Token Merging"):
        run(clip_model)


def test_coarse_weights_are_refused() -> None:
    base = random_model()
    weight = base.model.diffusion_model.input_blocks[1][0].in_layers[2].weight
    weight.data = weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"quantised weights \(float8_e4m3fn\).*fp16, bf16 or fp32"):
        run(patched(EI2, base))
    base = random_model()
    linear = base.model.diffusion_model.time_embed[0]
    quantised = QuantizedTensor.from_float(linear.weight.detach(), "TensorCoreFP8Layout")
    linear.weight = torch.nn.Parameter(quantised, requires_grad=False)
    with pytest.raises(ValueError, match="model has quantised weights"):
        run(patched(EI2, base))


@pytest.mark.parametrize(("family", "name"), [("SD2.x", TUNE_A_VIDEO_PRESET), ("SDXL", EI2)])
def test_other_families_are_tuned(family: str, name: str) -> None:
    base, settings = family_model(family), SETTINGS.changed(steps=2, gradient_checkpointing=name == EI2)
    width = {"SD2.x": 40, "SDXL": 56}[family]
    tune = run(patched(name, base), settings, positive=prompt(3, width))
    assert tune.info["prediction"] == {"SD2.x": "v", "SDXL": "eps"}[family]
    assert all(value.isfinite().all() for value in tune.tensors.values())
    tuned, untuned = (
        sample(model, clip_latent(), 3.0, prompt(5, width), prompt(4, width), (2.0, 1.0))
        for model in (apply_tune(base, tune), patched(name, base))
    )
    assert tuned.isfinite().all() and distance(tuned, untuned) > 1e-3
