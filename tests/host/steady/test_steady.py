"""Steady Frames in the host: images and latents, and what does not fit."""

import json
from typing import Any

import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException, interrupt_current_processing
from torch import Tensor

from consistent_video.modules.motion.flow import motion_of
from consistent_video.modules.steady.host import steady_clip
from consistent_video.modules.steady.steady import SteadySettings, steady_edit
from consistent_video.nodes.steady import SteadyFrames


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def steady(source: Any, edited: Any, **given: Any) -> tuple[Any, dict]:
    clip, report = SteadyFrames.execute(
        **{"source": source, "edited": edited, "strength": 0.5, "passes": 3, **given}
    ).args
    return clip, json.loads(report)


MOTION = motion_of(draw(3, 2, 12, 20), -draw(3, 2, 12, 20))
IMAGES = draw(4, 12, 20, 3), draw(4, 12, 20, 3, seed=1)
SAMPLES = torch.randn(2, 4, 5, 6, 10, generator=torch.Generator().manual_seed(2))


@torch.inference_mode()  # as nodes run
def test_images_give_images_and_latents_latents_along_one_motion() -> None:
    mask = draw(12, 20).round()
    found, report = steady(*IMAGES, motion=MOTION, mask=mask, direction="forward", frame_strengths="1, 1, 0.5, 1")
    source, edited = (images.movedim(-1, 1) for images in IMAGES)
    settings = SteadySettings(0.5, 3, "forward", 0.0, (1.0, 1.0, 0.5, 1.0))
    expected, _ = steady_edit(source, edited, settings, MOTION, mask[None, None])
    torch.testing.assert_close(found, expected.clamp(0, 1).movedim(1, -1))
    assert report["strength"] == 0.5 and report["unsteadiness_after"] < report["unsteadiness_before"]

    before, after = ({"samples": samples.half(), "kept": 1} for samples in SAMPLES)
    found, report = steady(before, after, motion=MOTION)
    expected, _ = steady_edit(SAMPLES[0].half().float(), SAMPLES[1].half().float(), SteadySettings(0.5, 3), MOTION)
    torch.testing.assert_close(found["samples"], expected.half())
    assert found.keys() == {"samples", "kept"} and report["texture"] < 1 and report["changed"] > 0
    stills = [{"samples": samples.half()[:, :, None]} for samples in SAMPLES]  # as Qwen-Image's
    assert steady(*stills, motion=MOTION)[0]["samples"].equal(found["samples"][:, :, None])
    assert steady(before, after, strength=0.0)[0]["samples"].equal(after["samples"])
    assert steady(*IMAGES, strength=0.0)[0].equal(IMAGES[1])


def test_progress_is_shown_and_an_interrupt_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: shown.append((done, total)))
    steady_clip(*IMAGES, SteadySettings(0.5, 9))
    assert shown[0] == (1, 6) and shown[-1] == (6, 6), "three frames ahead and back"
    interrupt_current_processing()
    with pytest.raises(InterruptProcessingException):
        steady_clip(*IMAGES, SteadySettings(0.5, 9))


@pytest.mark.parametrize(
    ("source", "edited", "given", "message"),
    [
        (IMAGES[0], {"samples": SAMPLES[0]}, {}, "source is images and edited a latent. Connect both"),
        (IMAGES[0], IMAGES[1][:3], {}, r"source has the shape \(4, 3, 12, 20\) and edited \(3, 3, 12, 20\)"),
        (IMAGES[0], IMAGES[1][:, :8], {}, "Both are of the same clip"),
        ({"samples": SAMPLES[0]}, {"samples": SAMPLES[1][:, :3]}, {}, "latents by the same VAE"),
        ({"samples": SAMPLES}, {"samples": SAMPLES}, {}, r"source has shape \(2, 4, 5, 6, 10\); a clip of image lat"),
        (
            *IMAGES,
            {"motion": motion_of(draw(2, 2, 6, 6), draw(2, 2, 6, 6))},
            "motion is of 3 frames and the clip has 4",
        ),
        (*IMAGES, {"mask": torch.zeros(1, 12, 20)}, "mask selects nothing"),
        (*IMAGES, {"mask": torch.ones(3, 12, 20)}, "mask has 3 frames and the clip 4"),
        (*IMAGES, {"frame_strengths": "1, x"}, "frame_strengths '1, x' is not a list of numbers"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(source: Any, edited: Any, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steady(source, edited, **given)
