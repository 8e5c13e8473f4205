"""One-shot tuning in the host: what it learns, what it leaves, what it refuses."""

import gc
import json
import math
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.utils
import latent_preview
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.model_base import BaseModel
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_tomesd import TomePatchModel
from PIL.Image import Image

from consistent_video.modules.clip_model import chunks
from consistent_video.modules.clip_model.attention.spatial import attend_across_frames
from consistent_video.modules.clip_model.host import calls
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import EI2, FULL, PER_FRAME, PRESETS, TUNE_A_VIDEO_PRESET, method
from consistent_video.modules.clip_model.temporal import spectral_normalised
from consistent_video.modules.files import host as files
from consistent_video.modules.inversion.host.invert import InversionSettings, invert_clip
from consistent_video.modules.sampling.host import SampleSettings, sample_clip
from consistent_video.modules.tuning.host import learned, preview, private_copy, progress, session
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.host.preview import PreviewSettings
from consistent_video.modules.tuning.host.private_copy import choose_precision
from consistent_video.modules.tuning.host.training import tune_model
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs, latent_mask
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.modules.tuning.tuner import Tuner
from consistent_video.modules.tuning.weights import Tune, load_tune, save_tune
from consistent_video.nodes.tune import OneShotTune
from consistent_video.nodes.tune_files import ApplyTune, LoadTune, SaveTune
from consistent_video.nodes.tuning_options import TuningOptionsNode, TuningPreviewNode

from .small import (
    EDIT,
    EMPTY,
    FRAMES,
    HEIGHT,
    SOURCE,
    TOKENS,
    UNET,
    WIDTH,
    Small,
    SmallV,
    clip_latent,
    family_model,
    lively_weights,
    make_model,
    prompt,
    random_model,
    sample,
)

SETTINGS = TuneSettings(steps=4, learning_rate=1e-3, seed=11)
LONG = replace(SETTINGS, steps=6, snapshots=(1, 2, 4))


def lively_model():
    """Return a model whose every part matters."""
    return family_model("SD1.x")


def patched(name: str, model=None):
    return attach(inflate(model or random_model()), *method(name, 2, "area"))


def run(model, settings: TuneSettings = SETTINGS, keep=None, **changes) -> Tune:
    """Tune as the node does: the host executes nodes in inference mode."""
    inputs = TuneInputs(**{"positive": SOURCE, "latent": clip_latent(), **changes})
    with torch.inference_mode():
        return tune_model(model, inputs, settings, progress.TuningProgress("1"), keep)


@pytest.fixture(scope="module")
def latent():
    return clip_latent()


@pytest.fixture(scope="module")
def tune() -> Tune:
    return run(patched(EI2))


@pytest.fixture(scope="module")
def long() -> Tune:
    """What LONG learns on a model whose every part matters."""
    return run(patched(EI2, lively_model()), LONG)


def assert_same(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype and torch.equal(tensors[key], value), key


def assert_same_tuning(tune: Tune, expected: Tune) -> None:
    """Check that two tunes are the same to the bit, and would go on the same."""
    assert tune.info == expected.info and tune.snapshots.keys() == expected.snapshots.keys()
    assert_same(tune.tensors, expected.tensors)
    assert_same(tune.state, expected.state)
    for step, snapshot in expected.snapshots.items():
        assert_same(tune.snapshots[step], snapshot)


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


def test_the_time_left_is_that_of_the_steps_done_now(monkeypatch) -> None:
    """A resumed tuning has steps done before."""
    shown, clock = [], iter([10.0, 100.0, 106.0])
    monkeypatch.setattr(progress, "show_text", lambda text, _node_id: shown.append(text))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    showing = progress.TuningProgress("1")
    showing.begin(50, 40)
    showing(42, 0.5)
    assert shown[0].startswith("step 42 of 50, loss 0.5000, 24 s left")


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


def test_the_attention_part_loads_as_a_lora_file(latent, long, tmp_path) -> None:
    """Snapshots and state in the file are passed over."""
    tune, base = long, lively_model()
    save_tune(tune, tmp_path / "tune.safetensors", with_state=True)
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


def test_one_frame_can_be_tuned(caplog) -> None:
    assert run(patched(EI2), latent=clip_latent(1)).info["frames"] == 1
    assert "1 frame: its temporal modules have nothing to connect" in caplog.text
    caplog.clear()
    run(patched(PER_FRAME), latent=clip_latent(1))
    assert "temporal" not in caplog.text


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


def first_gradients(name: str, **changes) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step, which AdamW's first mean is a tenth of."""
    settings = replace(SETTINGS, steps=1, max_grad_norm=0, **changes)
    state = run(patched(name, lively_model()), settings).state
    return {key: 10 * value for key, value in state.items() if key.endswith("exp_avg")}


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in PRESETS), (EI2, "bf16"), (FULL, "fp16")])
def test_checkpointing_leaves_the_gradients_as_they_are(name: str, precision: str) -> None:
    plain, checkpointed = (
        first_gradients(name, precision=precision, gradient_checkpointing=given) for given in (False, True)
    )
    assert_same_gradients(plain, checkpointed)


def assert_same_gradients(plain: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """Assert that gradients are those expected, and that there are any."""
    assert plain.keys() == others.keys() and len(plain) >= 20
    assert sum(value.norm() > 1e-6 for value in plain.values()) > 0.5 * len(plain)
    rounding = 1e-7 * max(value.norm() for value in plain.values())  # some are zero but for it
    for key, value in plain.items():
        assert (others[key] - value).norm() <= 1e-5 * value.norm() + rounding, key


@pytest.mark.parametrize(
    ("name", "precision", "size", "checkpointing"),
    [*((name, "fp32", 2**14, False) for name in PRESETS), (EI2, "fp32", 2**14, True), (EI2, "bf16", 2**26, True)],
)
def test_chunking_leaves_the_gradients_as_they_are(
    name: str, precision: str, size: int, checkpointing: bool, monkeypatch
) -> None:
    plain = first_gradients(name, precision=precision)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", size)
    less = {"chunking": True, "gradient_checkpointing": checkpointing}
    assert_same_gradients(plain, first_gradients(name, precision=precision, **less))


def test_chunking_in_parts_leaves_gradients_of_half_precision_close(monkeypatch) -> None:
    plain = first_gradients(EI2, precision="bf16")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2**14)
    others = first_gradients(EI2, precision="bf16", chunking=True, gradient_checkpointing=True)
    whole, found = (torch.cat([value.flatten() for value in given.values()]) for given in (plain, others))
    assert 0 < (found - whole).norm() < 0.05 * whole.norm()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", None)])
def test_norms_take_and_give_the_half_precision_of_a_tuning(precision: str, dtype, monkeypatch) -> None:
    normalise, seen = private_copy.normalise_in, []

    def note(kept, norm, x):
        out = normalise(kept, norm, x)
        seen.append((kept, out.dtype, norm.__self__))
        return out

    monkeypatch.setattr(private_copy, "normalise_in", note)
    unet = random_model().model.diffusion_model
    norms = sum(isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)) for module in unet.modules())
    run(patched(EI2), replace(SETTINGS, steps=1, precision=precision))
    assert {given[:2] for given in seen} == ({(dtype, dtype)} if dtype else set())
    assert len({id(norm) for *_, norm in seen}) == (norms if dtype else 0)


def test_checkpointing_computes_the_layers_twice(monkeypatch) -> None:
    calls, kinds = [], (ResBlock, SpatialTransformer)
    for kind in kinds:

        def counted(self, *args, forward=kind.forward, **kwargs):
            calls.append(id(self))
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", counted)
    layers = sum(isinstance(module, kinds) for module in random_model().model.diffusion_model.modules())
    run(patched(EI2), replace(SETTINGS, steps=1))
    assert len(calls) == len(set(calls)) == layers
    calls.clear()
    run(patched(EI2), replace(SETTINGS, steps=1, gradient_checkpointing=True))
    counts = [calls.count(layer) for layer in dict.fromkeys(calls)]
    assert counts == [1] + [2] * (layers - 1), "nothing is learned before the first layer"


def count_saved_bytes(settings: TuneSettings) -> int:
    """Return what a tuning holds for its backward passes, in bytes."""
    sizes = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(patched(EI2), settings)
    return sum(sizes)


def test_checkpointing_holds_far_less() -> None:
    whole, less = (
        count_saved_bytes(replace(SETTINGS, steps=1, gradient_checkpointing=given)) for given in (False, True)
    )
    assert 0 < less < 0.25 * whole


def test_chunking_holds_less() -> None:
    whole, less = (count_saved_bytes(replace(SETTINGS, steps=1, chunking=given)) for given in (False, True))
    assert 0 < less < 0.75 * whole


@pytest.mark.parametrize("checkpointing", [False, True])
def test_keys_and_values_side_by_side_are_rebuilt_but_in_checkpoints(checkpointing: bool, monkeypatch) -> None:
    asked = []

    def note(*args):
        asked.append(args[-1])
        return attend_across_frames(*args)

    monkeypatch.setattr(calls, "attend_across_frames", note)
    run(patched(EI2), replace(SETTINGS, steps=1, gradient_checkpointing=checkpointing))
    assert set(asked) == {not checkpointing}
    asked.clear()
    sample(patched(EI2), clip_latent(), 3.0)
    assert set(asked) == {False}, "without gradients there is no backward"


@pytest.mark.parametrize("name", [EI2, TUNE_A_VIDEO_PRESET, FULL])
def test_a_tuning_goes_on_to_the_bit(name: str, tmp_path) -> None:
    changes = {"frames_per_step": 3, "gradient_checkpointing": True} if name == FULL else {}
    whole = run(patched(name), replace(LONG, **changes))
    begun = run(patched(name), replace(LONG, steps=3, snapshots=(1, 2), **changes))
    save_tune(begun, tmp_path / "tune.safetensors", with_state=True)
    with torch.inference_mode():
        begun = load_tune(tmp_path / "tune.safetensors")
    resumed = run(patched(name), replace(LONG, **changes), resume=begun)
    assert_same_tuning(resumed, whole)
    assert begun.info["loss"] == whole.info["loss"][:3] and set(whole.snapshots) == {0, 1, 2, 4}


def test_scaled_gradients_go_on_to_the_bit() -> None:
    settings = replace(LONG, steps=3, precision="fp16", snapshots=())
    begun = run(patched(EI2), replace(settings, steps=2))
    assert begun.state["scaler.scale:number"] > 1
    assert_same_tuning(run(patched(EI2), settings, resume=begun), run(patched(EI2), settings))


def test_what_cannot_be_resumed_is_refused(long) -> None:
    with pytest.raises(ValueError, match="resume has no state of its tuning. Save it with with_state on"):
        run(patched(EI2), LONG, resume=replace(long, state={}))
    with pytest.raises(ValueError, match="resume was tuned with spatial = .*fine-coarse.* here it is .*sparse-causal"):
        run(patched(TUNE_A_VIDEO_PRESET), LONG, resume=long)
    own_norm = attach(inflate(random_model()), *method(EI2, 2, "area", norm="none"))
    with pytest.raises(ValueError, match="resume was tuned with temporal = .*centering.* here it is .*'none'"):
        run(own_norm, LONG, resume=long)
    with pytest.raises(ValueError, match="resume was tuned with prediction = eps, and here it is v"):
        run(patched(EI2, random_model(SmallV)), LONG, resume=long)
    with pytest.raises(ValueError, match="resume has 6 steps done and steps is 6, .*Set steps higher"):
        run(patched(EI2, lively_model()), LONG, resume=long)
    with pytest.raises(ValueError, match="resume was begun on another model"):
        run(patched(EI2), replace(LONG, steps=7), resume=long)
    with pytest.raises(ValueError, match="resume was begun on another model"):
        run(patched(EI2, family_model("SDXL")), replace(LONG, steps=7), resume=long, positive=prompt(3, 56))


def test_going_on_with_something_else_is_told(long, caplog) -> None:
    again = run(patched(EI2, lively_model()), replace(LONG, steps=7), resume=long)
    assert len(again.info["loss"]) == 7 and "resume" not in caplog.text
    run(patched(EI2, lively_model()), replace(LONG, steps=7), resume=long, latent=clip_latent(4, seed=20))
    told = [record.getMessage() for record in caplog.records if record.name == session.__name__]
    assert told == ["The tuning to resume was begun with other clip_hash, frames; going on with those given."]
    caplog.clear()
    weaker = attach(inflate(lively_model()), *method(EI2, 2, "area"), spatial_strength=0.5)
    run(weaker, replace(LONG, steps=7, min_snr_gamma=5.0), resume=long)
    assert "begun with other min_snr_gamma, spatial_strength;" in caplog.text


def test_a_tuning_goes_on_with_its_own_optimizer(long) -> None:
    other = replace(long, info={**long.info, "optimizer": "AdamW 8-bit"})
    with pytest.raises(ValueError, match="resume was tuned with optimizer = AdamW 8-bit, and here it is AdamW."):
        run(patched(EI2, lively_model()), replace(LONG, steps=7), resume=other)


def test_float16_gradients_that_never_become_finite_end_the_tuning(monkeypatch) -> None:
    denoise = session.Tuning.denoise

    def steep(self, x, sigma, frames):
        denoised = denoise(self, x, sigma, frames)
        return denoised + 1e30 * (denoised - denoised.detach())

    monkeypatch.setattr(session.Tuning, "denoise", steep)
    with pytest.raises(FloatingPointError, match="gradient's norm became (inf|nan) at step"):
        run(patched(EI2), replace(LONG, steps=60, precision="fp16"))


@pytest.mark.parametrize("step", [1, 4])
def test_a_snapshot_is_what_a_shorter_tuning_learns(long, step: int) -> None:
    assert long.snapshots.keys() == {0, 1, 2, 4}
    shorter = run(patched(EI2, lively_model()), replace(LONG, steps=step, snapshots=()))
    assert shorter.snapshots == {}
    assert_same(long.snapshots[step], {key: value.half() for key, value in shorter.tensors.items()})


def test_the_snapshot_before_the_first_step_is_the_temporal_modules(long) -> None:
    start = patched(EI2).get_additional_models()[0].model.tensors()
    found = long.snapshots[0]
    assert found.keys() == start.keys() and all(value.dtype == torch.float16 for value in found.values())
    for key, value in start.items():
        torch.testing.assert_close(found[key].float(), value, rtol=1e-3, atol=1e-4)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def test_the_dial_goes_from_the_untuned_model_to_the_tuned_one(latent, long) -> None:
    base = lively_model()
    untuned, tuned = sample(patched(EI2, base), latent), sample(apply_tune(base, long), latent)
    third = run(patched(EI2, base), replace(LONG, steps=2))
    ends = distance(tuned, untuned)
    assert ends > 0.02
    dialled = {at: sample(apply_tune(base, long, progress=at), latent) for at in (0, 1 / 3, 0.5, 0.8, 1)}
    assert torch.equal(dialled[1], tuned)
    assert distance(dialled[0], untuned) < 0.02 * ends
    assert distance(dialled[1 / 3], sample(apply_tune(base, third), latent)) < 0.02 * ends
    from_start = [distance(dialled[at], untuned) for at in (0, 1 / 3, 0.5, 0.8, 1)]
    to_end = [distance(dialled[at], tuned) for at in (0, 1 / 3, 0.5, 0.8, 1)]
    assert from_start == sorted(from_start) and to_end == sorted(to_end, reverse=True)


def test_the_dial_is_an_input_of_apply_tune(latent, long) -> None:
    base = lively_model()
    (dialled,) = ApplyTune.execute(base, long, 0.7, 0.4, 0.5).args
    assert torch.equal(sample(dialled, latent), sample(apply_tune(base, long.at(0.5), 0.7, 0.4), latent))
    with pytest.raises(ValueError, match="no snapshots"):
        ApplyTune.execute(base, replace(long, snapshots={}), 1.0, 1.0, 0.5)


def test_the_dial_is_at_the_end_unless_it_is_turned(latent, long) -> None:
    base, expected = lively_model(), sample(apply_tune(lively_model(), long, 0.7, 0.4), latent)
    for tune in (long, replace(long, snapshots={})):
        (applied,) = ApplyTune.execute(base, tune, 0.7, 0.4).args
        assert torch.equal(sample(applied, latent), expected)


PREVIEW = PreviewSettings(EDIT, EMPTY, every=4, steps=3, cfg=4.0)


@pytest.fixture
def shown(monkeypatch) -> list:
    """What the progress bar is given: steps done, their number, a frame."""
    given = []
    monkeypatch.setattr(
        progress.ProgressBar, "update_absolute", lambda _bar, done, total, frame: given.append((done, total, frame))
    )
    return given


@pytest.mark.parametrize(("name", "shows"), [(EI2, "NoPreviews"), (TUNE_A_VIDEO_PRESET, "Latent2RGB")])
def test_a_preview_leaves_the_tuning_as_it_is(name: str, shows: str, shown, monkeypatch) -> None:
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod[shows])
    clips, draw = [], preview.Preview.draw

    def noted(self):
        clips.append((len(shown), draw(self)))
        return clips[-1][1]

    monkeypatch.setattr(preview.Preview, "draw", noted)
    assert_same_tuning(run(patched(name), LONG, preview=PREVIEW), run(patched(name), LONG))
    assert [done for done, _ in clips] == [3, 5], "drawn after the steps 4 and 6"
    for _, frames in clips:
        assert len(frames) == FRAMES and all(isinstance(frame, Image) for frame in frames)
        assert {frame.size for frame in frames} == {(WIDTH, HEIGHT)}
    with_preview = shown[:6]
    assert [(done, total) for done, total, _ in with_preview] == [(i, 6) for i in range(1, 7)]
    assert [frame for *_, frame in with_preview[:3]] == [None] * 3
    for (_, _, (kind, image, side)), frames in zip(with_preview[3:], (*[clips[0][1]] * 2, clips[1][1]), strict=True):
        assert (kind, side) == ("JPEG", 512) and any(image is frame for frame in frames)
    assert all(frame is None for *_, frame in shown[6:])


def test_a_preview_is_the_edit_that_the_tuned_model_makes(latent, monkeypatch) -> None:
    clips, draw = [], preview.Preview.draw
    monkeypatch.setattr(preview.Preview, "draw", lambda self: clips.append(draw(self)) or clips[-1])
    base = lively_model()
    tune = run(patched(EI2, base), SETTINGS, preview=PREVIEW)
    tuned = apply_tune(base, tune)
    inversion = invert_clip(tuned, EMPTY, EMPTY, latent, InversionSettings(PREVIEW.steps, 0.0, "none"))
    edit = sample_clip(tuned, EDIT, EMPTY, inversion, SampleSettings(PREVIEW.cfg))[0]["samples"]
    latents = base.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(latents.latent_rgb_factors, latents.latent_rgb_factors_bias)
    for i, frame in enumerate(clips[-1]):
        expected = previewer.decode_latent_to_preview(base.model.process_latent_in(edit[i : i + 1]))
        ours, its = (
            torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float() for image in (frame, expected)
        )
        assert its.std() > 20 and (ours - its).abs().mean() < 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_full_precision(long, precision: str) -> None:
    tune = run(patched(EI2, lively_model()), replace(LONG, steps=3, precision=precision))
    assert tune.info["precision"] == precision
    assert {value.dtype for value in tune.tensors.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in tune.tensors.values())
    assert tune.info["loss"] == pytest.approx(long.info["loss"][:3], rel=0.02)
    assert tune.info["loss"] != long.info["loss"][:3]


def test_auto_is_full_precision_for_a_model_that_has_it(tune) -> None:
    found = run(patched(EI2), replace(SETTINGS, precision="fp32"))
    assert found.info["precision"] == "fp32"
    assert_same(found.tensors, tune.tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "has_bf16"), [("cpu", True), ("cuda", True), ("cuda", False)])
def test_the_precision_that_auto_is(dtype: torch.dtype, kind: str, has_bf16: bool, monkeypatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation
    )
    model, device = random_model(dtype=dtype), torch.device(kind)
    full = kind == "cpu" or dtype == torch.float32
    assert choose_precision("auto", model, device) == ("fp32" if full else "bf16" if has_bf16 else "fp16")
    assert [choose_precision(given, model, device) for given in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "fp32"]


def white(frames: int) -> torch.Tensor:
    return torch.ones(frames, 8 * HEIGHT, 8 * WIDTH)


def test_a_mask_of_pictures_weighs_the_latents_positions() -> None:
    mask = torch.zeros(1, 8 * HEIGHT, 8 * WIDTH)
    mask[:, :20, 8:] = 1
    weights = latent_mask(mask, torch.zeros(FRAMES, 4, HEIGHT, WIDTH))
    expected = torch.zeros(FRAMES, 1, HEIGHT, WIDTH)
    expected[:, :, :2, 1:] = 1
    expected[:, :, 2, 1:] = 0.5
    torch.testing.assert_close(weights, expected)


def test_a_white_mask_is_none(tune) -> None:
    for frames in (1, FRAMES):
        masked = run(patched(EI2), mask=white(frames))
        assert masked.info["loss"] == pytest.approx(tune.info["loss"], rel=1e-5)
        assert masked.info["masked"] and not tune.info["masked"]
        torch.testing.assert_close(masked.tensors, tune.tensors, rtol=1e-3, atol=1e-4)


def test_a_mask_of_the_frame_is_one_for_all(tune) -> None:
    mask = white(1)
    mask[:, : 4 * HEIGHT] = 0
    one, each = run(patched(EI2), mask=mask), run(patched(EI2), mask=mask.expand(FRAMES, -1, -1))
    assert_same_tuning(one, each)
    assert one.info["loss"][0] != pytest.approx(tune.info["loss"][0], rel=1e-3)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=f"mask has 3 frames and the clip {FRAMES}"):
        run(patched(EI2), mask=white(3))
    with pytest.raises(ValueError, match="mask leaves nothing to tune on. White is where"):
        run(patched(EI2), mask=0 * white(1))


def test_a_frame_that_a_mask_leaves_out_is_not_learned() -> None:
    """What is to be learned may leave the picture."""
    mask = white(FRAMES)
    mask[2:] = 0
    tune = run(patched(PER_FRAME), replace(SETTINGS, steps=12, frames_per_step=2), mask=mask)
    assert 0 in tune.info["loss"] and all(torch.isfinite(torch.tensor(tune.info["loss"])))


@pytest.mark.parametrize("num_frames", [0, FRAMES])
def test_the_frames_of_a_step_come_with_their_own_rows(num_frames: int, monkeypatch) -> None:
    """A conditioning may have a row for each frame."""
    rows = torch.randn(FRAMES, TOKENS, UNET["context_dim"], generator=torch.Generator().manual_seed(8))
    taken, seen = [], []
    draw_frames, apply_model = Tuner.draw_frames, BaseModel.apply_model

    def noted(self):
        taken.append(draw_frames(self))
        return taken[-1]

    def seeing(self, x, sigma, c_crossattn=None, **kwargs):
        seen.append((len(x), c_crossattn.cpu()))
        return apply_model(self, x, sigma, c_crossattn=c_crossattn, **kwargs)

    monkeypatch.setattr(Tuner, "draw_frames", noted)
    monkeypatch.setattr(BaseModel, "apply_model", seeing)
    model = attach(inflate(random_model(), num_frames), *method(EI2, 2, "area"))
    run(model, replace(SETTINGS, steps=6, frames_per_step=2), positive=[[rows, {}]])
    assert len({frames.start for frames in taken}) > 2
    for frames, (count, text) in zip(taken, seen, strict=True):
        assert count == 2 and torch.equal(text, rows[frames])


def keeper(kept: list) -> Callable[[Tune], str]:
    """Return what keeps unfinished tunes in a list."""

    def keep(tune: Tune) -> str:
        kept.append(tune)
        return "unfinished_00007_.safetensors"

    return keep


def interrupt_after(steps: int, monkeypatch) -> None:
    """Let the host interrupt between two steps."""
    left = iter(range(steps - 1))

    def interrupt() -> None:
        if next(left, None) is None:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(progress, "throw_exception_if_processing_interrupted", interrupt)


def interrupt_inside(step: int, monkeypatch) -> None:
    """Let the host interrupt at the first layer of a step, as it does when a user cancels."""
    steps, draw_frames = iter(range(1, step)), Tuner.draw_frames

    def interrupting(self):
        comfy.model_management.interrupt_current_processing(next(steps, None) is None)
        return draw_frames(self)

    monkeypatch.setattr(Tuner, "draw_frames", interrupting)


def interrupted(settings: TuneSettings, **changes) -> list[Tune]:
    """Tune until the interrupt; returns what was kept."""
    kept: list[Tune] = []
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(patched(EI2, lively_model()), settings, keeper(kept), **changes)
    return kept


def test_an_interrupted_tuning_is_kept_and_goes_on_to_the_bit(long, monkeypatch, caplog) -> None:
    interrupt_after(2, monkeypatch)
    (kept,) = interrupted(LONG)
    monkeypatch.undo()
    assert "What was learned in 2 steps is in unfinished_00007_.safetensors." in caplog.text
    assert kept.info["loss"] == long.info["loss"][:2] and set(kept.snapshots) == {0, 1}
    resumed = run(patched(EI2, lively_model()), LONG, resume=kept)
    assert_same_tuning(resumed, long)


def test_what_cannot_be_kept_does_not_hide_the_interrupt(monkeypatch, caplog) -> None:
    def refuse(_tune: Tune) -> str:
        raise OSError("x could not be written (No space left on device).")

    interrupt_after(2, monkeypatch)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(patched(EI2), keep=refuse)
    assert "learned in 2 steps is lost: x could not be written (No space" in caplog.text


def test_any_other_failure_keeps_what_was_learned(monkeypatch) -> None:
    def fail(_denoised: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("device lost")

    kept: list[Tune] = []
    spoil(3, fail, monkeypatch)
    with pytest.raises(RuntimeError, match="device lost"):
        run(patched(EI2), keep=keeper(kept))
    assert [len(tune.info["loss"]) for tune in kept] == [2]


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


def test_a_preview_minds_where_the_patch_acts() -> None:
    def draw(percents: tuple[float, float]) -> list:
        clip_model = attach(inflate(lively_model()), *method(EI2, 2, "area"), percents=percents)
        with torch.inference_mode(False), private_copy.private_copy(clip_model) as copy:
            tuning = session.Tuning(copy, clip_model, TuneInputs(SOURCE, clip_latent()), SETTINGS)
            pictures = tuning.preview(preview.PreviewSettings(EDIT, EMPTY, 1, 3, 4.0)).draw()
        return [picture.tobytes() for picture in pictures]

    always, seldom, again = (draw(percents) for percents in ((0.0, 1.0), (0.3, 0.31), (0.0, 1.0)))
    assert always == again and always != seldom


def test_the_cause_of_an_interrupt_reaches_the_layers(monkeypatch) -> None:
    interrupt_inside(3, monkeypatch)
    (kept,) = interrupted(LONG)
    assert len(kept.info["loss"]) == 2 and not comfy.model_management.processing_interrupted()


def test_a_tuning_interrupted_inside_a_step_goes_on_to_the_bit(long, monkeypatch) -> None:
    interrupt_inside(3, monkeypatch)
    (kept,) = interrupted(LONG)
    monkeypatch.undo()
    assert_same(run(patched(EI2, lively_model()), LONG, resume=kept).tensors, long.tensors)


def test_an_interrupt_before_the_end_of_the_first_step_keeps_nothing(monkeypatch) -> None:
    interrupt_inside(1, monkeypatch)
    assert interrupted(LONG) == []


def spoil(step: int, what: Callable[[torch.Tensor], torch.Tensor], monkeypatch) -> None:
    """Do something with the UNet's answer at one step."""
    denoise = session.Tuning.denoise

    def spoilt(self, x, sigma, frames):
        denoised = denoise(self, x, sigma, frames)
        return what(denoised) if len(self.tuner.losses) == step - 1 else denoised

    monkeypatch.setattr(session.Tuning, "denoise", spoilt)


def test_what_was_learned_before_the_loss_left_the_numbers_is_kept(latent, long, monkeypatch) -> None:
    spoil(4, lambda denoised: denoised * math.nan, monkeypatch)
    kept, base = list[Tune](), lively_model()
    with pytest.raises(FloatingPointError) as caught:
        run(patched(EI2, base), LONG, keeper(kept))
    assert str(caught.value) == (
        "The loss became nan at step 4; lower learning_rate = 0.001. "
        "What was learned in 2 steps is in unfinished_00007_.safetensors."
    )
    (good,) = kept
    assert good.info["loss"] == long.info["loss"][:2] and set(good.snapshots) == {0, 1}
    assert_same({key: value.half() for key, value in good.tensors.items()}, long.snapshots[2])
    monkeypatch.undo()
    assert sample(apply_tune(base, good), latent).isfinite().all()


@pytest.mark.parametrize("keep", [False, True])
def test_where_the_first_loss_is_no_number_nothing_is_kept(keep: bool, monkeypatch) -> None:
    spoil(1, lambda denoised: denoised * math.inf, monkeypatch)
    kept: list[Tune] = []
    with pytest.raises(FloatingPointError, match=r"became \w+ at step 1; lower learning_rate = 0.001.$"):
        run(patched(EI2), LONG, keeper(kept) if keep else None)
    assert kept == []


@pytest.mark.parametrize(
    ("name", "changes", "advice"),
    [
        (EI2, {}, ["chunking on", "gradient_checkpointing on", "r to 8", "frames_per_step to 2", "smaller"]),
        (
            FULL,
            {"gradient_checkpointing": True},
            ["chunking on", "frames_per_step to 2", "EI² instead of full", "smaller"],
        ),
        (PER_FRAME, {"frames_per_step": 2, "chunking": True}, ["gradient_checkpointing on", "smaller"]),
    ],
)
def test_a_full_memory_is_met_with_advice(name: str, changes: dict, advice: list[str], monkeypatch) -> None:
    def fill(_denoised: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    copies, kept = watch_copies(monkeypatch), list[Tune]()
    spoil(2, fill, monkeypatch)
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        run(patched(name), replace(SETTINGS, on_out_of_memory="stop", **changes), keeper(kept))
    said = str(caught.value)
    assert comfy.model_management.is_oom(caught.value)
    per_step = changes.get("frames_per_step", FRAMES)
    assert said.startswith(f"Tuning {per_step} frames of {8 * WIDTH} x {8 * HEIGHT} at a time does not fit")
    assert said.count(";") == len(advice) - 1
    places = [said.index(part) for part in advice]
    assert places == sorted(places)
    assert [len(tune.info["loss"]) for tune in kept] == [1]
    del caught
    assert_gone(copies)


def crowd(limit: int, steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """Let the UNet run out of memory with more frames than `limit` in the steps given; note what each call was."""
    calls: list[tuple[int, int, bool]] = []
    denoise = session.Tuning.denoise

    def crowded(self, x, sigma, frames):
        settings = self.tuner.settings
        calls.append((len(self.tuner.losses) + 1, len(x), settings.gradient_checkpointing))
        denoised = denoise(self, x, sigma, frames)
        if calls[-1][0] in steps and (len(x) > limit or not settings.gradient_checkpointing):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return denoised

    monkeypatch.setattr(session.Tuning, "denoise", crowded)
    return calls


def test_checkpointing_helps_a_full_memory_and_changes_nothing_else(monkeypatch, caplog) -> None:
    settings = replace(SETTINGS, steps=4)
    expected = run(patched(EI2), settings)
    calls = crowd(FRAMES, (3,), monkeypatch)
    found = run(patched(EI2), settings)
    assert calls[:2] == [(1, FRAMES, False), (2, FRAMES, False)]
    assert calls[2:] == [(3, FRAMES, False), (3, FRAMES, False), (3, FRAMES, True), (4, FRAMES, True)]
    assert found.info["loss"] == pytest.approx(expected.info["loss"], rel=1e-5)
    for key, value in expected.tensors.items():
        torch.testing.assert_close(found.tensors[key], value, rtol=1e-3, atol=1e-5)
    rungs = [{"chunking": True, "gradient_checkpointing": given, "frames_per_step": 0} for given in (False, True)]
    assert found.info["stepped_down"] == [{"after": 2, **rung} for rung in rungs]
    assert rungs[1].items() <= found.info.items() and "stepped_down" not in expected.info
    for given in ("off", "on"):
        said = f"Out of memory after 2 steps; going on with chunking, gradient_checkpointing {given} and all frames"
        assert said in caplog.text


def test_a_full_memory_is_met_by_fewer_frames_from_the_last_step_on(monkeypatch) -> None:
    calls = crowd(2, (2, 3, 4), monkeypatch)
    found = run(patched(EI2), replace(SETTINGS, steps=4))
    assert [rows for _, rows, _ in calls] == [FRAMES, FRAMES, FRAMES, FRAMES, 2, 2, 2] and FRAMES // 2 == 2
    assert [step for step, _, _ in calls] == [1, 2, 2, 2, 2, 3, 4]
    assert len(found.info["loss"]) == 4 and all(map(math.isfinite, found.info["loss"]))
    assert [rung["after"] for rung in found.info["stepped_down"]] == [1, 1, 1]
    assert found.info["frames_per_step"] == 2


def test_where_the_least_does_not_fit_it_says_so(monkeypatch) -> None:
    calls, kept, copies = crowd(1, (2,), monkeypatch), list[Tune](), watch_copies(monkeypatch)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="Tuning 2 frames of .* make the frames smaller") as caught:
        run(patched(EI2), replace(SETTINGS, steps=4), keeper(kept))
    assert "gradient_checkpointing" not in str(caught.value)
    assert [rows for _, rows, _ in calls] == [FRAMES, FRAMES, FRAMES, FRAMES, 2]
    assert [len(tune.info["loss"]) for tune in kept] == [1]
    del caught
    assert_gone(copies)


def test_a_step_that_was_half_taken_is_not_taken_again(monkeypatch) -> None:
    step, kept, calls = torch.optim.AdamW.step, list[Tune](), []

    def full(self, closure=None):
        calls.append(1)
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="chunking on in Tuning Options"):
        run(patched(EI2), replace(SETTINGS, steps=5), keeper(kept))
    assert len(calls) == 3 and [len(tune.info["loss"]) for tune in kept] == [2]


def test_smoothing_keeps_the_frames_that_it_needs(monkeypatch) -> None:
    crowd(2, (1,), monkeypatch)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=f"Tuning {FRAMES} frames"):
        run(patched(EI2), replace(SETTINGS, steps=2, smoothing="SmoothVideo", smoothing_weight=0.2))


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


def test_a_tune_of_another_family_is_refused(tune) -> None:
    other = {**UNET, "model_channels": 64}
    with pytest.raises(ValueError, match=r"attn1.to_q.diff is \(32, 32\) in the tune and \(64, 64\) in the model"):
        apply_tune(make_model(Small, other, lively_weights, torch.float32), tune)
    first = "input_blocks.3.1.transformer_blocks.0.attn1.to_q.diff"
    with pytest.raises(ValueError, match=rf"{first} is \(64, 64\) in the tune and \(128, 128\) in the model"):
        apply_tune(family_model("SDXL"), tune)
    sdxl = run(patched(PER_FRAME, family_model("SDXL")), replace(SETTINGS, steps=1), positive=prompt(3, 56))
    first = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.diff"
    with pytest.raises(ValueError, match=rf"{first} is absent in the tune and \(32, 32\) in the model"):
        apply_tune(random_model(), sdxl)


@pytest.mark.parametrize(("family", "name"), [("SD2.x", TUNE_A_VIDEO_PRESET), ("SDXL", EI2)])
def test_other_families_are_tuned(family: str, name: str) -> None:
    base, settings = family_model(family), replace(SETTINGS, steps=2, gradient_checkpointing=name == EI2)
    width = {"SD2.x": 40, "SDXL": 56}[family]
    tune = run(patched(name, base), settings, positive=prompt(3, width))
    assert tune.info["prediction"] == {"SD2.x": "v", "SDXL": "eps"}[family]
    assert all(value.isfinite().all() for value in tune.tensors.values())
    tuned, untuned = (
        sample(model, clip_latent(), 3.0, prompt(5, width), prompt(4, width), (2.0, 1.0))
        for model in (apply_tune(base, tune), patched(name, base))
    )
    assert tuned.isfinite().all() and distance(tuned, untuned) > 1e-3


def test_the_same_tune_is_applied_once(long) -> None:
    tuned = apply_tune(lively_model(), long)
    for progress_ in (1.0, 0.5):
        with pytest.raises(ValueError, match="has this tune already, and applying it again would double"):
            apply_tune(tuned, long, progress=progress_)
    with pytest.raises(ValueError, match="has this tune already"):
        apply_tune(apply_tune(lively_model(), long, progress=0.5), long)


def test_a_tune_made_on_a_tuned_model_is_applied_after_it(latent, long) -> None:
    base = lively_model()
    first = apply_tune(base, long)
    second = run(first, replace(SETTINGS, seed=5))
    both = apply_tune(first, second)
    added = {key: value + long.tensors[key] * key.endswith(".diff") for key, value in second.tensors.items()}
    summed = apply_tune(base, Tune(added, {**second.info, "seed": 0}))
    assert distance(sample(both, latent), sample(summed, latent)) < 1e-4
    assert distance(sample(both, latent), sample(first, latent)) > 1e-2
    assert clip_settings(both).tunes == (long.digest(), second.digest())


def test_a_tune_says_how_it_was_made(long, tune) -> None:
    info = long.info
    assert json.loads(json.dumps(info)) == info
    assert {key: info[key] for key in ("preset", "steps", "learning_rate", "seed", "frames", "precision")} == {
        "preset": EI2, "steps": 6, "learning_rate": 1e-3, "seed": 11, "frames": FRAMES,
        "precision": choose_precision("auto", lively_model(), comfy.model_management.get_torch_device()),
    }  # fmt: skip
    assert (info["spatial"], info["spatial_strength"]) == (
        {"kind": "fine-coarse", "r": 2, "downsample": "area"}, 1.0
    )  # fmt: skip
    assert info["temporal"] == {"norm": "instance centering", "spectral": True, "zero_init": False}
    assert len(info["loss"]) == 6 and info["snapshots"] == [1, 2, 4] and "prompt" not in info
    assert info["clip_hash"] == tune.info["clip_hash"] and info["model_hash"] != tune.info["model_hash"]
    told = run(patched(PER_FRAME), replace(SETTINGS, steps=1), latent=clip_latent(seed=3), prompt="a swan").info
    assert (told["prompt"], told["preset"], told["spatial"], told["temporal"]) == ("a swan", PER_FRAME, None, None)
    assert told["clip_hash"] != info["clip_hash"] and told["model_hash"] == tune.info["model_hash"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of tunes, empty; One-Shot Tune is node 1."""
    monkeypatch.setattr(files.folder_paths, "get_folder_paths", lambda _: [str(tmp_path)])
    monkeypatch.setattr(files.folder_paths, "get_full_path_or_raise", lambda _, name: str(tmp_path / name))
    monkeypatch.setattr(OneShotTune, "hidden", SimpleNamespace(unique_id="1"))
    return tmp_path


@pytest.mark.parametrize("with_state", [False, True])
def test_the_nodes_save_and_load_the_state_where_it_is_wanted(folder, long, with_state: bool) -> None:
    (path,) = SaveTune.execute(long, "clips/swan", with_state).args
    assert path == str(folder / "clips" / "swan_00001_.safetensors")
    (loaded,) = LoadTune.execute("clips/swan_00001_.safetensors").args
    assert_same_tuning(loaded, long if with_state else replace(long, state={}))


def tune_by_node(**changes) -> list:
    """Run One-Shot Tune with the settings of LONG as a user gives them."""
    given = {"steps": 6, "learning_rate": 1e-3, "seed": 11, "snapshots": "1, 2, 4", "options": None, **changes}
    with torch.inference_mode():
        return OneShotTune.execute(patched(EI2, lively_model()), SOURCE, clip_latent(), **given).args


def test_the_node_tunes_with_options_and_preview(folder, long, latent, shown) -> None:
    (preview_settings,) = TuningPreviewNode.execute(EDIT, EMPTY, 3, 2, 5.0).args
    clip_model, tune, plot, report, losses = tune_by_node(preview=preview_settings, prompt_to_note="a swan")
    assert_same(tune.tensors, long.tensors)
    assert [frame is not None for *_, frame in shown] == [False, False, True, True, True, True]
    assert json.loads(report).items() >= {**long.info, "prompt": "a swan"}.items()
    assert losses["loss"].tolist() == pytest.approx(long.info["loss"]) and plot.ndim == 4
    assert torch.equal(sample(clip_model, latent), sample(apply_tune(lively_model(), long), latent))
    defaults = {widget.id: widget.default for widget in TuningOptionsNode.define_schema().inputs}
    (options,) = TuningOptionsNode.execute(**{**defaults, "weight_decay": 0.5, "frames_per_step": 2}).args
    assert TuningOptionsNode.execute(**defaults).args == (TuneSettings(),)
    tune = tune_by_node(options=options, steps=2, snapshots="")[1]
    assert (tune.info["weight_decay"], tune.info["frames_per_step"], tune.info["learning_rate"]) == (0.5, 2, 1e-3)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("on_interrupt", ["keep", "discard"])
def test_the_node_keeps_an_interrupted_tuning_where_it_is_wanted(folder, long, monkeypatch, on_interrupt: str) -> None:
    interrupt_after(2, monkeypatch)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tune_by_node(on_interrupt=on_interrupt)
    found = [path.name for path in folder.iterdir()]
    assert found == (["unfinished_00001_.safetensors"] if on_interrupt == "keep" else [])
    monkeypatch.setattr(progress, "throw_exception_if_processing_interrupted", lambda: None)
    if found:
        with torch.inference_mode():
            (unfinished,) = LoadTune.execute(found[0]).args
        assert_same(tune_by_node(resume=unfinished)[1].tensors, long.tensors)
