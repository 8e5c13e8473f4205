"""What a tuning shows on its way: loss, time left and an edit."""

import re
from types import SimpleNamespace

import latent_preview
import pytest
import torch
from PIL.Image import Image

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, TUNE_A_VIDEO_PRESET, method
from consistent_video.modules.inversion.host.invert import invert_clip
from consistent_video.modules.inversion.inversion import InversionSettings
from consistent_video.modules.sampling.host import SampleSettings, sample_clip
from consistent_video.modules.tuning.host import preview, private_copy, progress, training
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.host.preview import PreviewSettings
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs
from consistent_video.modules.tuning.settings import TuneSettings

from ..small import EDIT, EMPTY, FRAMES, HEIGHT, SOURCE, WIDTH, clip_latent
from .tuned import LONG, SETTINGS, assert_same_tuning, lively_model, patched, run


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


PREVIEW = PreviewSettings(EDIT, EMPTY, every=4, steps=3, cfg=4.0)


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


def test_a_preview_minds_where_the_patch_acts() -> None:
    always, seldom, again = (draw(percents=percents) for percents in ((0.0, 1.0), (0.3, 0.31), (0.0, 1.0)))
    assert always == again and always != seldom


def test_a_preview_of_a_long_clip_is_of_as_many_frames_as_a_step_takes() -> None:
    assert draw(SETTINGS.changed(frames_per_step=3)) == draw(frames=3)


def draw(settings: TuneSettings = SETTINGS, frames: int = FRAMES, **patch) -> list[bytes]:
    """Return a preview's pictures before the tuning's first step, of the first frames of one clip."""
    clip = {"samples": clip_latent()["samples"][:frames]}
    clip_model = attach(inflate(lively_model()), *method(EI2, 2, "area"), **patch)
    with torch.inference_mode(False), private_copy.private_copy(clip_model) as copy:
        tuning = training.Tuning(copy, clip_model, TuneInputs(SOURCE, clip), settings)
        pictures = tuning.preview(preview.PreviewSettings(EDIT, EMPTY, 1, 3, 4.0)).draw()
    return [picture.tobytes() for picture in pictures]


def test_a_preview_that_does_not_fit_ends_the_previews_and_not_the_tuning(monkeypatch, caplog) -> None:
    tries = []

    def full(_self) -> None:
        tries.append(1)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(preview.Preview, "draw", full)
    assert_same_tuning(run(patched(EI2), LONG, preview=PREVIEW), run(patched(EI2), LONG))
    assert len(tries) == 1 and "Tuning Preview does not fit" in caplog.text
