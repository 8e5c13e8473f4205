"""Bidirectional inversion with the interframe noise relation in the host."""

import itertools
import json
from typing import Any, get_args

import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from consistent_video.modules.clip_model.methods import PER_FRAME
from consistent_video.modules.diffusion.ddim import latent_to_state
from consistent_video.modules.diffusion.host import run
from consistent_video.modules.inversion.host.invert import INVERSION, inversion_of, invert_clip, trajectory
from consistent_video.modules.inversion.inversion import InversionSettings, Noise, Start
from consistent_video.modules.inversion.noise_relation import Reading
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.nodes.inversion import INRBidirectionalDDIMInversion

from ..edits import FACTOR, FRAMES, HEIGHT, NOISES, STEPS, WIDTH, away, edit, invert, patched
from ..small import EMPTY, SOURCE, clip_latent, random_model

READINGS: tuple[Reading, ...] = get_args(Reading)
STARTS: tuple[Start, ...] = get_args(Start)


@pytest.fixture(scope="module", params=["untuned", "tuned"])
def any_model(request, model, tune) -> ModelPatcher:
    return model if request.param == "untuned" else apply_tune(random_model(), tune)


@pytest.fixture(scope="module")
def short(model, latent) -> dict[str, Any]:
    return invert(model, latent, steps=2)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    ("gamma", "direction", "reading"),
    [(0.0, "both", "mean"), (0.0, "forward", "sum"), *((0.7, "none", reading) for reading in READINGS)],
)
def test_without_relation_inversion_is_plain_bit_for_bit(
    model, latent, short, start: Start, noise: Noise, gamma: float, direction: str, reading: Reading
) -> None:
    found = invert(model, latent, gamma, direction, steps=2, start=start, noise=noise, reading=reading)
    assert torch.equal(found["samples"], short["samples"])
    assert torch.equal(found[INVERSION].noises, short[INVERSION].noises)
    assert not found[INVERSION].settings.relates(FRAMES)


def test_a_clip_of_one_frame_has_no_neighbours(latent) -> None:
    model, one = patched(preset=PER_FRAME), {"samples": latent["samples"][:1]}
    related, alone = (invert(model, one, gamma, "both") for gamma in (0.5, 0.0))
    assert torch.equal(related["samples"], alone["samples"])
    assert torch.equal(
        related[INVERSION].start_at(trajectory(model.model, related[INVERSION]), 2),
        trajectory(model.model, alone[INVERSION])[2],
    )


def test_every_start_noise_and_reading_is_another_inversion(model, latent, plain) -> None:
    ways = itertools.product(STARTS, NOISES, READINGS)
    found = [
        invert(model, latent, 0.45, start=start, noise=noise, reading=reading)["samples"]
        for start, noise, reading in ways
    ]
    assert all(samples.isfinite().all() for samples in found)
    for one, other in itertools.combinations([plain["samples"], *found], 2):
        assert away(one, other) > 0.01


@pytest.mark.parametrize("noise", NOISES)
def test_the_default_start_is_continuous_in_gamma(model, latent, plain, noise: Noise) -> None:
    """With the default reading of (26); a sum of the neighbours' noises goes to none."""

    def started(gamma: float, **settings: Any) -> float:
        return away(invert(model, latent, gamma, noise=noise, **settings)["samples"], plain["samples"])

    assert 0 < started(1e-6) < 1e-5 < 1e-2 < started(0.5)
    assert started(1e-6, start="clean latent") == pytest.approx(started(1e-5, start="clean latent"), rel=1e-3)
    assert started(1e-6, start="clean latent") > 0.01


def test_the_default_part_of_the_noise_levels_matches_the_size_and_the_report_says_so(model, latent) -> None:
    table, shape = model.model.model_sampling.sigmas.cpu(), latent["samples"].shape[-2:]
    assert shape == (HEIGHT, WIDTH) and HEIGHT != WIDTH
    wanted = table[-1].item() * (HEIGHT * WIDTH) ** 0.5 / 64
    span = 1 + int((table < wanted).sum())  # timesteps up to the first that is no lower
    for steps, near in ((STEPS, 0.4), (99, 0.02)):
        settings = InversionSettings(steps, 0.0)
        inversion = invert_clip(model, SOURCE, EMPTY, latent, settings)
        sigma, told = inversion[INVERSION].sigmas[0].item(), inversion[INVERSION].report(settings)
        assert sigma == table[(steps - 1) * span // steps + 1] and (1 - near) * wanted < sigma <= wanted
        assert inversion[INVERSION].settings.denoise == told["denoise"] == pytest.approx(span / len(table))
        assert told["sigma_start"] == pytest.approx(sigma, abs=1e-4)
        assert f"denoise auto is {span / len(table):g} at 6 x 8 latent positions" in told["starts_there_because"]


def test_the_report_tells_a_denoise_that_was_set_from_one_of_a_large_latent(model, latent) -> None:
    chosen = InversionSettings(2, 0.0, denoise=0.3)
    told = invert_clip(model, SOURCE, EMPTY, latent, chosen)[INVERSION].report(chosen)
    assert (told["denoise"], told["starts_there_because"]) == (0.3, "denoise is 0.3")
    auto, large = InversionSettings(1, 0.0), {"samples": clip_latent(1)["samples"].repeat(1, 1, 6, 8)[..., :72, :64]}
    told = invert_clip(model, SOURCE, EMPTY, large, auto)[INVERSION].report(auto)
    assert told["denoise"] == 1 and "is 1 at 64 x 72 latent positions" in told["starts_there_because"]


def test_a_smaller_denoise_starts_lower_and_reconstructs_in_as_many_steps(any_model, latent) -> None:
    levels = []
    for denoise in (1.0, 0.6, 0.3):
        inversion = invert(any_model, latent, denoise=denoise, refinements=4)
        levels.append(inversion[INVERSION].sigmas)
        assert len(inversion[INVERSION].noises) == STEPS
        assert away(inversion["samples"], latent["samples"]) > 0.05
        assert away(edit(any_model, inversion, 1.0, SOURCE), latent["samples"]) < 2e-3
    assert [len(sigmas) for sigmas in levels] == [STEPS + 1] * 3
    assert levels[0][0] > 2 * levels[1][0] > 4 * levels[2][0]
    assert levels[0][-1] == levels[1][-1] == levels[2][-1]


def relate_by_hand(removed: Tensor, added: Tensor, gamma: float, neighbours: tuple[int, ...]) -> Tensor:
    """INR Smooth (24-26), frame by frame."""
    frames = []
    for n in range(len(removed)):
        there = [n + step for step in neighbours if 0 <= n + step < len(removed)]
        predicted = [removed[m] + added[n] - added[m] for m in there] or [removed[n]]
        frames.append((1 - gamma) * removed[n] + gamma * sum(predicted) / len(predicted))
    return torch.stack(frames)


@pytest.mark.parametrize(("direction", "neighbours"), [("both", (1, -1)), ("forward", (-1,)), ("backward", (1,))])
def test_at_every_step_the_relation_is_that_of_the_noise_implied_there(
    model, latent, direction: str, neighbours: tuple[int, ...]
) -> None:
    clean, noises = FACTOR * latent["samples"], list[Tensor]()

    def walk(denoise, x, sigmas, extra_args=None, **_) -> Tensor:
        x = x * (1 + sigmas[0] ** 2) ** 0.5
        for step, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
            seen = x * ((1 + after**2) / (1 + sigma**2)) ** 0.5
            eps = (seen - denoise(seen, after.expand(len(x)), **extra_args)) / after
            if step > 0:
                eps = relate_by_hand(eps, (x - clean.to(x)) / sigma, 0.4, neighbours)
            noises.append(eps.cpu())
            x = x + (after - sigma) * eps
        return x

    found = invert(model, latent, 0.4, direction, start="every step")
    sampler, sigmas = comfy.samplers.KSAMPLER(walk), found[INVERSION].sigmas.flip(0)
    expected = run.run_sampler(model, latent["samples"], sampler, sigmas, 1.0, SOURCE, EMPTY)
    assert away(found["samples"], expected) < 1e-4
    assert away(found[INVERSION].noises.float(), torch.stack(noises[::-1])) < 1e-3


@pytest.mark.parametrize("start", STARTS)
def test_fresh_noise_is_that_of_the_seed(model, latent, start: Start) -> None:
    torch.manual_seed(8)
    before = torch.get_rng_state()
    found = [invert(model, latent, 0.5, noise="Gaussian", start=start, seed=seed)["samples"] for seed in (7, 7, 8)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0], found[1]) and away(found[2], found[0]) > 0.1
    implied = [invert(model, latent, 0.5, start=start, seed=seed)["samples"] for seed in (7, 8)]
    assert torch.equal(*implied)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("start", ["inverted latent", "clean latent"])
def test_with_fresh_noise_each_frame_keeps_its_standard_deviation(
    model, latent, plain, start: Start, reading: Reading
) -> None:
    started = invert(model, latent, 0.8, noise="Gaussian", start=start, reading=reading)["samples"]
    sigma, predicted = plain[INVERSION].sigmas[0], plain[INVERSION].noises[0].float()
    if start == "clean latent":
        noise = FACTOR * (started - latent["samples"]) / sigma
    else:
        noise = FACTOR * (started - plain["samples"]) / sigma + predicted
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), predicted.std(dim=(1, 2, 3)), rtol=1e-3, atol=0)
    assert away(noise, predicted) > 0.1


def test_each_refinement_brings_the_clip_back_nearer(any_model, latent) -> None:
    errors = []
    for refinements in range(3):
        inversion = invert(any_model, latent, refinements=refinements)
        errors.append(away(edit(any_model, inversion, 1.0, SOURCE), latent["samples"]))
    assert 0.01 < errors[0] < 1
    assert errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3, errors


def test_guidance_of_the_inversion_needs_a_negative_and_counts(model, latent, plain) -> None:
    guided = invert(model, latent, cfg=3.0)
    assert away(guided["samples"], plain["samples"]) > 0.01
    alike = invert(model, latent, cfg=3.0, negative=SOURCE)
    assert away(alike["samples"], plain["samples"]) < 1e-4
    widgets = {"steps": STEPS, "denoise": 1.0, "gamma": 0.0, "direction": "both", "label": "next", "cfg": 3.0}
    with pytest.raises(ValueError, match=r"cfg 3 of the inversion needs a negative\. Connect one, or set cfg to 1"):
        INRBidirectionalDDIMInversion.execute(model, SOURCE, latent, **widgets)
    inversion, sigmas, report = INRBidirectionalDDIMInversion.execute(model, SOURCE, latent, EMPTY, **widgets).args
    assert torch.equal(inversion["samples"], guided["samples"]) and torch.equal(sigmas, inversion_of(guided).sigmas)
    assert json.loads(report).items() >= {"cfg": 3.0, "steps": STEPS, "frames": FRAMES}.items()


@pytest.mark.parametrize(
    "how",
    [{}, {"refinements": 2}, {"gamma": 0.4, "start": "every step"}, {"cfg": 3.0}, {"set_alpha_to_one": True}],
)
def test_the_noises_kept_lead_from_the_clip_to_the_inverted_one(any_model, latent, how: dict) -> None:
    inversion = invert(any_model, latent, **how)
    states = trajectory(any_model.model, inversion[INVERSION])
    assert states.shape == (STEPS + 1, FRAMES, 4, HEIGHT, WIDTH)
    assert inversion[INVERSION].noises.shape == states[1:].shape
    assert inversion[INVERSION].noises.dtype == torch.float16
    clean = FACTOR * latent["samples"]
    assert torch.equal(states[-1], latent_to_state(clean, inversion[INVERSION].sigmas[-1]))
    assert torch.equal(states[-1], clean) == ("set_alpha_to_one" in how)
    assert away(states[0], FACTOR * inversion["samples"]) < 1e-3
