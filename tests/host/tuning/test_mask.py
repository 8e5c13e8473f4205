"""Masks of a tuning, and the rows that belong to the frames of a step."""

import pytest
import torch
from comfy.model_base import BaseModel

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, method
from consistent_video.modules.tuning.host.tune_inputs import latent_mask
from consistent_video.modules.tuning.tuner import Tuner

from ..small import FRAMES, HEIGHT, TOKENS, UNET, WIDTH, random_model
from .tuned import SETTINGS, assert_same_tuning, patched, run


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
    tune = run(patched(PER_FRAME), SETTINGS.changed(steps=12, frames_per_step=2), mask=mask)
    assert 0 in tune.info["loss"] and all(torch.isfinite(torch.tensor(tune.info["loss"])))


@pytest.mark.parametrize("num_frames", [0, FRAMES])
def test_the_frames_of_a_step_come_with_their_own_rows(num_frames: int, monkeypatch) -> None:
    """A conditioning may have a row for each frame."""
    rows = torch.randn(FRAMES, TOKENS, UNET["context_dim"], generator=torch.Generator().manual_seed(8))
    taken, seen = [], []
    draw, apply_model = Tuner.draw, BaseModel.apply_model

    def noted(self):
        drawn = draw(self)
        taken.append(drawn.frames)
        return drawn

    def seeing(self, x, sigma, c_crossattn=None, **kwargs):
        seen.append((len(x), c_crossattn.cpu()))
        return apply_model(self, x, sigma, c_crossattn=c_crossattn, **kwargs)

    monkeypatch.setattr(Tuner, "draw", noted)
    monkeypatch.setattr(BaseModel, "apply_model", seeing)
    model = attach(inflate(random_model(), num_frames), *method(EI2, 2, "area"))
    run(model, SETTINGS.changed(steps=6, frames_per_step=2), positive=[[rows, {}]])
    assert len({frames.start for frames in taken}) > 2
    for frames, (count, text) in zip(taken, seen, strict=True):
        assert count == 2 and torch.equal(text, rows[frames])
