"""The nodes that sample: their previews, and the host's own sampler node."""

import gc
import json
import weakref
from dataclasses import replace

import comfy.samplers
import latent_preview
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import DisableNoise, Guider_DualCFG, SamplerCustomAdvanced
from torch import Tensor

from consistent_video.modules.diffusion.host import run
from consistent_video.modules.inversion.host import invert as host
from consistent_video.modules.inversion.host.invert import INVERSION
from consistent_video.modules.sampling import host as sampling_host
from consistent_video.modules.sampling.host import InvertedClipSampler
from consistent_video.nodes.sample import InterframeNoiseRelation, SmoothSample, SmoothSampler

from ..edits import FACTOR, FRAMES, STEPS, away, edit, invert, left_half, relation, still
from ..small import EDIT, EMPTY, random_model


@pytest.mark.parametrize("to_one", [False, True])
def test_the_preview_plays_the_clip(model, latent, monkeypatch, to_one: bool) -> None:
    inversion = invert(model, latent, set_alpha_to_one=to_one)
    seen: list[tuple] = []
    monkeypatch.setattr(
        run.latent_preview, "prepare_callback", lambda *_: lambda step, x_0, x, total: seen.append((step, x_0, total))
    )
    states: dict[int, Tensor] = {}
    edit(model, inversion, watch=states.__setitem__)
    assert [(step, total) for step, _, total in seen] == [(step, STEPS) for step in range(STEPS)]
    last = seen[-1][1].cpu()  # the last step predicts the clip without noise; the host keeps it
    sigma, sigma_end = inversion[INVERSION].sigmas[-2:]
    assert away(last + sigma_end * (states[STEPS - 1].cpu() - last) / sigma, states[STEPS]) < 1e-5
    assert (away(last, states[STEPS]) < 1e-5) == to_one
    ended = states[STEPS]
    for step, x_0, _ in seen[:-1]:
        near = [away(x_0[0].cpu(), frame) for frame in ended]
        assert near.index(min(near)) == step % FRAMES


@pytest.mark.parametrize("to_one", [False, True])
def test_the_hosts_sampler_node_previews_the_clip_too(model, latent, monkeypatch, to_one: bool) -> None:
    inversion = invert(model, latent, set_alpha_to_one=to_one)
    seen: list[Tensor] = []
    monkeypatch.setattr(latent_preview, "get_previewer", lambda *_: Watcher(seen))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(EDIT, EMPTY)
    guider.set_cfg(4.0)
    sampler, sigmas = SmoothSampler.execute(inversion).args
    (noise,) = DisableNoise.execute().args
    out, denoised = (
        given["samples"] for given in SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, inversion).args
    )
    assert (away(denoised, out) < 1e-5) == to_one, "only at noise level 0 is the clip the last prediction"
    near = [[away(x_0[0].cpu(), FACTOR * frame) for frame in out.cpu()] for x_0 in seen[:-1]]
    assert [frames.index(min(frames)) for frames in near] == [step % FRAMES for step in range(STEPS - 1)]


def test_a_preview_that_plays_all_frames_itself_gets_them_in_order(model, latent, monkeypatch) -> None:
    inversion, seen = invert(model, latent), []

    class Player(latent_preview.LatentPreviewer):
        def decode_latent_to_preview_image(self, _format: str, x_0: Tensor) -> None:
            seen.append(x_0)

    monkeypatch.setattr(latent_preview, "get_previewer", lambda *_: Player())
    ended = edit(model, inversion).cpu()
    for x_0 in seen:
        near = [away(FACTOR * x_0[0].cpu(), frame) for frame in ended]
        assert near.index(min(near)) == 0
    assert len(seen) == STEPS


class Watcher:
    """A previewer that notes what it is to draw."""

    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def decode_latent_to_preview_image(self, _format: str, x_0: Tensor) -> None:
        self.seen.append(x_0)


@pytest.mark.parametrize(
    "settings",
    [
        {"relation": relation(motion=still())},
        {"mask": left_half(), "eta": 0.4, "seed": 9},
        {"start_step": 1, "end_step": 4, "relation": relation(0.3)},
        {"cfg_end": 0.4},
        {"cfg_end": 0.0},
    ],
    ids=["relation", "mask and eta", "part", "guided at first", "not guided"],
)
def test_the_hosts_sampler_node_samples_the_same(model, plain, settings: dict) -> None:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(EDIT, EMPTY)
    guider.set_cfg(4.0)
    sampler, sigmas = SmoothSampler.execute(plain, **settings).args
    assert isinstance(sampler, InvertedClipSampler)
    (noise,) = DisableNoise.execute().args
    for _ in range(2):  # ComfyUI keeps the guider
        out = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, plain).args[0]["samples"]
        assert torch.equal(out.cpu(), edit(model, plain, **settings))
        assert guider.cfg == 4.0


def test_an_image_model_in_the_guider_is_refused(plain) -> None:
    guider = comfy.samplers.CFGGuider(random_model())
    guider.set_conds(EDIT, EMPTY)
    with pytest.raises(ValueError, match="guider's model is an image model"):
        SamplerCustomAdvanced.execute(*DisableNoise.execute().args, guider, *SmoothSampler.execute(plain).args, plain)


def test_the_sampler_keeps_nothing_of_a_sampling(model, plain, monkeypatch) -> None:
    """ComfyUI keeps it from one run to the next."""
    walked = []

    def noted(*given):
        states = host.trajectory(*given)
        walked.append(weakref.ref(states))
        return states

    monkeypatch.setattr(sampling_host, "trajectory", noted)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(EDIT, EMPTY)
    sampler, sigmas = SmoothSampler.execute(plain).args
    SamplerCustomAdvanced.execute(DisableNoise.execute().args[0], guider, sampler, sigmas, plain)
    gc.collect()
    assert len(walked) == 1 and walked[0]() is None and len(sampler.report["texture"]) == STEPS


def test_an_interrupt_leaves_the_guider_its_guidance(model, plain) -> None:
    guider, seen = comfy.samplers.CFGGuider(model.clone()), list[float]()
    guider.set_conds(EDIT, EMPTY)
    guider.set_cfg(4.0)
    sampler, sigmas = SmoothSampler.execute(plain, cfg_end=0.4).args

    def interrupt(call, *given):
        seen.append(guider.cfg)
        if len(seen) == 4:
            raise InterruptProcessingException
        return call(*given)

    guider.model_patcher.add_wrapper(WrappersMP.PREDICT_NOISE, interrupt)
    (noise,) = DisableNoise.execute().args
    with pytest.raises(InterruptProcessingException):
        SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, plain)
    assert seen == [4.0, 4.0, 1.0, 1.0] and guider.cfg == 4.0


def test_the_end_of_guidance_of_another_kind_is_refused(model, plain) -> None:
    guider = Guider_DualCFG(model)
    guider.set_conds(EDIT, EMPTY, EMPTY)
    guider.set_cfg(3.0, 1.5)
    (noise,) = DisableNoise.execute().args
    sampler, sigmas = SmoothSampler.execute(plain, cfg_end=0.4).args
    with pytest.raises(ValueError, match=r"cfg_end 0\.4 ends the guidance of CFGGuider, and Guider_DualCFG"):
        SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, plain)
    sampler, sigmas = SmoothSampler.execute(plain, cfg_end=1.0).args
    assert SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, plain).args[0]["samples"].isfinite().all()


def test_the_nodes_give_what_they_are_told_to(model, plain) -> None:
    widgets = {"strength": 0.4, "start": 0.2, "end": 0.9, "keep_texture": 0.5, "frame_strengths": " 1, .5,0, 1 "}
    (given,) = InterframeNoiseRelation.execute(**widgets, motion=still(), mask=left_half()).args
    assert (given.strength, given.start, given.end, given.keep_texture) == (0.4, 0.2, 0.9, 0.5)
    assert given.frames == (1.0, 0.5, 0.0, 1.0) and given.motion is not None
    assert given.steps == (1.0,)
    more = {"step_strengths": "1, 0", "passes": 3}
    (falling,) = InterframeNoiseRelation.execute(**{**widgets, "frame_strengths": ""}, **more).args
    assert falling.frames == (1.0,) and (falling.steps, falling.passes) == ((1.0, 0.0), 3)
    assert away(edit(model, plain, relation=falling), edit(model, plain, relation=replace(falling, passes=1))) > 1e-3
    with pytest.raises(ValueError, match="frame_strengths '1, a' is not a list of numbers"):
        InterframeNoiseRelation.execute(**{**widgets, "frame_strengths": "1, a"})
    with torch.inference_mode():
        latent, report = SmoothSample.execute(model, EDIT, EMPTY, plain, 4.0, relation=given, eta=0.3, seed=2).args
    assert torch.equal(latent["samples"].cpu(), edit(model, plain, relation=given, eta=0.3, seed=2))
    assert json.loads(report).keys() == {"relation", "texture"} and INVERSION not in latent
