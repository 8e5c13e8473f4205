"""Prompt tokens in a conditioning: the host samples with them."""

from unittest import mock

import comfy.samplers
import pytest
import torch

from nodes import ControlNetApplyAdvanced, KSampler

from ..small import EDIT, EMPTY, FRAMES, HEIGHT, TOKENS, UNET, WIDTH, clip_latent, control_net, sample
from .learned import clip_model, with_tokens

LENGTH = TOKENS + 5


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_host_samples_with_them(far, cfg: float) -> None:
    model, latent = clip_model(), clip_latent()
    plain = sample(model, latent, cfg)
    edited = sample(model, latent, cfg, with_tokens(far), with_tokens(far, EMPTY))
    assert edited.isfinite().all() and (edited - plain).norm() > 1e-2 * plain.norm()


def test_each_frame_is_drawn_with_its_own_tokens(far) -> None:
    """Frame by frame in an image model, which has no other tie between the frames."""
    model, latent = clip_model(), clip_latent()
    whole = sample(model, latent, 1.0, with_tokens(far))
    contexts = with_tokens(far)[0][0]
    for i in range(FRAMES):
        alone = sample(model, latent, 1.0, [[contexts[i : i + 1], EDIT[0][1]]])
        torch.testing.assert_close(whole[i], alone[i], rtol=1e-4, atol=1e-4)
        assert (whole[i] - alone[i - 1]).norm() > 1e-3 * whole[i].norm()


def calls(model, positive, negative) -> tuple[list, torch.Tensor]:
    """Return how many conditionings each UNet call had, and the sample."""
    seen = []

    def note(executor, *args, **kwargs):
        seen.append(list(args[5]["cond_or_uncond"]))
        return executor(*args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "note", note)
    return seen, sample(watched, clip_latent(), 3.0, positive, negative)


def test_with_tokens_on_both_sides_guidance_is_one_call(far) -> None:
    model = clip_model()
    seen, joined = calls(model, with_tokens(far), with_tokens(far, EMPTY, FRAMES, 0.0, 0.0))
    assert all(sorted(call) == [0, 1] for call in seen)
    with mock.patch.object(comfy.samplers, "can_concat_cond", lambda one, other: one is other):
        apart, separate = calls(model, with_tokens(far), with_tokens(far, EMPTY, FRAMES, 0.0, 0.0))
    assert all(len(call) == 1 for call in apart)
    torch.testing.assert_close(joined, separate, rtol=1e-4, atol=1e-4)


def test_with_tokens_on_one_side_the_host_makes_two_calls_and_draws_right(far) -> None:
    seen, mixed = calls(clip_model(), with_tokens(far), EMPTY)
    assert {len(call) for call in seen} == {1} and mixed.isfinite().all()


def test_a_long_prompt_is_joined_with_a_short_one(far) -> None:
    """One of two pieces, one of a single piece: the host repeats the shorter."""
    width = UNET["context_dim"]
    one, two = (torch.randn(1, 77 * n, width, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    sides = [with_tokens(far, [[states, EDIT[0][1]]]) for states in (two, one)]
    seen, joined = calls(clip_model(), *sides)
    assert all(len(call) == 2 for call in seen)
    with mock.patch.object(comfy.samplers, "can_concat_cond", lambda one, other: one is other):
        _, separate = calls(clip_model(), *sides)
    torch.testing.assert_close(joined, separate, rtol=1e-4, atol=1e-4)


def test_ksampler_and_controlnet_take_them(far) -> None:
    model, latent = clip_model(), clip_latent()
    hint = torch.rand(FRAMES, 8 * HEIGHT, 8 * WIDTH, 3, generator=torch.Generator().manual_seed(7))
    sides = with_tokens(far), with_tokens(far, EMPTY)
    given = (3, 2, 3.0, "euler", "normal")
    plain = KSampler().sample(model, *given, *sides, latent)[0]["samples"]
    controlled = ControlNetApplyAdvanced().apply_controlnet(*sides, control_net(), hint, 1.0, 0.0, 1.0)
    controlled = KSampler().sample(model, *given, *controlled, latent)[0]["samples"]
    assert plain.shape == controlled.shape == latent["samples"].shape
    assert controlled.isfinite().all() and (controlled - plain).norm() > 1e-3 * plain.norm()


def test_another_clip_length_is_interpolated_and_said(far, caplog) -> None:
    assert with_tokens(far) and not caplog.text
    longer = with_tokens(far, EDIT, 2 * FRAMES - 1)[0][0]
    assert longer.shape == (2 * FRAMES - 1, LENGTH, UNET["context_dim"])
    assert torch.equal(longer[::2], with_tokens(far)[0][0])
    assert "has 9 frames and the prompt tokens were learned on 5" in caplog.text
    assert (
        sample(clip_model(), clip_latent(2 * FRAMES - 1), 1.0, with_tokens(far, EDIT, 2 * FRAMES - 1)).isfinite().all()
    )


def test_the_given_conditioning_stays(far) -> None:
    states, values = EDIT[0][0].clone(), dict(EDIT[0][1])
    ((_, given),) = with_tokens(far)
    assert torch.equal(EDIT[0][0], states) and EDIT[0][1].keys() == values.keys()
    assert given is not EDIT[0][1] and torch.equal(given["pooled_output"], values["pooled_output"])
