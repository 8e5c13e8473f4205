"""One-shot tuning in the host: what it learns, what it leaves, what it refuses."""

import gc
import re
import weakref

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch

from consistent_video.modules.attention.temporal import spectral_normalised
from consistent_video.modules.host import files, learned, progress
from consistent_video.modules.host.apply import apply_tune
from consistent_video.modules.host.patch import attach, clip_settings, inflate, transformer_blocks
from consistent_video.modules.host.training import TuneInputs, tune_model
from consistent_video.modules.presets import EI2, PER_FRAME, PRESETS, TUNE_A_VIDEO_PRESET, method
from consistent_video.modules.tuning import TuneSettings
from consistent_video.modules.weights import Tune, load_tune, save_tune

from .small import EMPTY, SOURCE, Small, SmallV, clip_latent, random_model, sample

SETTINGS = TuneSettings(steps=4, learning_rate=1e-3, seed=11)


def patched(name: str, model=None):
    return attach(inflate(model or random_model()), *method(name, 2, "area"))


def run(model, settings: TuneSettings = SETTINGS, keep=None, **changes) -> Tune:
    """Tune as the node does: the host executes nodes in inference mode."""
    inputs = TuneInputs(**{"positive": SOURCE, "latent": clip_latent(), **changes})
    with torch.inference_mode():
        return tune_model(model, inputs, settings, "1", keep)


@pytest.fixture(scope="module")
def latent():
    return clip_latent()


@pytest.fixture(scope="module")
def tune() -> Tune:
    return run(patched(EI2))


def test_same_seed_same_tune_and_torchs_generator_stays(tune) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = run(patched(EI2))
    assert torch.equal(torch.get_rng_state(), before)
    assert again.info == tune.info
    assert all(torch.equal(again.tensors[key], value) for key, value in tune.tensors.items())


def test_another_seed_is_another_tune(tune) -> None:
    other = run(patched(EI2), TuneSettings(4, 1e-3, 12))
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
    for weight in weights:
        torch.testing.assert_close(weight, spectral_normalised(weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Small, SmallV])
def test_the_loss_falls(kind) -> None:
    loss = run(patched(TUNE_A_VIDEO_PRESET, random_model(kind)), TuneSettings(60, 2e-3)).info["loss"]
    assert sum(loss[-15:]) < sum(loss[:15])


@pytest.mark.parametrize("name", PRESETS)
def test_the_model_stays_and_the_tuned_one_differs(latent, name) -> None:
    base = random_model()
    clip_model = patched(name, base)
    before, patched_before = sample(base, latent), sample(clip_model, latent)
    tuned = apply_tune(base, run(clip_model))
    assert not torch.allclose(sample(tuned, latent), patched_before, rtol=1e-3)
    assert torch.equal(sample(base, latent), before)
    assert torch.equal(sample(clip_model, latent), patched_before)


def test_the_tuned_model_has_what_was_learned(latent, tune) -> None:
    tuned = apply_tune(random_model(), tune)
    learned = clip_settings(tuned).temporal.tensors()
    assert learned and all(torch.equal(value.cpu(), tune.tensors[key]) for key, value in learned.items())
    weights = {key: value for key, (value, *_) in tuned.get_key_patches("diffusion_model").items()}
    for key in (key for key in tune.tensors if key.endswith(".diff")):
        ((_, (_, (added,)), *_),) = tuned.patches[f"{key.removesuffix('.diff')}.weight"]
        assert torch.equal(added, tune.tensors[key])
    assert weights
    untrained = Tune({**tune.tensors, **patched(EI2).get_additional_models()[0].model.tensors()}, tune.info)
    assert not torch.equal(sample(tuned, latent), sample(apply_tune(random_model(), untrained), latent))


def test_a_tune_keeps_the_strengths_it_was_made_with() -> None:
    weak = attach(inflate(random_model()), *method(EI2, 2, "area"), spatial_strength=0.5, temporal_strength=0.25)
    tuned = clip_settings(apply_tune(random_model(), run(weak), temporal_strength=0.5))
    assert (tuned.spatial_strength, tuned.temporal_strength) == (0.5, 0.125)


def test_tuning_goes_on_from_a_tuned_model(tune) -> None:
    base = random_model()
    again = run(apply_tune(base, tune))
    assert again.info["loss"][0] != tune.info["loss"][0]
    key = next(key for key in tune.tensors if key.endswith("to_q.weight"))
    near = (again.tensors[key] - tune.tensors[key]).norm()
    assert near < (again.tensors[key] - patched(EI2).get_additional_models()[0].model.tensors()[key]).norm()


def test_progress_shows_loss_and_time_left(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(progress, "show_text", lambda text, node_id: shown.append((text, node_id)))
    loss = run(patched(EI2)).info["loss"]
    assert [node_id for _, node_id in shown] == ["1"] * 4
    assert re.fullmatch(rf"step 2 of 4, loss {loss[1]:.4f}, \d+ s left, peak \d+\.\d GiB", shown[1][0])


def test_strengths_of_a_tune(latent, tune) -> None:
    base = random_model()
    whole, none = apply_tune(base, tune), apply_tune(base, tune, 0.0, 0.0)
    untrained = attach(inflate(base), *method(EI2, 2, "area"), temporal_strength=0.0)
    assert torch.equal(sample(none, latent), sample(untrained, latent))
    half = apply_tune(base, tune, 0.5, 0.5)
    distance = [(sample(m, latent) - sample(none, latent)).norm() for m in (half, whole)]
    assert 0 < distance[0] < distance[1]


def test_an_interrupt_leaves_the_host_as_it_was(latent, monkeypatch) -> None:
    base = random_model()
    clip_model = patched(EI2, base)
    before = sample(base, latent)
    steps = []
    copies = watch_copies(monkeypatch)

    def interrupt() -> None:
        steps.append(None)
        if len(steps) == 2:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(progress, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(clip_model)
    assert len(steps) == 2
    assert_gone(copies)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert torch.equal(sample(base, latent), before)
    monkeypatch.undo()
    assert len(run(clip_model).tensors) > 0


def watch_copies(monkeypatch) -> list:
    """Note every private copy's model, weakly."""
    copies, query_projections = [], learned.query_projections

    def noted(unet):
        copies.append(weakref.ref(unet))
        return query_projections(unet)

    monkeypatch.setattr(learned, "query_projections", noted)
    return copies


def assert_gone(copies: list) -> None:
    """Check that the private copies are unloaded and freed."""
    gc.collect()
    assert copies and not any(copy() for copy in copies)
    assert not comfy.model_management.current_loaded_models


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


def lora_of(base) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(10)
    lora = {}
    for block in transformer_blocks(base.model.diffusion_model):
        key = f"diffusion_model.{block.path}.attn2.to_q"
        lora[f"{key}.lora_up.weight"] = torch.randn(block.dim, 2, generator=generator)
        lora[f"{key}.lora_down.weight"] = torch.randn(2, block.dim, generator=generator)
    return lora


def test_a_tune_adds_to_a_lora_on_the_same_weights(latent, tune) -> None:
    base = random_model()
    lora = lora_of(base)
    first = apply_tune(comfy.sd.load_lora_for_models(base, None, lora, 0.5, 0.0)[0], tune)
    last = comfy.sd.load_lora_for_models(apply_tune(base, tune), None, lora, 0.5, 0.0)[0]
    torch.testing.assert_close(sample(first, latent), sample(last, latent), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(sample(first, latent), sample(apply_tune(base, tune), latent), rtol=1e-3)


def test_tuning_starts_from_the_model_with_its_lora() -> None:
    base = random_model()
    with_lora = comfy.sd.load_lora_for_models(base, None, lora_of(base), 0.5, 0.0)[0]
    assert run(patched(EI2, with_lora)).info["loss"][0] != run(patched(EI2, base)).info["loss"][0]


def test_the_attention_part_loads_as_a_lora_file(latent, tune, tmp_path) -> None:
    save_tune(tune, tmp_path / "tune.safetensors")
    base = random_model()
    weights = comfy.utils.load_torch_file(str(tmp_path / "tune.safetensors"), safe_load=True)
    clip_model = attach(inflate(base), *method(EI2, 2, "area"), temporal_strength=0.0)
    by_lora = comfy.sd.load_lora_for_models(clip_model, None, weights, 1.0, 0.0)[0]
    assert torch.equal(sample(by_lora, latent), sample(apply_tune(base, tune, 1.0, 0.0), latent))


def test_a_saved_tune_is_the_same_tune(latent, tune, tmp_path) -> None:
    save_tune(tune, tmp_path / "tune.safetensors")
    loaded = apply_tune(random_model(), load_tune(tmp_path / "tune.safetensors"))
    assert torch.equal(sample(loaded, latent), sample(apply_tune(random_model(), tune), latent))


def test_a_tune_of_another_structure_is_refused(tune) -> None:
    key = next(iter(tune.tensors))
    wrong = Tune({**tune.tensors, key: torch.zeros(3, 5)}, tune.info)
    with pytest.raises(ValueError, match=rf"{key} is \(3, 5\) in the tune and \(32, 32\) in the model"):
        apply_tune(random_model(), wrong)
    more = Tune({**tune.tensors, "diffusion_model.extra.diff": torch.zeros(2)}, tune.info)
    with pytest.raises(ValueError, match=r"extra.diff is \(2,\) in the tune and absent in the model"):
        apply_tune(random_model(), more)


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(ValueError, match="Inflate UNet"):
        run(random_model())
    lonely = random_model()
    lonely.cached_patcher_init = None
    with pytest.raises(ValueError, match="cannot load it a second time"):
        run(patched(EI2, lonely))
    with pytest.raises(ValueError, match="2 conditionings"):
        run(patched(EI2), positive=SOURCE + EMPTY)
    with pytest.raises(ValueError, match="positive carries control, start_percent"):
        run(patched(EI2), positive=[[SOURCE[0][0], {"control": None, "start_percent": 0.2}]])
    with pytest.raises(FloatingPointError, match="learning_rate = 1e-03|learning_rate = 0.001"):
        run(patched(EI2), latent={"samples": clip_latent()["samples"] * float("inf")})


def test_one_frame_can_be_tuned() -> None:
    assert run(patched(EI2), latent=clip_latent(1)).info["frames"] == 1


def test_per_frame_preset_trains_the_query_projections_alone() -> None:
    tune = run(patched(PER_FRAME))
    assert tune.info["temporal"] is None and all(key.endswith(".diff") for key in tune.tensors)


def test_half_precision_models_are_tuned_in_float32(latent) -> None:
    base = random_model(dtype=torch.float16) if torch.cuda.is_available() else random_model(dtype=torch.bfloat16)
    tune = run(patched(EI2, base))
    assert all(value.dtype == torch.float32 for value in tune.tensors.values())
    assert all(torch.isfinite(torch.tensor(tune.info["loss"])))
    assert sample(apply_tune(base, tune), latent).isfinite().all()


def test_a_patch_does_not_throw_a_tune_away(tune) -> None:
    with pytest.raises(ValueError, match="before One-Shot Tune"):
        attach(apply_tune(random_model(), tune), *method(EI2, 2, "area"))


@pytest.mark.parametrize("part", [{"kind": "later"}, {"kind": "fine-coarse", "later": 1}])
def test_a_tune_of_a_newer_version_is_refused(tune, part) -> None:
    with pytest.raises(ValueError, match="newer version of Consistent Video"):
        apply_tune(random_model(), Tune(tune.tensors, {**tune.info, "spatial": part}))


def test_no_tune_is_overwritten(tune, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files.folder_paths, "get_folder_paths", lambda _: [str(tmp_path)])
    paths = [files.write_tune(tune, prefix) for prefix in ("swan", "swan", "clips/swan", "clips/swan", "a b")]
    assert len(set(paths)) == 5 and all(path.is_file() for path in paths)
    for prefix in ("", " ", "clips/", "clips\\", "./", "."):
        with pytest.raises(ValueError, match="names no file"):
            files.write_tune(tune, prefix)
    with pytest.raises(ValueError, match="leads outside"):
        files.write_tune(tune, "../swan")
