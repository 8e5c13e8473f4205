"""What is kept of a tuning that was interrupted or left the numbers."""

import math

import comfy.model_management
import pytest
import torch

from consistent_video.modules.clip_model.methods import EI2
from consistent_video.modules.tuning.host import progress
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.modules.tuning.tuner import Tuner
from consistent_video.modules.tuning.weights import Tune

from ..small import random_model, sample
from .tuned import (
    LONG,
    assert_gone,
    assert_same,
    assert_same_tuning,
    interrupt_after,
    keeper,
    lively_model,
    patched,
    run,
    spoil,
    watch_copies,
)


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


def interrupt_inside(step: int, monkeypatch) -> None:
    """Let the host interrupt at the first layer of a step, as it does when a user cancels."""
    steps, draw = iter(range(1, step)), Tuner.draw

    def interrupting(self):
        comfy.model_management.interrupt_current_processing(next(steps, None) is None)
        return draw(self)

    monkeypatch.setattr(Tuner, "draw", interrupting)


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


def test_what_was_learned_before_the_loss_left_the_numbers_is_kept(latent, long, monkeypatch) -> None:
    spoil(4, lambda denoised: denoised * math.nan, monkeypatch)
    kept, base = list[Tune](), lively_model()
    with pytest.raises(FloatingPointError) as caught:
        run(patched(EI2, base), LONG, keeper(kept))
    assert str(caught.value) == (
        "The loss became nan at step 4; lower learning_rate, 0.001 was set. "
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
    with pytest.raises(FloatingPointError, match=r"became \w+ at step 1; nothing has been learned yet, .*Options.$"):
        run(patched(EI2), LONG, keeper(kept) if keep else None)
    assert kept == []
