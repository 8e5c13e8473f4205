"""INR Smooth in the host: inversion with the noise relation, sampling that keeps it, reports, inversions on disk."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import comfy.lora
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import DisableNoise, SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import RescaleCFG
from torch import Tensor

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, method
from consistent_video.modules.demo_model.host import WEIGHTS
from consistent_video.modules.diffusion.ddim import latent_to_state
from consistent_video.modules.diffusion.host import run
from consistent_video.modules.files.host import INVERSIONS
from consistent_video.modules.inversion.host import identity
from consistent_video.modules.inversion.host.identity import model_digest
from consistent_video.modules.inversion.host.invert import (
    INVERSION,
    InversionSettings,
    Noise,
    Start,
    describe,
    inversion_of,
    invert_clip,
    start_at,
    trajectory,
)
from consistent_video.modules.inversion.host.saved import inversion_files
from consistent_video.modules.inversion.noise_relation import Reading
from consistent_video.modules.judging.host.reconstruct import decode, reconstruct
from consistent_video.modules.motion.flow import Motion
from consistent_video.modules.sampling.host import (
    InvertedClipSampler,
    Relating,
    RelationSettings,
    SampleSettings,
    sample_clip,
)
from consistent_video.modules.sampling.texture import texture_energy
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.host.progress import TuningProgress
from consistent_video.modules.tuning.host.training import tune_model
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.modules.tuning.weights import Tune
from consistent_video.nodes.inversion import INRBidirectionalDDIMInversion, LoadInversion, SaveInversion
from consistent_video.nodes.report import ReconstructionReport
from consistent_video.nodes.sample import InterframeNoiseRelation, SmoothSample, SmoothSampler

from .small import EDIT, EMPTY, SOURCE, TOKENS, UNET, Small, SmallV, clip_latent, control_net, random_model

FRAMES, HEIGHT, WIDTH, STEPS = 4, 8, 6, 5
READINGS: tuple[Reading, ...] = get_args(Reading)
NOISES: tuple[Noise, ...] = get_args(Noise)
STARTS: tuple[Start, ...] = get_args(Start)
FACTOR = 0.18215


def patched(kind: type[Small] = Small, preset: str = EI2, r: int = 2, **options: Any) -> ModelPatcher:
    return attach(inflate(random_model(kind)), *method(preset, r, "area", **options))


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    return patched()


@pytest.fixture(scope="module")
def latent() -> dict[str, Tensor]:
    return {"samples": clip_latent(FRAMES)["samples"][..., :HEIGHT, :WIDTH].contiguous()}


@pytest.fixture(scope="module")
def tune(latent) -> Tune:
    settings = TuneSettings(steps=2, learning_rate=1e-2)
    with torch.inference_mode():
        return tune_model(patched(), TuneInputs(SOURCE, latent), settings, TuningProgress("1"))


@pytest.fixture(scope="module", params=["untuned", "tuned"])
def any_model(request, model, tune) -> ModelPatcher:
    return model if request.param == "untuned" else apply_tune(random_model(), tune)


def invert(model, latent, gamma: float = 0.0, direction: str = "both", positive=SOURCE, negative=EMPTY, **settings):
    """Invert over all noise levels: this small clip's own part of them leaves an edit little room."""
    given = InversionSettings(gamma=gamma, direction=direction, **{"steps": STEPS, "denoise": 1.0, **settings})
    return invert_clip(model, positive, negative, latent, given)


@pytest.fixture(scope="module")
def plain(model, latent) -> dict[str, Any]:
    return invert(model, latent)


@pytest.fixture(scope="module")
def refined(model, latent) -> dict[str, Any]:
    return invert(model, latent, refinements=4)


def edit(model, inversion, cfg: float = 4.0, positive=EDIT, negative=EMPTY, watch=None, **settings) -> Tensor:
    return sample_clip(model, positive, negative, inversion, SampleSettings(cfg, **settings), watch)[0]["samples"].cpu()


@pytest.fixture(scope="module")
def edited(model, plain) -> Tensor:
    return edit(model, plain)


def away(found: Tensor, expected: Tensor) -> float:
    """Return the distance of two tensors, relative to the second."""
    return ((found.cpu() - expected.cpu()).norm() / expected.cpu().norm()).item()


# Inversion


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    ("gamma", "direction", "reading"),
    [(0.0, "both", "mean"), (0.0, "forward", "sum"), *((0.7, "none", reading) for reading in READINGS)],
)
def test_without_relation_inversion_is_plain_bit_for_bit(
    model, latent, plain, start: Start, noise: Noise, gamma: float, direction: str, reading: Reading
) -> None:
    found = invert(model, latent, gamma, direction, start=start, noise=noise, reading=reading)
    assert torch.equal(found["samples"], plain["samples"])
    assert torch.equal(found[INVERSION]["noises"], plain[INVERSION]["noises"])
    assert not InversionSettings(**found[INVERSION]["made"]).relates(FRAMES)


def test_a_clip_of_one_frame_has_no_neighbours(latent) -> None:
    model, one = patched(preset=PER_FRAME), {"samples": latent["samples"][:1]}
    related, alone = (invert(model, one, gamma, "both") for gamma in (0.5, 0.0))
    assert torch.equal(related["samples"], alone["samples"])
    assert torch.equal(start_at(related[INVERSION], trajectory(model, related), 2), trajectory(model, alone)[2])


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
        sigma, told = inversion[INVERSION]["sigmas"][0].item(), describe(settings, inversion)
        assert sigma == table[(steps - 1) * span // steps + 1] and (1 - near) * wanted < sigma <= wanted
        assert inversion[INVERSION]["made"]["denoise"] == told["denoise"] == pytest.approx(span / len(table))
        assert told["sigma_start"] == pytest.approx(sigma, abs=1e-4)
        assert f"denoise auto is {span / len(table):g} at 6 x 8 latent positions" in told["starts_there_because"]


def test_the_report_tells_a_denoise_that_was_set_from_one_of_a_large_latent(model, latent) -> None:
    chosen = InversionSettings(2, 0.0, denoise=0.3)
    told = describe(chosen, invert_clip(model, SOURCE, EMPTY, latent, chosen))
    assert (told["denoise"], told["starts_there_because"]) == (0.3, "denoise is 0.3")
    auto, large = InversionSettings(1, 0.0), {"samples": clip_latent(2)["samples"].repeat(1, 1, 6, 8)[..., :72, :64]}
    told = describe(auto, invert_clip(model, SOURCE, EMPTY, large, auto))
    assert told["denoise"] == 1 and "is 1 at 64 x 72 latent positions" in told["starts_there_because"]


def test_a_smaller_denoise_starts_lower_and_reconstructs_in_as_many_steps(any_model, latent) -> None:
    levels = []
    for denoise in (1.0, 0.6, 0.3):
        inversion = invert(any_model, latent, denoise=denoise, refinements=4)
        levels.append(inversion[INVERSION]["sigmas"])
        assert len(inversion[INVERSION]["noises"]) == STEPS
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
    sampler, sigmas = comfy.samplers.KSAMPLER(walk), found[INVERSION]["sigmas"].flip(0)
    expected = run.run_sampler(model, latent["samples"], sampler, sigmas, 1.0, SOURCE, EMPTY)
    assert away(found["samples"], expected) < 1e-4
    assert away(found[INVERSION]["noises"].float(), torch.stack(noises[::-1])) < 1e-3


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
    sigma, predicted = plain[INVERSION]["sigmas"][0], plain[INVERSION]["noises"][0].float()
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
    assert torch.equal(inversion["samples"], guided["samples"]) and torch.equal(sigmas, inversion_of(guided))
    assert json.loads(report).items() >= {"cfg": 3.0, "steps": STEPS, "frames": FRAMES}.items()


@pytest.mark.parametrize(
    "how",
    [{}, {"refinements": 2}, {"gamma": 0.4, "start": "every step"}, {"cfg": 3.0}, {"set_alpha_to_one": True}],
)
def test_the_noises_kept_lead_from_the_clip_to_the_inverted_one(any_model, latent, how: dict) -> None:
    inversion = invert(any_model, latent, **how)
    states = trajectory(any_model, inversion)
    assert states.shape == (STEPS + 1, FRAMES, 4, HEIGHT, WIDTH)
    assert inversion[INVERSION]["noises"].shape == states[1:].shape
    assert inversion[INVERSION]["noises"].dtype == torch.float16
    clean = FACTOR * latent["samples"]
    assert torch.equal(states[-1], latent_to_state(clean, inversion[INVERSION]["sigmas"][-1]))
    assert torch.equal(states[-1], clean) == ("set_alpha_to_one" in how)
    assert away(states[0], FACTOR * inversion["samples"]) < 1e-3


# Sampling


def relation(strength: float = 0.5, **settings: Any) -> RelationSettings:
    return RelationSettings(strength, **settings)


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
    made, states = inversion[INVERSION], [trajectory(model, inversion)[start_step]]
    edit(model, inversion, start_step=start_step, watch=lambda _, x: states.append(x.cpu()), **settings)
    steps = made["sigmas"][start_step:].diff().view(-1, 1, 1, 1, 1)
    return torch.stack(states).diff(dim=0) / steps - made["noises"][start_step:].float()


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


def still(frames: int = FRAMES, seen: float = 1) -> Motion:
    """The motion of pictures in which nothing moves."""
    flow = torch.zeros(frames - 1, 2, 8 * HEIGHT, 8 * WIDTH)
    return Motion(flow, flow, *[torch.full_like(flow[:, :1], seen)] * 2)


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
    relating = Relating(relation(0.4, keep_texture=keep), noise[None], x[None], levels)
    related = relating(0, x, eps)
    floor = keep * min(1.0, textured(0.0))
    used = next(strength for strength in (0.4, 0.2, 0.1, 0.0) if textured(strength) >= floor * (1 - 1e-6))
    assert relating.used == [used] and relating.texture == [pytest.approx(textured(used), rel=1e-4)]
    assert away(x - sigma * related, blend_by_hand(target, torch.full((FRAMES, 1, 1, 1), used))) < 1e-4


def test_the_texture_told_is_that_of_what_each_step_predicts_against_the_sources(model, plain) -> None:
    made, states = plain[INVERSION], [FACTOR * plain["samples"]]
    _, told = sample_clip(model, EDIT, EMPTY, plain, SampleSettings(4.0), lambda _, x: states.append(x.cpu()))
    levels, sources = made["sigmas"], trajectory(model, plain)
    expected = []
    for i in range(STEPS):
        eps = (states[i + 1] - states[i]) / (levels[i + 1] - levels[i])
        predicted = states[i] - levels[i] * eps, sources[i] - levels[i] * made["noises"][i].float()
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
    with pytest.raises(ValueError, match=r"step_strengths holds \[1.0, 2.0\]. Each must be from 0 to 1."):
        relation(steps=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"frame_strengths holds \[-0.5\]"):
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


def left_half(frames: int = 1) -> Tensor:
    """White on the left of the pictures."""
    mask = torch.zeros(frames, 8 * HEIGHT, 8 * WIDTH)
    mask[:, :, : 4 * WIDTH] = 1
    return mask


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
    made, states = inversion[INVERSION], trajectory(model, inversion)
    sigma, clean, eps = made["sigmas"][step], FACTOR * latent["samples"], made["noises"][step].float()
    fresh = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    added = fresh if noise == "Gaussian" else (states[step] - clean) / sigma
    blended = eps.clone()
    for n in range(FRAMES - 1):
        blended[n] = 0.2 * eps[n] + 0.8 * (eps[n + 1] + added[n] - added[n + 1])
    if noise == "Gaussian":
        blended = torch.stack([mine * its.std() / mine.std() for mine, its in zip(blended, eps, strict=True)])
    expected = clean + sigma * blended if start == "clean latent" else states[step] + sigma * (blended - eps)
    assert away(start_at(made, states, step), expected) < 1e-4
    assert away(start_at(made, states, step), states[step]) > 5e-3


def test_sampling_begins_there(model, latent, plain) -> None:
    related = invert_clip(model, SOURCE, EMPTY, latent, InversionSettings(STEPS, gamma=0.7))
    start = start_at(related[INVERSION], trajectory(model, related), 2)
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
    with pytest.raises(ValueError, match=f"start_step {start} and end_step {end} are no part of the 5 steps"):
        edit(model, plain, start_step=start, end_step=end)


def test_fresh_noise_of_the_sampling_is_that_of_the_seed(model, plain, edited) -> None:
    found = [edit(model, plain, eta=0.7, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1]) and away(found[2], found[0]) > 0.01
    assert torch.equal(edit(model, plain, eta=0.0, seed=2), edited)


def test_the_contrast_of_guidance_is_taken_back_as_the_host_does(model, plain, edited) -> None:
    rescaled = edit(model, plain, cfg_rescale=0.7)
    (by_hand,) = RescaleCFG().patch(model, 0.7)
    assert torch.equal(rescaled, edit(by_hand, plain))
    assert away(rescaled, edited) > 0.01 and torch.equal(edit(model, plain), edited)


def walk(model, inversion, **how: Any) -> list[Tensor]:
    """The states that sampling goes through."""
    states: list[Tensor] = []
    edit(model, inversion, watch=lambda level, x: states.append(x), **how)
    return states


def test_guidance_ends_where_it_is_told_to(model, plain) -> None:
    guided, ended = walk(model, plain), walk(model, plain, cfg_end=0.4)
    assert [torch.equal(one, other) for one, other in zip(guided, ended, strict=True)] == [True, True, *[False] * 3]
    x, euler = model.model.process_latent_out(guided[1]), comfy.samplers.sampler_object("euler")
    left = plain[INVERSION]["sigmas"][2:]
    given = torch.zeros_like(x), 1.0, euler, left, EDIT, EMPTY, x
    rest = comfy.sample.sample_custom(model, *given, disable_pbar=True)
    assert away(ended[-1], model.model.process_latent_in(rest)) < 1e-5


@pytest.mark.parametrize("cfg_end", [0.0, 1.0])
def test_guidance_may_be_off_or_on_throughout(model, plain, edited, cfg_end: float) -> None:
    assert torch.equal(edit(model, plain, cfg_end=cfg_end), edited if cfg_end else edit(model, plain, cfg=1.0))


def test_without_guidance_the_negative_is_not_computed(model, plain) -> None:
    rows, seen = list[int](), model.clone()

    def count(call, given: dict) -> Tensor:
        rows.append(len(given["input"]))
        return call(given["input"], given["timestep"], **given["c"])

    seen.set_model_unet_function_wrapper(count)
    walk(seen, plain, cfg_end=0.4)
    assert rows == [2 * FRAMES] * 2 + [FRAMES] * 3


def test_each_frame_follows_its_own_prompt(latent) -> None:
    alone = inflate(random_model())
    inversion = invert(alone, latent)
    prompts = torch.randn(FRAMES, TOKENS, UNET["context_dim"], generator=torch.Generator().manual_seed(8))
    together = edit(alone, inversion, positive=[[prompts, {}]])
    whole = [edit(alone, inversion, positive=[[prompts[n : n + 1], {}]]) for n in range(FRAMES)]
    for n in range(FRAMES):
        assert away(together[n], whole[n][n]) < 1e-4
        assert away(together[n], whole[n - 1][n]) > 0.01


def test_controlnet_and_relation_go_together(model, plain) -> None:
    hints = torch.rand(FRAMES, 3, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(12))

    def steered(strength: float) -> Tensor:
        control = control_net().set_cond_hint(hints, strength, (0.0, 1.0))
        positive = [[EDIT[0][0], {"control": control, "control_apply_to_uncond": True}]]
        return edit(model, plain, positive=positive, relation=relation())

    without = edit(model, plain, relation=relation())
    assert torch.equal(steered(0.0), without)
    assert steered(1.0).isfinite().all() and away(steered(1.0), without) > 0.01


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
    sigma, sigma_end = inversion[INVERSION]["sigmas"][-2:]
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


class Watcher:
    """A previewer that notes what it is to draw."""

    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def decode_latent_to_preview_image(self, _format: str, x_0: Tensor) -> None:
        self.seen.append(x_0)


def test_a_guidance_of_another_node_is_not_thrown_away(model, plain) -> None:
    (other,) = RescaleCFG().patch(model, 0.5)
    with pytest.raises(ValueError, match="cfg_rescale 0.7 takes the place of the guidance"):
        edit(other, plain, cfg_rescale=0.7)
    assert away(edit(other, plain), edit(model, plain)) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"relation": relation(motion=still())},
        {"mask": left_half(), "eta": 0.4, "seed": 9},
        {"start_step": 1, "end_step": 4, "relation": relation(0.3)},
    ],
    ids=["relation", "mask and eta", "part"],
)
def test_the_hosts_sampler_node_samples_the_same(model, plain, settings: dict) -> None:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(EDIT, EMPTY)
    guider.set_cfg(4.0)
    sampler, sigmas = SmoothSampler.execute(plain, **settings).args
    assert isinstance(sampler, InvertedClipSampler)
    (noise,) = DisableNoise.execute().args
    for _ in range(2):
        out = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, plain).args[0]["samples"]
        assert torch.equal(out.cpu(), edit(model, plain, **settings))


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


# Reconstruction


@pytest.fixture(scope="module")
def vae() -> comfy.sd.VAE:
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(WEIGHTS / "vae.safetensors"), safe_load=True))


def test_a_refined_inversion_comes_back_well(model, refined, vae) -> None:
    frames, found, advice = reconstruct(model, vae, SOURCE, EMPTY, refined, 1.0)
    assert frames.shape == (FRAMES, 8 * HEIGHT, 8 * WIDTH, 3) and 0 <= frames.min() and frames.max() <= 1
    assert len(found.psnr) == len(found.ssim) == FRAMES and len(found.drift) == STEPS
    assert min(found.psnr) > 40 and min(found.ssim) > 0.99 and max(found.drift) < 0.01
    assert advice == []
    expected = decode(vae, {"samples": edit(model, refined, 1.0, SOURCE)})
    assert away(frames.movedim(-1, 1), expected) < 1e-5


def test_a_bad_reconstruction_names_what_would_help(model, latent, plain, vae) -> None:
    related = invert(model, latent, 0.5)
    _, found, advice = reconstruct(model, vae, SOURCE, EMPTY, related, 7.5)
    assert min(found.psnr) < 25 and found.drift[-1] > 0.1
    assert [line.split(" ")[1] for line in advice] == ["direction", "cfg", "refinements", "steps", "the"]
    _, _, advice = reconstruct(model, vae, SOURCE, EMPTY, plain, 1.0)
    assert [line.split(" ")[1] for line in advice] == ["refinements", "steps", "the"]
    complementary = invert(model, latent, 0.0, reading="complementary")
    assert "direction" in reconstruct(model, vae, SOURCE, EMPTY, complementary, 1.0)[2][0]


def test_the_drift_is_seen_at_each_step(model, plain, vae) -> None:
    states: list[Tensor] = []
    edit(model, plain, 1.0, SOURCE, watch=lambda _, x: states.append(x.cpu()))
    _, found, _ = reconstruct(model, vae, SOURCE, EMPTY, plain, 1.0)
    expected = trajectory(model, plain)[1:]
    assert found.drift == pytest.approx([away(*pair) for pair in zip(states, expected, strict=True)], rel=1e-4)
    assert found.drift[-1] == pytest.approx(away(states[-1], expected[-1])) and found.drift[-1] > 0.01


def test_the_report_node_tells_it(model, plain, vae) -> None:
    with torch.inference_mode():
        images, report, plot, data = ReconstructionReport.execute(model, vae, SOURCE, EMPTY, plain, 1.0).args
    told = json.loads(data)
    assert told.keys() == {"psnr", "ssim", "drift", "worst", "remedies"}
    assert images.shape[0] == FRAMES and plot.shape == (1, 480, 800, 3)
    assert f"({told['worst']})" in report and all(line in report for line in told["remedies"])


# Identity


def changed_weight(model: ModelPatcher) -> ModelPatcher:
    """Return a model of which one weight is another."""
    weight = model.model.diffusion_model.middle_block[1].proj_in.weight
    weight.data = weight.data * 1.01
    return model


def with_lora(model: ModelPatcher, strength: float, seed: int = 0) -> ModelPatcher:
    generator = torch.Generator().manual_seed(seed)
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_k"
    lora = {
        f"{key}.lora_up.weight": torch.randn(64, 3, generator=generator),
        f"{key}.lora_down.weight": torch.randn(3, 64, generator=generator),
    }
    patches = comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model.model, {}))
    clone = model.clone()
    assert len(clone.add_patches(patches, strength)) == 1
    return clone


def test_models_are_told_apart_by_what_they_hold(tune) -> None:
    models = {
        "EI²": patched(),
        "r": patched(r=4),
        "per frame": patched(preset=PER_FRAME),
        "norm": patched(norm="none"),
        "strength": attach(inflate(random_model()), *method(EI2, 2, "area"), spatial_strength=0.5),
        "percents": attach(inflate(random_model()), *method(EI2, 2, "area"), percents=(0.0, 0.5)),
        "frames": attach(inflate(random_model(), FRAMES), *method(EI2, 2, "area")),
        "v-prediction": patched(SmallV),
        "weights": changed_weight(patched()),
        "tuned": apply_tune(random_model(), tune),
        "half tuned": apply_tune(random_model(), tune, 0.5),
        "less tuned": apply_tune(random_model(), tune, 1.0, 0.5),
        "LoRA": with_lora(patched(), 1.0),
        "weak LoRA": with_lora(patched(), 0.5),
        "other LoRA": with_lora(patched(), 1.0, seed=1),
    }
    digests = {name: model_digest(model) for name, model in models.items()}
    assert len(set(digests.values())) == len(models), digests
    assert model_digest(patched()) == model_digest(models["EI²"].clone()) == digests["EI²"]
    assert model_digest(apply_tune(random_model(), tune)) == digests["tuned"]
    assert model_digest(with_lora(patched(), 0.5)) == digests["weak LoRA"]


def test_a_model_is_the_same_while_the_host_holds_its_patches_in_the_weights(tune, latent) -> None:
    base = random_model()
    tuned, patched_base = apply_tune(base, tune), inflate(base)
    before = model_digest(tuned), model_digest(patched_base)
    invert(tuned, latent)
    assert (model_digest(tuned), model_digest(patched_base)) == before
    invert(with_lora(tuned, 1.0), latent)
    assert (model_digest(tuned), model_digest(patched_base)) == before


OTHER_PROCESS = """
import importlib.util, runpy, sys
root, base = sys.argv[1:]
runpy.run_path(f"{root}/scripts/environment.py")["register_pack"]()
from pathlib import Path
from consistent_video.scripts.in_process import use_host
use_host(Path(base))
spec = importlib.util.spec_from_file_location("small", f"{root}/tests/host/small.py")
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)
from consistent_video.modules.inversion.host.identity import model_digest
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, method
model = attach(inflate(small.random_model()), *method(EI2, 2, "area"))
print(model_digest(model))
"""


def test_another_process_finds_the_same_digest(model, tmp_path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(root), str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "77"}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[-1] == model_digest(model)


def test_an_inversion_of_another_model_is_told(model, plain, caplog) -> None:
    controlled = model.clone()
    controlled.set_model_attn2_patch(lambda q, k, v, options: (q, k, v))
    for same in (model, controlled):
        edit(same, plain)
    assert "another model" not in caplog.text
    edit(with_lora(model, 0.5), plain)
    assert "The inversion was made with another model, tune or patch" in caplog.text


def test_an_image_model_is_told_to_be_inflated() -> None:
    with pytest.raises(ValueError, match="Inflate UNet"):
        model_digest(random_model())


# Inversions on disk


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of inversions, empty."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, INVERSIONS, ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys() and found[INVERSION].keys() == expected[INVERSION].keys()
    assert torch.equal(found["samples"], expected["samples"])
    for key, value in expected[INVERSION].items():
        assert (
            torch.equal(found[INVERSION][key], value) if isinstance(value, Tensor) else found[INVERSION][key] == value
        )


@pytest.mark.parametrize("how", [{}, {"gamma": 0.6, "start": "every step", "noise": "Gaussian"}])
def test_a_saved_inversion_is_sampled_as_the_one_that_was_saved(model, latent, folder, how: dict) -> None:
    settings = {"relation": relation(), "mask": left_half(), "start_step": 1}
    with torch.inference_mode():
        inversion = invert(model, latent, **how)
        direct = edit(model, inversion, **settings)
        (path,) = SaveInversion.execute(inversion, "clips/swan").args
        assert path == str(folder / "clips" / "swan_00001_.safetensors")
        SaveInversion.execute(inversion, "swan")
        assert sorted(inversion_files()) == ["clips/swan_00001_.safetensors", "swan_00001_.safetensors"]
        before = LoadInversion.fingerprint_inputs("clips/swan_00001_.safetensors")
        loaded, sigmas = LoadInversion.execute("clips/swan_00001_.safetensors").args
        assert torch.equal(sigmas, inversion_of(inversion))
        assert_same(loaded, inversion)
        assert torch.equal(edit(model, loaded, **settings), direct)
        os.utime(path, (1, 1))
    assert LoadInversion.fingerprint_inputs("clips/swan_00001_.safetensors") != before


def test_only_inversions_are_saved(latent, folder) -> None:
    with pytest.raises(ValueError, match="inversion is a latent that was not inverted"):
        SaveInversion.execute(latent, "swan")
    assert list(folder.iterdir()) == []


def test_the_digest_looks_at_some_of_a_weight() -> None:
    (said,) = identity.flatten(torch.arange(24000.0).reshape(20, 1200))
    shape, values = said.split(" [")
    assert shape == "(20, 1200)" and identity.SAMPLED <= len(values.split(",")) < 2 * identity.SAMPLED
