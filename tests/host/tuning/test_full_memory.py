"""A full memory: met with advice, with checkpointing, with fewer frames."""

import math

import comfy.model_management
import pytest
import torch

from consistent_video.modules.clip_model.methods import EI2, FULL, PER_FRAME
from consistent_video.modules.tuning.host import training
from consistent_video.modules.tuning.weights import Tune

from ..small import FRAMES, HEIGHT, WIDTH
from .tuned import SETTINGS, assert_gone, keeper, patched, run, spoil, watch_copies


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
        (
            FULL,
            {"chunking": True, "gradient_checkpointing": True, "checkpointing_share": 0.5},
            ["checkpointing_share to 1", "frames_per_step to 2", "EI² instead of full", "smaller"],
        ),
    ],
)
def test_a_full_memory_is_met_with_advice(name: str, changes: dict, advice: list[str], monkeypatch) -> None:
    def fill(_denoised: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    copies, kept = watch_copies(monkeypatch), list[Tune]()
    spoil(2, fill, monkeypatch)
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        run(patched(name), SETTINGS.changed(on_out_of_memory="stop", **changes), keeper(kept))
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


def crowd(
    limit: int, steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, share: float = 1.0
) -> list[tuple[int, int, float]]:
    """Let the UNet run out of memory in the steps given with more frames than `limit`, or less checkpointing.

    Returns the step, the frames and the share that is checkpointed of each call.
    """
    calls: list[tuple[int, int, float]] = []
    denoise = training.Tuning.denoise

    def crowded(self, x, sigma, frames):
        memory = self.tuner.settings.memory
        checkpointed = memory.checkpointing_share if memory.gradient_checkpointing else 0.0
        calls.append((self.tuner.done + 1, len(x), checkpointed))
        denoised = denoise(self, x, sigma, frames)
        if calls[-1][0] in steps and (len(x) > limit or checkpointed < share):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return denoised

    monkeypatch.setattr(training.Tuning, "denoise", crowded)
    return calls


def test_checkpointing_helps_a_full_memory_and_changes_nothing_else(monkeypatch, caplog) -> None:
    settings = SETTINGS.changed(steps=4)
    expected = run(patched(EI2), settings)
    calls = crowd(FRAMES, (3,), monkeypatch, 0.5)
    found = run(patched(EI2), settings)
    assert calls[:2] == [(1, FRAMES, 0), (2, FRAMES, 0)]
    assert calls[2:] == [*((3, FRAMES, share) for share in (0, 0, 0.25, 0.5)), (4, FRAMES, 0.5)]
    assert found.info["loss"] == pytest.approx(expected.info["loss"], rel=1e-5)
    for key, value in expected.tensors.items():
        torch.testing.assert_close(found.tensors[key], value, rtol=1e-3, atol=1e-5)
    rungs = [
        {"chunking": True, "gradient_checkpointing": on, "checkpointing_share": share, "frames_per_step": 0}
        for on, share in ((False, 1.0), (True, 0.25), (True, 0.5))
    ]
    assert found.info["stepped_down"] == [{"after": 2, **rung} for rung in rungs]
    assert rungs[-1].items() <= found.info.items() and "stepped_down" not in expected.info
    for given in ("off", "on for 25%", "on for 50%"):
        said = f"Out of memory after 2 steps; going on with chunking, gradient_checkpointing {given} and all frames"
        assert said in caplog.text


def test_a_full_memory_is_met_by_fewer_frames_from_the_last_step_on(monkeypatch) -> None:
    calls = crowd(2, (2, 3, 4), monkeypatch)
    found = run(patched(EI2), SETTINGS.changed(steps=4))
    assert [rows for _, rows, _ in calls] == [*(7 * [FRAMES]), 2, 2, 2] and FRAMES // 2 == 2
    assert [step for step, _, _ in calls] == [1, *(7 * [2]), 3, 4]
    assert len(found.info["loss"]) == 4 and all(map(math.isfinite, found.info["loss"]))
    assert [rung["after"] for rung in found.info["stepped_down"]] == 6 * [1]
    assert found.info["frames_per_step"] == 2


def test_where_the_least_does_not_fit_it_says_so(monkeypatch) -> None:
    calls, kept, copies = crowd(1, (2,), monkeypatch), list[Tune](), watch_copies(monkeypatch)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="Tuning 2 frames of .* make the frames smaller") as caught:
        run(patched(EI2), SETTINGS.changed(steps=4), keeper(kept))
    assert "gradient_checkpointing" not in str(caught.value)
    assert [rows for _, rows, _ in calls] == [*(7 * [FRAMES]), 2]
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
        run(patched(EI2), SETTINGS.changed(steps=5), keeper(kept))
    assert len(calls) == 3 and [len(tune.info["loss"]) for tune in kept] == [2]


def test_smoothing_keeps_the_frames_that_it_needs(monkeypatch) -> None:
    crowd(2, (1,), monkeypatch)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=f"Tuning {FRAMES} frames"):
        run(patched(EI2), SETTINGS.changed(steps=2, smoothing="SmoothVideo", smoothing_weight=0.2))


def test_a_memory_that_is_full_while_weights_are_loaded_is_met_with_advice(monkeypatch) -> None:
    """Torch then raises an error of another kind."""
    model = patched(EI2)

    def full(*_, **__) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.Tensor, "copy_", full)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=f"Tuning {FRAMES} frames"):
        run(model, SETTINGS)
