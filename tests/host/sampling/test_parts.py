"""Parts of the clip and of the steps: masks, a later start, an early end."""

import itertools

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from consistent_video.modules.inversion.host.invert import INVERSION, invert_clip, trajectory
from consistent_video.modules.inversion.inversion import InversionSettings, Noise, Start

from ..edits import FACTOR, FRAMES, NOISES, STEPS, WIDTH, away, edit, invert, left_half, relation
from ..small import EMPTY, SOURCE


@pytest.mark.parametrize("how", [{}, {"eta": 0.6, "seed": 3}, {"relation": relation()}], ids=str)
def test_outside_of_the_mask_the_clip_stays(model, latent, plain, edited, how: dict) -> None:
    samples = edit(model, plain, mask=left_half(), **how)
    assert away(samples[..., WIDTH // 2 :], latent["samples"][..., WIDTH // 2 :]) < 1e-4
    assert away(samples[..., : WIDTH // 2], latent["samples"][..., : WIDTH // 2]) > 0.1
    white = edit(model, plain, mask=torch.ones_like(left_half(FRAMES)), **how)
    assert away(white, edit(model, plain, **how)) < 1e-4


def test_each_frame_may_have_its_mask(model, latent, plain) -> None:
    mask = left_half(FRAMES)
    mask[2] = 0
    samples = edit(model, plain, mask=mask)
    assert away(samples[2], latent["samples"][2]) < 1e-4
    assert away(samples[1], latent["samples"][1]) > 0.1
    with pytest.raises(ValueError, match="mask has 3 frames and the clip 4"):
        edit(model, plain, mask=left_half(3))


def test_a_later_start_keeps_more_of_the_clip(model, latent, plain, edited) -> None:
    found = [away(edit(model, plain, start_step=step), latent["samples"]) for step in range(STEPS)]
    assert found[0] == away(edited, latent["samples"])
    assert all(after < before for before, after in itertools.pairwise(found)), found
    assert found[-1] < 0.05 < found[0]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("start", ["inverted latent", "clean latent"])
def test_a_later_start_has_the_noise_relation_too(model, latent, start: Start, noise: Noise, step: int) -> None:
    inversion = invert(model, latent, 0.8, "backward", start=start, noise=noise, seed=5)
    made, states = inversion[INVERSION], trajectory(model.model, inversion[INVERSION])
    sigma, clean, eps = made.sigmas[step], FACTOR * latent["samples"], made.noises[step].float()
    fresh = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    added = fresh if noise == "Gaussian" else (states[step] - clean) / sigma
    blended = eps.clone()
    for n in range(FRAMES - 1):
        blended[n] = 0.2 * eps[n] + 0.8 * (eps[n + 1] + added[n] - added[n + 1])
    if noise == "Gaussian":
        blended = torch.stack([mine * its.std() / mine.std() for mine, its in zip(blended, eps, strict=True)])
    expected = clean + sigma * blended if start == "clean latent" else states[step] + sigma * (blended - eps)
    assert away(made.start_at(states, step), expected) < 1e-4
    assert away(made.start_at(states, step), states[step]) > 5e-3


def test_sampling_begins_there(model, latent, plain) -> None:
    related = invert_clip(model, SOURCE, EMPTY, latent, InversionSettings(STEPS, gamma=0.7))
    start = related[INVERSION].start_at(trajectory(model.model, related[INVERSION]), 2)
    seen: list[Tensor] = []
    watched = model.clone()
    watched.add_wrapper(WrappersMP.PREDICT_NOISE, lambda do, x, *rest: seen.append(x.cpu()) or do(x, *rest))
    edit(watched, related, start_step=2)
    assert away(seen[0], start) < 1e-5


def test_an_early_end_leaves_the_state_there(model, plain, edited) -> None:
    states: dict[int, Tensor] = {}
    assert torch.equal(edit(model, plain, watch=states.__setitem__), edited)
    assert list(states) == [1, 2, 3, 4, 5]
    assert away(FACTOR * edit(model, plain, end_step=3), states[3]) < 1e-5
    early: dict[int, Tensor] = {}
    edit(model, plain, start_step=2, end_step=4, watch=early.__setitem__)
    assert list(early) == [1, 2] and early[2].std() > states[5].std() * 0.2


@pytest.mark.parametrize(("start", "end"), [(5, 0), (-1, 0), (3, 3), (4, 2), (0, 6), (7, 9)])
def test_a_part_of_the_steps_that_is_none_is_refused(model, plain, start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"start_step {start} and end_step {end} are not part of the 5 steps"):
        edit(model, plain, start_step=start, end_step=end)


def test_fresh_noise_of_the_sampling_is_that_of_the_seed(model, plain, edited) -> None:
    found = [edit(model, plain, eta=0.7, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1]) and away(found[2], found[0]) > 0.01
    assert torch.equal(edit(model, plain, eta=0.0, seed=2), edited)
