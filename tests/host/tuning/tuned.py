"""Tunings of the small models, as the node does them."""

import gc
import weakref
from collections.abc import Callable

import comfy.model_management
import torch

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.methods import method
from consistent_video.modules.tuning.host import learned, progress, training
from consistent_video.modules.tuning.host.training import tune_model
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.modules.tuning.weights import Tune

from ..small import SOURCE, clip_latent, family_model, random_model

SETTINGS = TuneSettings().changed(steps=4, learning_rate=1e-3, seed=11)
LONG = SETTINGS.changed(steps=6, snapshots=(1, 2, 4))


def lively_model():
    """Return a model whose every part matters."""
    return family_model("SD1.x")


def patched(name: str, model=None):
    return attach(inflate(model or random_model()), *method(name, 2, "area"))


def run(model, settings: TuneSettings = SETTINGS, keep=None, autosave=None, **changes) -> Tune:
    """Tune as the node does: the host executes nodes in inference mode."""
    inputs = TuneInputs(**{"positive": SOURCE, "latent": clip_latent(), **changes})
    with torch.inference_mode():
        return tune_model(model, inputs, settings, progress.TuningProgress("1"), keep, autosave)


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


def watch_copies(monkeypatch) -> list:
    """Note every private copy's model, weakly."""
    copies, trained_projections = [], learned.trained_projections

    def noted(unet, model):
        copies.append(weakref.ref(unet))
        return trained_projections(unet, model)

    monkeypatch.setattr(learned, "trained_projections", noted)
    return copies


def assert_gone(copies: list) -> None:
    """Check that the private copies are unloaded and freed."""
    gc.collect()
    assert copies and not any(copy() for copy in copies)
    assert not comfy.model_management.current_loaded_models


def lora_of(base) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(10)
    lora = {}
    for block in transformer_blocks(base.model.diffusion_model):
        key = f"diffusion_model.{block.path}.attn2.to_q"
        lora[f"{key}.lora_up.weight"] = torch.randn(block.dim, 2, generator=generator)
        lora[f"{key}.lora_down.weight"] = torch.randn(2, block.dim, generator=generator)
    return lora


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


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


def spoil(step: int, what: Callable[[torch.Tensor], torch.Tensor], monkeypatch) -> None:
    """Do something with the UNet's answer at one step."""
    denoise = training.Tuning.denoise

    def spoilt(self, x, sigma, frames):
        denoised = denoise(self, x, sigma, frames)
        return what(denoised) if self.tuner.done == step - 1 else denoised

    monkeypatch.setattr(training.Tuning, "denoise", spoilt)
