"""The courses of training start, stop and go on; what they draw from is what they should."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from consistent_video.demo.captions import PHRASINGS, get_kind, list_captions
from consistent_video.demo.course import Course, run_course
from consistent_video.demo.model import DemoModel
from consistent_video.demo.stages import (
    CaptionTable,
    LatentPool,
    autoencoder_loss,
    get_slopes,
    reconstruct_loss,
    set_latent_scale,
    spread_loss,
)
from consistent_video.demo.world import draw, is_held_out, sample_scene


class SmallCoder(nn.Module):
    """Stands in for the autoencoder: eight by eight pixels become their means and a constant channel."""

    def __init__(self) -> None:
        super().__init__()
        self.vae_scale, self.vae_shift = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))
        self.taesd_encoder = nn.Sequential(nn.AvgPool2d(8), nn.ZeroPad2d((0, 0, 0, 0, 0, 1)))

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.taesd_encoder(pictures * 0.5 + 0.5) / self.vae_scale + self.vae_shift


def make_model() -> DemoModel:
    return DemoModel(unet=nn.Identity(), clip=nn.Identity(), vae=SmallCoder(), latent_scale=0.18215)


def generate(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_course() -> Course:
    """A line that learns to be twice its input."""
    torch.manual_seed(0)
    line, generator = nn.Linear(3, 3, bias=False), generate(1)

    def get_loss() -> torch.Tensor:
        x = torch.randn(32, 3, generator=generator)
        return (line(x) - 2 * x).square().mean()

    return Course("line", line, get_loss, learning_rate=0.1, ema=0.9)


def test_a_course_learns_and_leaves_averaged_weights(tmp_path: Path) -> None:
    course, lines = make_course(), list[str]()
    report = run_course(course, 150, tmp_path, lines.append)
    assert report.steps == 150 and report.loss < 1.5 and lines[0] == "line: step 0 of 150"
    torch.testing.assert_close(course.network.weight.detach(), 2 * torch.eye(3), atol=0.05, rtol=0)


def test_a_stopped_course_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistent_video.demo.course.SAVE_EVERY", -1.0)
    course, lines = make_course(), list[str]()
    losses = iter([course.get_loss] * 20)
    with pytest.raises(StopIteration):
        run_course(replace(course, get_loss=lambda: next(losses)()), 40, tmp_path, print)
    nn.init.zeros_(course.network.weight)
    assert run_course(course, 40, tmp_path, lines.append).steps == 40 and lines[0] == "line: step 20 of 40"
    at_once, again = make_course(), make_course()
    (tmp_path / "at_once").mkdir()
    run_course(at_once, 40, tmp_path / "at_once", print)
    run_course(replace(again, get_loss=lambda: pytest.fail("what is done is not done again")), 40, tmp_path, print)
    assert torch.equal(course.network.weight, at_once.network.weight)
    assert torch.equal(again.network.weight, at_once.network.weight)


def test_the_losses_are_zero_where_they_should_be() -> None:
    pictures = torch.rand(2, 3, 8, 10, generator=generate(0))
    assert reconstruct_loss(pictures, pictures) == 0
    assert [slope.shape[-2:] for slope in get_slopes(pictures)] == [(8, 9), (7, 10)]
    latents = torch.randn(64, 4, 16, 16, generator=generate(0))
    assert spread_loss(latents) < 1e-3 and spread_loss(2 * latents) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("decoder_alone", [False, True])
def test_the_encoder_learns_unless_the_decoder_is_trained_alone(decoder_alone: bool) -> None:
    vae = SmallCoder()
    vae.taesd_encoder = nn.Conv2d(3, 4, 8, 8)
    vae.taesd_decoder = nn.ConvTranspose2d(4, 3, 8, 8)
    autoencoder_loss(vae, 4, generate(5), decoder_alone)().backward()
    assert vae.taesd_decoder.weight.grad.abs().sum() > 0
    assert (vae.taesd_encoder.weight.grad is None) == decoder_alone


def test_model_latents_get_deviation_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistent_video.demo.stages.CHUNK", 64)
    model = make_model()
    set_latent_scale(model, generate(3), batches=1)
    pool = LatentPool(model, 64, generate(3))
    assert pool.latents.std().item() == pytest.approx(1, rel=0.15)
    assert abs(pool.latents.mean().item()) < 0.2


def test_the_pool_renews_its_oldest_part_and_keeps_latents_with_their_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistent_video.demo.stages.CHUNK", 16)
    pool, scene = LatentPool(make_model(), 24, generate(4)), sample_scene(16, generate(4))
    torch.testing.assert_close(pool.latents[:16], make_model().encode(draw(scene)[0]).detach())
    assert torch.equal(pool.kinds[:16], get_kind(scene))
    for renewed in (range(16), range(16, 24), range(16)):
        before = pool.latents.clone()
        pool.refresh()
        changed = (pool.latents != before).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == list(renewed)
    latents, kinds = pool.sample(20)
    same = (pool.latents.unsqueeze(0) == latents.unsqueeze(1)).flatten(2).all(-1)
    assert all(kinds[i] in pool.kinds[same[i]] for i in range(20))


def test_kinds_in_training_have_no_held_out_pair() -> None:
    scene, rows = sample_scene(200, generate(6)), list_captions()
    held = {row[0] for row in rows if row[0].startswith("a red triangle")}
    texts = {rows[kind][0] for kind in get_kind(scene).tolist()}
    assert held and not held & texts and not is_held_out(scene.colour, scene.shape).any()


def test_captions_are_dropped_as_often_as_asked() -> None:
    tokens = torch.arange(1, 5).view(4, 1, 1).expand(4, PHRASINGS, 77)
    table = CaptionTable(tokens, torch.zeros(77, dtype=torch.long), generate(8))
    kinds = torch.arange(4).repeat(250)
    chosen = table.sample(kinds, drop=0.1)
    dropped = chosen[:, 0] == 0
    assert 60 < dropped.sum() < 140
    assert torch.equal(chosen[~dropped, 0], kinds[~dropped] + 1)
