"""Null-text optimisation in the host: what it promises is what the host's own sampler walks."""

import json
from types import SimpleNamespace

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, RescaleCFG
from torch import Tensor
from torch.nn import functional as F

from consistent_video.demo.clips import CLIPS
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, method
from consistent_video.modules.demo_model.host import load_demo_model
from consistent_video.modules.diffusion.ddim import state_to_latent
from consistent_video.modules.diffusion.schedule import ddim_sigmas
from consistent_video.modules.inversion.host.invert import INVERSION, trajectory
from consistent_video.modules.inversion.host.null_text import by_step, optimize_negative
from consistent_video.modules.inversion.null_text import NullTextSettings
from consistent_video.modules.judging.host.reconstruct import reconstruct
from consistent_video.nodes.null_text import NullTextOptimization
from consistent_video.scripts.clips import read_clip

from ..edits import FRAMES, edit, invert, patched
from ..small import EMPTY, SOURCE, SmallV, in_windows, random_model

CFG, DEMO_STEPS = 7.5, 4


@pytest.fixture(scope="module")
def demo() -> SimpleNamespace:
    """The demo model, four frames of 64 x 64 pixels, inverted, and what the node made of them."""
    model, text, vae = load_demo_model()
    source, empty = (text.encode_from_tokens_scheduled(text.tokenize(words)) for words in ("a yellow star", ""))
    clip = attach(inflate(model), *method(EI2, 4, "area"))
    frames = read_clip(CLIPS / "yellow_star.mp4")[0][:FRAMES].movedim(1, -1)[:, :64, :64]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(NullTextOptimization, "hidden", SimpleNamespace(unique_id="1"))
        inversion = invert(clip, {"samples": vae.encode(frames)}, positive=source, steps=DEMO_STEPS, denoise=0.0)
        given = {"cfg": CFG, "inner_steps": 2, "learning_rate": 1e-2, "tolerance": 0.0, "gradient_checkpointing": False}
        made, report = NullTextOptimization.execute(clip, inversion, source, empty, **given).args
    return SimpleNamespace(
        model=clip, vae=vae, source=source, empty=empty, inversion=inversion, made=made, report=json.loads(report)
    )


def walked_errors(model, inversion, source: list, negative: list) -> list[float]:
    """How far the host's own guided sampling is from the inversion after each step."""
    states, found = trajectory(model.model, inversion[INVERSION]), inversion[INVERSION]
    errors: list[float] = []

    def watch(level: int, x: Tensor) -> None:
        pair = (state_to_latent(state, found.sigmas[level]) for state in (x.cpu(), states[level]))
        errors.append(F.mse_loss(*pair).item())

    edit(model, inversion, CFG, source, negative, watch)
    return errors


def test_each_step_comes_nearer_to_the_inversion(demo) -> None:
    report = demo.report
    assert all(after < before for after, before in zip(report["error_after"], report["error_before"], strict=True))
    assert all(after < plain for after, plain in zip(report["error_after"], report["error_plain"], strict=True))
    assert report["inner_steps_used"] == [2] * DEMO_STEPS == [report["inner_steps"]] * report["steps"]
    assert report["reconstruction_error"] == report["error_after"][-1] < report["reconstruction_error_plain"]
    assert report["sigmas"] == pytest.approx(demo.inversion[INVERSION].sigmas[:-1].tolist())


def test_sampling_walks_what_was_optimised(demo) -> None:
    for negative, told in ((demo.made, "error_after"), (demo.empty, "error_plain")):
        found = walked_errors(demo.model, demo.inversion, demo.source, negative)
        assert found == pytest.approx(demo.report[told], rel=1e-3)


def test_one_embedding_serves_all_frames(demo) -> None:
    assert len(demo.made) == DEMO_STEPS
    for states, values in demo.made:
        assert states.shape == demo.empty[0][0].shape and states.dtype == torch.float32 and len(states) == 1
        rest = {key: value for key, value in values.items() if not key.endswith("_percent")}
        assert rest.keys() == demo.empty[0][1].keys()
    assert not any(torch.equal(demo.made[i][0], demo.made[i - 1][0]) for i in range(DEMO_STEPS))


def test_the_reconstruction_report_sees_it(demo) -> None:
    with torch.inference_mode():
        given = [
            reconstruct(demo.model, demo.vae, demo.source, negative, demo.inversion, CFG)[1]
            for negative in (demo.made, demo.empty)
        ]
    optimised, plain = (torch.tensor(found.psnr).mean() for found in given)
    assert optimised > plain + 0.2 and given[0].drift[-1] < given[1].drift[-1]


def test_without_inner_steps_it_is_the_negative_itself(model, latent) -> None:
    inversion = invert(model, latent, steps=2)
    made = optimize_negative(model, SOURCE, EMPTY, inversion, NullTextSettings(CFG, 0))
    assert made.found.after == made.plain and len(made.conditioning) == 2
    found, expected = (edit(model, inversion, CFG, negative=negative) for negative in (made.conditioning, EMPTY))
    assert torch.equal(found, expected)


def test_it_knows_v_prediction(latent) -> None:
    model = patched(SmallV)
    inversion = invert(model, latent, steps=2)
    with torch.inference_mode():
        made = optimize_negative(model, SOURCE, EMPTY, inversion, NullTextSettings(CFG, 1, 1e-2, 0.0))
    assert walked_errors(model, inversion, SOURCE, made.conditioning) == pytest.approx(made.found.after, rel=1e-3)
    assert all(after < plain for after, plain in zip(made.found.after, made.plain, strict=True))


@pytest.mark.parametrize(("steps", "denoise", "zsnr"), [(20, 1.0, True), (199, 0.2, False)])
def test_at_each_noise_level_one_entry_acts(steps: int, denoise: float, zsnr: bool) -> None:
    model = random_model()
    if zsnr:
        (model,) = ModelSamplingDiscrete().patch(model, "v_prediction", True)
    sampling = model.get_model_object("model_sampling")
    sigmas = ddim_sigmas(sampling.sigmas.cpu(), steps, denoise)
    conds = [values for _, values in by_step(EMPTY, torch.zeros(steps, 1, 1), sigmas, sampling)]
    comfy.samplers.calculate_start_end_timesteps(SimpleNamespace(model_sampling=sampling), conds)
    starts, ends = (torch.tensor([cond[key] for cond in conds]) for key in ("timestep_start", "timestep_end"))
    for rounding in (0.999, 1.0, 1.001):
        told = rounding * sigmas[:-1, None]
        assert torch.equal((ends <= told) & (told <= starts), torch.eye(steps).bool())


def refused(model, inversion, negative=EMPTY, positive=SOURCE) -> None:
    with torch.inference_mode():
        optimize_negative(model, positive, negative, inversion, NullTextSettings())


def test_what_it_is_not_for_is_refused(model, latent, plain) -> None:
    with pytest.raises(ValueError, match="^inversion was made by edit-friendly DDPM.* to DDIM"):
        refused(model, invert(model, latent, steps=2, method="edit-friendly DDPM"))
    with pytest.raises(ValueError, match="^inversion is a latent that was not inverted"):
        refused(model, latent)
    with pytest.raises(ValueError, match="^positive has 3 prompts and the clip 4 frames"):
        refused(model, plain, positive=[[SOURCE[0][0].repeat(3, 1, 1), SOURCE[0][1]]])
    with pytest.raises(ValueError, match="^negative has 4 prompts, and one embedding is optimised for all frames"):
        refused(model, plain, [[EMPTY[0][0].repeat(FRAMES, 1, 1), EMPTY[0][1]]])
    with pytest.raises(ValueError, match="^negative carries control, which would have no effect here"):
        refused(model, plain, [[EMPTY[0][0], {"control": None}]])
    with pytest.raises(ValueError, match="^model carries RescaleCFG .* here and to Smooth Sample"):
        refused(RescaleCFG().patch(model, 0.7)[0], plain)
    with pytest.raises(ValueError, match="^model carries context windows"):
        refused(in_windows(model, FRAMES - 1), plain)


def test_an_interrupt_leaves_the_model_as_it_was(model, plain, monkeypatch) -> None:
    before, generator = edit(model, plain), torch.get_rng_state()

    def interrupt() -> None:
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        refused(model, plain)
    monkeypatch.undo()
    assert torch.equal(torch.get_rng_state(), generator) and torch.equal(edit(model, plain), before)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
