"""The interframe noise relation while sampling in the host."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from consistent_video.modules.inversion.host.invert import INVERSION, trajectory
from consistent_video.modules.inversion.inversion import Inversion, InversionSettings
from consistent_video.modules.sampling.host import Relating, RelationSettings, SampleSettings, sample_clip
from consistent_video.modules.sampling.texture import texture_energy

from ..edits import FACTOR, FRAMES, STEPS, away, edit, invert, left_half, relation, still
from ..small import EDIT, EMPTY, SOURCE


@pytest.fixture(scope="module")
def refined(model, latent) -> dict[str, Any]:
    return invert(model, latent, refinements=4)


@pytest.mark.parametrize(
    "settings",
    [relation(0.0), relation(0.0, keep_texture=0.9), relation(start=0.9, end=1.0), relation(steps=(0.0,))],
    ids=["strength 0", "guarded", "between two steps", "no strength"],
)
def test_a_relation_that_does_not_act_changes_no_bit(model, plain, edited, settings: RelationSettings) -> None:
    assert torch.equal(edit(model, plain, relation=settings), edited)


def test_an_unchanged_prompt_is_related_to_next_to_nothing(model, latent, refined) -> None:
    same, related = (edit(model, refined, 1.0, SOURCE, relation=how) for how in (None, relation(0.8)))
    assert away(related, same) < 0.005
    assert away(edit(model, refined, relation=relation(0.8)), edit(model, refined)) > 0.05


def directions(model, inversion, start_step: int = 0, **settings) -> Tensor:
    """Return the edit direction of each step, from the states that sampling went through."""
    made, states = inversion[INVERSION], [trajectory(model.model, inversion[INVERSION])[start_step]]
    edit(model, inversion, start_step=start_step, watch=lambda _, x: states.append(x.cpu()), **settings)
    steps = made.sigmas[start_step:].diff().view(-1, 1, 1, 1, 1)
    return torch.stack(states).diff(dim=0) / steps - made.noises[start_step:].float()


def roughness(delta: Tensor) -> float:
    """Return how much of the edit direction differs from frame to frame."""
    return (delta.diff(dim=1).square().mean() / delta.square().mean()).item()


def test_the_relation_brings_the_edit_of_neighbours_together(model, plain, edited) -> None:
    before = roughness(directions(model, plain))
    after = [roughness(directions(model, plain, relation=relation(strength))) for strength in (0.25, 0.5)]
    assert before > 0.01 and after[0] < 0.8 * before and after[1] < 0.8 * after[0], (before, after)
    assert away(edit(model, plain, relation=relation()), edited) > 0.05


def blend_by_hand(delta: Tensor, weights: Tensor) -> Tensor:
    frames = []
    for n in range(len(delta)):
        around = [delta[m] for m in (n - 1, n + 1) if 0 <= m < len(delta)]
        frames.append((1 - weights[n]) * delta[n] + weights[n] * sum(around) / len(around))
    return torch.stack(frames)


@pytest.mark.parametrize("start_step", [0, 3])
def test_the_first_step_goes_along_the_blend_of_neighbours(model, plain, start_step: int) -> None:
    free = directions(model, plain, start_step)[0]
    frames = (1.0, 0.2, 0.0, 0.5)
    weights = 0.6 * torch.tensor(frames).view(-1, 1, 1, 1) * left_half()[:, None, ::8, ::8]
    found = directions(model, plain, start_step, relation=relation(0.6, frames=frames, mask=left_half()))[0]
    assert away(found, blend_by_hand(free, weights)) < 2e-3
    assert away(found, free) > 0.03


def test_the_relation_follows_the_motion(model, plain, edited) -> None:
    as_they_lie = edit(model, plain, relation=relation())
    assert away(edit(model, plain, relation=relation(motion=still())), as_they_lie) < 1e-4
    assert away(edit(model, plain, relation=relation(motion=still(seen=0))), edited) < 1e-4
    moving = replace(still(), forward=still().forward + 8, backward=still().backward - 8)
    free = directions(model, plain)[0]
    found = directions(model, plain, relation=relation(1.0, motion=moving))[0]
    inside = (slice(None), slice(1, -1), slice(1, -1))
    for n in range(1, FRAMES - 1):
        expected = (free[n + 1].roll((-1, -1), (-2, -1)) + free[n - 1].roll((1, 1), (-2, -1))) / 2
        assert away(found[n][inside], expected[inside]) < 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (relation(motion=still(3)), "motion is of 3 frames and the clip has 4"),
        (relation(frames=(1.0, 0.5)), "frame_strengths has 2 numbers and the clip 4 frames"),
        (relation(mask=torch.ones(3, 64, 48)), "mask has 3 frames and the clip 4"),
    ],
)
def test_a_relation_of_another_clip_is_refused(model, plain, settings: RelationSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit(model, plain, relation=settings)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("contrast", [0.5, 1.0, 2.0])
def test_the_relation_backs_off_where_texture_would_go(keep: float, contrast: float) -> None:
    """What a still scene is edited to differs in all frames, so that blending it takes texture away."""
    generator, sigma = torch.Generator().manual_seed(0), 3.0
    scene, noise = torch.randn(2, 1, 4, 24, 20, generator=generator).expand(-1, FRAMES, -1, -1, -1)
    target = contrast * torch.randn(FRAMES, 4, 24, 20, generator=generator)
    x = scene + sigma * noise
    eps, energy = (x - target) / sigma, texture_energy(scene).mean()

    def textured(strength: float) -> float:
        blended = blend_by_hand(target, torch.full((FRAMES, 1, 1, 1), strength))
        return (texture_energy(blended).mean() / energy).item()

    levels = torch.tensor([sigma, 0.0])
    inversion = Inversion(levels, noise[None], scene, x, InversionSettings(), "")
    relating = Relating(relation(0.4, keep_texture=keep), inversion, x[None])
    related = relating(0, x, eps)
    floor = keep * min(1.0, textured(0.0))
    used = next(strength for strength in (0.4, 0.2, 0.1, 0.0) if textured(strength) >= floor * (1 - 1e-6))
    assert relating.used == [used] and relating.texture == [pytest.approx(textured(used), rel=1e-4)]
    assert away(x - sigma * related, blend_by_hand(target, torch.full((FRAMES, 1, 1, 1), used))) < 1e-4


def test_the_texture_told_is_that_of_what_each_step_predicts_against_the_sources(model, plain) -> None:
    made, states = plain[INVERSION], [FACTOR * plain["samples"]]
    _, told = sample_clip(model, EDIT, EMPTY, plain, SampleSettings(4.0), lambda _, x: states.append(x.cpu()))
    levels, sources = made.sigmas, trajectory(model.model, plain[INVERSION])
    expected = []
    for i in range(STEPS):
        eps = (states[i + 1] - states[i]) / (levels[i + 1] - levels[i])
        predicted = states[i] - levels[i] * eps, sources[i] - levels[i] * made.noises[i].float()
        energy, of_source = (texture_energy(clip).mean().item() for clip in predicted)
        expected.append(energy / of_source)
    assert told["texture"] == pytest.approx(expected, rel=1e-3)


def test_the_strength_may_change_from_step_to_step(model, plain) -> None:
    def told(**settings: Any) -> list[float]:
        return sample_clip(model, EDIT, EMPTY, plain, SampleSettings(4.0, relation=relation(0.8, **settings)))[1][
            "relation"
        ]

    assert told(steps=(1.0, 0.0)) == pytest.approx([0.8, 0.64, 0.48, 0.32, 0.16])
    assert told(steps=(0.0, 1.0, 0.5), start=0.2) == pytest.approx([0, 0, 0.4, 0.8, 0.6])
    assert told(steps=(0.25,), end=0.5) == pytest.approx([0.2] * 3 + [0] * 2)
    with pytest.raises(ValueError, match="start 0.3 and end 0.3 of the relation leave no steps"):
        relation(start=0.3, end=0.3)
    with pytest.raises(ValueError, match="step_strengths holds 2. Each must be from 0 to 1."):
        relation(steps=(1.0, 2.0))
    with pytest.raises(ValueError, match="frame_strengths holds -0.5. Each must be"):
        relation(frames=(-0.5,))


def test_the_report_tells_strength_and_texture_of_each_step(model, plain) -> None:
    told = [
        sample_clip(model, EDIT, EMPTY, plain, SampleSettings(4.0, relation=how))[1]
        for how in (None, relation(0.8), relation(0.8, start=0.4, end=0.8))
    ]
    assert [report["relation"] for report in told] == [[0] * 5, [0.8] * 5, [0, 0, 0.8, 0.8, 0]]
    assert all(len(report["texture"]) == STEPS and min(report["texture"]) > 0 for report in told)
    assert told[2]["texture"][:2] == told[0]["texture"][:2] and told[1]["texture"][0] < told[0]["texture"][0]
    _, last = sample_clip(model, EDIT, EMPTY, plain, SampleSettings(4.0, start_step=2, relation=relation(start=0.8)))
    assert last["relation"] == [0, 0, 0.5]  # parts are of all steps, also of those left out
