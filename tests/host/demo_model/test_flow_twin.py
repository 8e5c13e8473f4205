"""The demo model as a flow-matching one: the same denoiser by another path, walked by the pack's code for flows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from consistent_video.demo.clips import CLIPS
from consistent_video.demo.reader import find_object, read_colour
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, method
from consistent_video.modules.demo_model.host import load_demo_model
from consistent_video.modules.diffusion.path import PathKind
from consistent_video.modules.inversion.host.invert import INVERSION, invert_clip, to_latent
from consistent_video.modules.inversion.inversion import InversionSettings
from consistent_video.modules.motion.variational import estimate_motion
from consistent_video.modules.sampling.host import RelationSettings, SampleSettings, sample_clip
from consistent_video.scripts.clips import read_clip
from consistent_video.scripts.judge import get_psnr

from ..small import in_windows

FRAMES, STEPS = 4, 6
PROMPTS = "a red circle on a white background", "a blue circle on a white background"
PATHS: tuple[PathKind, ...] = ("noise", "flow")


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return read_clip(CLIPS / "red_circle.mp4", FRAMES)[0]


@pytest.fixture(scope="module")
def models(demo) -> dict[str, ModelPatcher]:
    """Return a clip model with attention across frames for each path."""
    loaded = {"noise": demo[0], "flow": load_demo_model("flow")[0]}
    return {path: attach(inflate(model), *method(EI2, temporal="none")) for path, model in loaded.items()}


@pytest.fixture(scope="module")
def latent(demo, frames) -> dict[str, Tensor]:
    with torch.inference_mode():
        return {"samples": demo[2].encode(frames.movedim(1, -1))}


@pytest.fixture(scope="module")
def prompts(demo) -> list[list]:
    return [demo[1].encode_from_tokens_scheduled(demo[1].tokenize(text)) for text in PROMPTS]


def walk(model: ModelPatcher, prompts: list[list], latent: dict[str, Any], **given: Any) -> dict[str, Any]:
    settings = InversionSettings(STEPS, set_alpha_to_one=True, **given)
    return invert_clip(model, prompts[0], prompts[0], latent, settings)


def with_lora(model: ModelPatcher) -> ModelPatcher:
    """Return a model whose prompts' values are changed by a patch of low rank."""
    patched = model.clone()
    weights = model.model.state_dict()
    key = next(key for key in weights if key.endswith("attn2.to_v.weight"))
    up, down = (torch.randn(n, 2, generator=torch.Generator().manual_seed(n)) for n in weights[key].shape)
    assert patched.add_patches({key: ("diff", (up @ down.T,))}, 0.1) == [key]
    return patched


ADDED = {"nothing": lambda model: model, "a LoRA": with_lora, "windows": lambda model: in_windows(model, 3)}


@pytest.mark.parametrize("added", ADDED)
@torch.inference_mode()
def test_at_the_same_noise_levels_it_samples_what_the_other_path_does(added, models, latent, prompts) -> None:
    """A step of Euler along a flow is one of DDIM, at t = sigma / (1 + sigma) and the state over 1 - t."""
    plain = walk(models["noise"], prompts, latent)
    inversion = plain[INVERSION]
    times = inversion.sigmas / (1 + inversion.sigmas)
    flow = to_latent(replace(inversion, sigmas=times, start=plain["samples"] * (1 - times[0]), kind="flow"))
    settings = SampleSettings(5.0, cfg_end=0.5)

    def sample(path: PathKind, start: dict[str, Any], add: Callable[[ModelPatcher], ModelPatcher]) -> Tensor:
        return sample_clip(add(models[path]), prompts[1], prompts[0], start, settings)[0]["samples"]

    add = ADDED[added]
    one, other = sample("noise", plain, add), sample("flow", flow, add)
    assert inversion.sigmas[0] > 2 and away(other, one) < 1e-3 < 0.1 < away(one, latent["samples"])
    changed = away(one, sample("noise", plain, ADDED["nothing"]))
    assert changed > 0.01 if added == "a LoRA" else changed < 1e-3, "in windows too all frames attend to all"


@torch.inference_mode()
def test_the_velocity_is_that_of_the_noise_and_of_the_highest_level_above_it(models) -> None:
    states = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    context = torch.randn(2, 77, 64, generator=torch.Generator().manual_seed(4))
    noise, flow = (models[path].model.diffusion_model for path in PATHS)
    sigma = models["noise"].get_model_object("model_sampling").sigmas[[400, -1]]
    t = sigma / (1 + sigma)
    scaled, eps = states.view(2, -1).T, noise(states, torch.tensor([400.0, 999.0]), context).view(2, -1).T
    x = scaled * (t**2 + (1 - t) ** 2).sqrt()
    velocity = eps - (x - t * eps) / (1 - t)
    found = flow(x.T.reshape(states.shape), 1000 * t, context).view(2, -1).T
    torch.testing.assert_close(found, velocity, rtol=1e-3, atol=1e-3)
    last = flow(states[1:], torch.tensor([1000.0]), context[1:]).view(-1)
    torch.testing.assert_close(last, velocity[:, 1], rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_time_and_velocity_are_exact_in_half_precision(models) -> None:
    """A UNet that predicts no noise gives -x / (1 - t), off by the rounding of the states that it is given alone."""
    states = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0.301, 0.787, 0.901])
    flow, given = models["flow"].model.diffusion_model, states.bfloat16()
    with mock.patch.object(UNetModel, "forward", lambda self, x, timesteps, *_: torch.zeros_like(x)):
        found = flow(given, 1000 * t)
    torch.testing.assert_close(found, -given.float() / (1 - t).view(-1, 1, 1, 1), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_it_is_loaded_a_second_time_as_a_flow(models) -> None:
    load, given = models["flow"].cached_patcher_init
    again = load(*given, disable_dynamic=True).model
    assert type(again.diffusion_model) is type(models["flow"].model.diffusion_model)
    assert (
        not models["flow"].model.diffusion_model.state_dict().keys()
        ^ models["noise"].model.diffusion_model.state_dict().keys()
    )


@torch.inference_mode()
def test_a_clip_is_edited_and_stays_where_it_was(demo, models, latent, prompts, frames) -> None:
    """With the start that is matched to the size, and the relation along the motion."""
    model = models["flow"]
    inverted = walk(model, prompts, latent)
    back = sample_clip(model, prompts[0], prompts[0], inverted, SampleSettings(1.0))[0]
    decoded, kept = (demo[2].decode(each["samples"]).movedim(-1, 1).clamp(0, 1) for each in (latent, back))
    assert get_psnr(kept, decoded) > 27
    relation = RelationSettings(0.5, motion=estimate_motion(frames.movedim(1, -1)), passes=8)
    settings = SampleSettings(3.0, cfg_end=0.5, relation=relation)
    edited = sample_clip(model, prompts[1], prompts[0], inverted, settings)[0]
    pictures = demo[2].decode(edited["samples"]).movedim(-1, 1).clamp(0, 1)
    assert read_colour(pictures) == FRAMES * ["blue"]
    masks, wanted = find_object(pictures)[0] > 0.5, find_object(frames)[0] > 0.5
    assert ((masks & wanted).sum() / (masks | wanted).sum()).item() > 0.8


def away(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()
