"""The reconstruction of an inverted clip, judged in the host."""

import json
from typing import Any

import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from consistent_video.modules.demo_model.host import WEIGHTS
from consistent_video.modules.inversion.host.invert import INVERSION, trajectory
from consistent_video.modules.judging.host.reconstruct import decode, reconstruct
from consistent_video.nodes.report import ReconstructionReport

from .. import flows
from ..edits import FRAMES, HEIGHT, STEPS, WIDTH, away, edit, invert, patched, small_latent
from ..small import EMPTY, SOURCE


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    return patched()


@pytest.fixture(scope="module")
def latent() -> dict[str, Tensor]:
    return small_latent()


@pytest.fixture(scope="module")
def plain(model, latent) -> dict[str, Any]:
    return invert(model, latent)


@pytest.fixture(scope="module")
def refined(model, latent) -> dict[str, Any]:
    return invert(model, latent, refinements=4)


@pytest.fixture(scope="module")
def vae() -> comfy.sd.VAE:
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(WEIGHTS / "vae.safetensors"), safe_load=True))


def test_a_refined_inversion_comes_back_well(model, refined, vae) -> None:
    frames, found, advice = reconstruct(model, vae, SOURCE, EMPTY, refined, 1.0)
    assert frames.shape == (FRAMES, 8 * HEIGHT, 8 * WIDTH, 3) and 0 <= frames.min() and frames.max() <= 1
    assert len(found.psnr) == len(found.ssim) == FRAMES and len(found.drift) == STEPS
    assert min(found.psnr) > 40 and min(found.ssim) > 0.99 and max(found.drift) < 0.01
    assert advice == []
    expected = decode(vae, edit(model, refined, 1.0, SOURCE))
    assert away(frames.movedim(-1, 1), expected) < 1e-5


def test_pictures_of_a_vae_of_videos_are_judged_as_others() -> None:
    qwen = flows.make("Qwen-Image")
    given = flows.as_encoded(qwen, flows.clip_of(FRAMES))
    inverted = invert(qwen, given, positive=flows.SOURCE, negative=flows.EMPTY, denoise=0.8, refinements=6)
    vae = flows.video_vae()
    frames, found, _ = reconstruct(qwen, vae, flows.SOURCE, flows.EMPTY, inverted, 1.0)
    assert frames.shape == (FRAMES, 8 * HEIGHT, 8 * WIDTH, 3)
    assert min(found.psnr) > 40 and max(found.drift) < 0.01
    edited = edit(qwen, inverted, positive=flows.SOURCE, negative=flows.EMPTY, cfg=1.0)
    assert away(frames[2], vae.decode(edited[2:3])[0, 0]) < 1e-3 < 1e-2 < away(frames[2], frames[1])


def test_a_bad_reconstruction_names_what_would_help(model, latent, plain, vae) -> None:
    related = invert(model, latent, 0.5)
    _, found, advice = reconstruct(model, vae, SOURCE, EMPTY, related, 7.5)
    assert min(found.psnr) < 25 and found.drift[-1] > 0.1
    assert [line.split(" ")[1] for line in advice] == ["direction", "cfg", "cfg", "refinements", "steps", "the"]
    _, _, advice = reconstruct(model, vae, SOURCE, EMPTY, plain, 1.0)
    assert [line.split(" ")[1] for line in advice] == ["refinements", "steps", "the"]
    complementary = invert(model, latent, 0.0, reading="complementary")
    assert "direction" in reconstruct(model, vae, SOURCE, EMPTY, complementary, 1.0)[2][0]


def test_the_drift_is_seen_at_each_step(model, plain, vae) -> None:
    states: list[Tensor] = []
    edit(model, plain, 1.0, SOURCE, watch=lambda _, x: states.append(x.cpu()))
    _, found, _ = reconstruct(model, vae, SOURCE, EMPTY, plain, 1.0)
    expected = trajectory(model.model, plain[INVERSION])[1:]
    assert found.drift == pytest.approx([away(*pair) for pair in zip(states, expected, strict=True)], rel=1e-4)
    assert found.drift[-1] == pytest.approx(away(states[-1], expected[-1])) and found.drift[-1] > 0.01


def test_the_report_node_tells_it(model, plain, vae) -> None:
    with torch.inference_mode():
        images, report, plot, data = ReconstructionReport.execute(model, vae, SOURCE, EMPTY, plain, 1.0).args
    told = json.loads(data)
    assert told.keys() == {"psnr", "ssim", "drift", "worst", "remedies"}
    assert images.shape[0] == FRAMES and plot.shape == (1, 480, 800, 3)
    assert f"({told['worst']})" in report and all(line in report for line in told["remedies"])
