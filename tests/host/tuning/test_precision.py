"""The precision of a tuning: float32, or half of it with scaled gradients."""

import gc
import weakref
from functools import partial

import pytest
import torch

from consistent_video.modules.clip_model.host.attach import inflate
from consistent_video.modules.clip_model.methods import EI2
from consistent_video.modules.inversion.host.frozen import frozen_copies
from consistent_video.modules.tuning.host import training
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.host.private_copy import choose_precision
from consistent_video.modules.tuning.updates import LEAST_SCALE

from ..small import random_model, sample
from .tuned import LONG, SETTINGS, assert_same, assert_same_tuning, lively_model, patched, run

pytestmark = pytest.mark.gpu


def test_half_precision_models_are_tuned_in_float32(latent) -> None:
    base = random_model(dtype=torch.float16) if torch.cuda.is_available() else random_model(dtype=torch.bfloat16)
    tune = run(patched(EI2, base))
    assert all(value.dtype == torch.float32 for value in tune.tensors.values())
    assert all(torch.isfinite(torch.tensor(tune.info["loss"])))
    assert sample(apply_tune(base, tune), latent).isfinite().all()


def test_scaled_gradients_go_on_to_the_bit() -> None:
    settings = LONG.changed(steps=3, precision="fp16", snapshots=())
    begun = run(patched(EI2), settings.changed(steps=2))
    assert begun.state["scaler.scale:number"] > 1
    assert_same_tuning(run(patched(EI2), settings, resume=begun), run(patched(EI2), settings))


def test_float16_gradients_that_never_become_finite_end_the_tuning(monkeypatch) -> None:
    denoise = training.Tuning.denoise

    def steep(self, x, sigma, frames):
        denoised = denoise(self, x, sigma, frames)
        return denoised + 1e30 * (denoised - denoised.detach())

    monkeypatch.setattr(training.Tuning, "denoise", steep)
    near = partial(torch.amp.GradScaler, init_scale=8 * LEAST_SCALE)  # begins near the scale at which it gives up
    monkeypatch.setattr(torch.amp, "GradScaler", near)
    with pytest.raises(FloatingPointError, match="gradient's norm became (inf|nan) at step 5"):
        run(patched(EI2), LONG.changed(steps=8, precision="fp16", snapshots=()))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_full_precision(long, precision: str) -> None:
    tune = run(patched(EI2, lively_model()), LONG.changed(steps=3, precision=precision))
    assert tune.info["precision"] == precision
    assert {value.dtype for value in tune.tensors.values()} == {torch.float32}
    assert all(value.isfinite().all() for value in tune.tensors.values())
    assert tune.info["loss"] == pytest.approx(long.info["loss"][:3], rel=0.02)
    assert tune.info["loss"] != long.info["loss"][:3]


def test_auto_is_full_precision_for_a_model_that_has_it(tune) -> None:
    found = run(patched(EI2), SETTINGS.changed(precision="fp32"))
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


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_frozen_weights_are_held_in_what_is_computed_in_and_learned_ones_begin_exactly(
    precision: str, dtype: torch.dtype, monkeypatch
) -> None:
    seen, calls = [], training.Tuning.denoise

    def look(self, *given):
        seen.append({(weight.requires_grad, weight.dtype) for weight in self.copy.model.diffusion_model.parameters()})
        seen.append([weight.cpu().clone() for weight in self.learned.before])
        return calls(self, *given)

    monkeypatch.setattr(training.Tuning, "denoise", look)
    model = patched(EI2, random_model(dtype=torch.float32))
    half, full = (run(model, SETTINGS.changed(steps=1, precision=given)) for given in (precision, "fp32"))
    assert seen[0] == {(False, dtype), (True, torch.float32)} and seen[2] == {
        (False, torch.float32),
        (True, torch.float32),
    }
    assert all(torch.equal(*pair) for pair in zip(seen[1], seen[3], strict=True))
    assert half.info["model_hash"] == full.info["model_hash"]


def test_a_copy_is_freed_without_the_garbage_collector() -> None:
    with frozen_copies(inflate(random_model())) as (call,):
        watched = [weakref.ref(layer) for layer in call.copy.model.diffusion_model.modules()]
        gc.disable()
    try:
        del call
        assert not any(layer() for layer in watched)
    finally:
        gc.enable()
