"""Inversion and sampling in the host, against diffusers on the same UNet."""

from dataclasses import replace

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import DisableNoise, Guider_Basic, RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import LCM
from diffusers import DDIMInverseScheduler, DDIMScheduler

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, TUNE_A_VIDEO_PRESET, method
from consistent_video.modules.diffusion.host.run import run_sampler
from consistent_video.modules.inversion.host.identity import model_digest
from consistent_video.modules.inversion.host.invert import INVERSION, inversion_of, invert_clip
from consistent_video.modules.inversion.inversion import InversionSettings
from consistent_video.modules.sampling.host import InvertedClipSampler, SampleSettings, sample_clip

from ..small import (
    EDIT,
    EMPTY,
    FRAMES,
    HEIGHT,
    SOURCE,
    WIDTH,
    Small,
    SmallV,
    clip_latent,
    control_net,
    in_windows,
    random_model,
)

STEPS = 10


def clip_model(kind: type[Small] = Small, preset: str = EI2):
    return attach(inflate(random_model(kind)), *method(preset, 2, "area"))


@pytest.fixture(scope="module")
def model():
    return clip_model()


@pytest.fixture(scope="module")
def latent():
    return clip_latent()


def invert(model, latent, steps: int, gamma: float, direction: str, denoise: float = 1.0, **settings) -> dict:
    given = InversionSettings(steps, gamma, direction, denoise=denoise, **settings)
    return invert_clip(model, SOURCE, SOURCE, latent, given)


def sample(model, positive, negative, inversion, cfg: float, **settings) -> dict:
    return sample_clip(model, positive, negative, inversion, SampleSettings(cfg, **settings))[0]


def plain(model, latent, steps: int = STEPS, **settings):
    return invert(model, latent, steps, 0.0, "none", **settings)


def schedule(kind, prediction: str, to_one: bool):
    scheduler = kind(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=to_one, timestep_spacing="leading", prediction_type=prediction,
    )  # fmt: skip
    scheduler.set_timesteps(STEPS)
    return scheduler


@torch.no_grad()
def diffusers_walk(
    model,
    kind,
    prediction: str,
    x: torch.Tensor,
    positive: list,
    cfg: float = 1.0,
    windows: dict | None = None,
    to_one: bool = False,
) -> torch.Tensor:
    """Walk with a scheduler of diffusers, calling the host's UNet directly; variance-preserving model latents.

    `windows` maps the frames that the UNet sees at a time to their weights in the mean of what it says of a frame.
    """
    windows = windows or {tuple(range(len(x))): (1.0,) * len(x)}
    scheduler = schedule(kind, prediction, to_one)
    unet, options = model.model.diffusion_model, model.model_options["transformer_options"]
    text = [prompt[0][0].expand(len(x), -1, -1).to(x) for prompt in (positive, EMPTY)]
    for t in scheduler.timesteps:
        said, weight = torch.zeros_like(x), torch.zeros(len(x), 1, 1, 1).to(x)
        for frames, weights in windows.items():
            seen = list(frames)
            both = (
                torch.cat([x[seen], x[seen]]),
                t.to(x).expand(2 * len(seen)),
                torch.cat([part[seen] for part in text]),
            )
            bound, free = unet(*both, transformer_options={**options, "cond_or_uncond": [0, 1]}).chunk(2)
            weights = torch.tensor(weights)[:, None, None, None].to(x)
            said[seen] += weights * (free + cfg * (bound - free))
            weight[seen] += weights
        x = scheduler.step(said / weight, t, x).prev_sample
    return x


@pytest.mark.parametrize(("kind", "prediction"), [(Small, "epsilon"), (SmallV, "v_prediction")])
@pytest.mark.parametrize("to_one", [False, True])
def test_inversion_and_sampling_agree_with_diffusers(latent, kind, prediction, to_one) -> None:
    model = clip_model(kind)
    inversion = plain(model, latent, **({"set_alpha_to_one": True} if to_one else {}))
    sigma = inversion[INVERSION].sigmas[0]
    x = (0.18215 * latent["samples"]).to(model.load_device)
    noisy = diffusers_walk(model, DDIMInverseScheduler, prediction, x, SOURCE, to_one=to_one)
    ours = (0.18215 * inversion["samples"] / (1 + sigma**2).sqrt()).to(noisy)
    assert (ours - noisy).norm() / noisy.norm() < 1e-4
    sampled = sample(model, EDIT, EMPTY, inversion, 4.0)["samples"].cpu()
    expected, other = (
        diffusers_walk(model, DDIMScheduler, prediction, noisy, EDIT, 4.0, to_one=ends_at_0).cpu() / 0.18215
        for ends_at_0 in (to_one, not to_one)
    )
    assert (sampled - expected).norm() / expected.norm() < 1e-4
    assert (sampled - other).norm() / other.norm() > 5e-4, "the last level does not matter here"


def test_in_context_windows_what_overlaps_is_blended(latent) -> None:
    """A long clip: the host shows the model some frames at a time, and this attention sees no others."""
    model = clip_model(preset=TUNE_A_VIDEO_PRESET)
    windowed = in_windows(model, 3)
    inversion = plain(windowed, latent)
    windows = {(0, 1, 2): (1.0, 2.0, 1.0), (2, 3, 4): (1.0, 2.0, 1.0)}
    x = (0.18215 * latent["samples"]).to(model.load_device)
    expected = diffusers_walk(model, DDIMInverseScheduler, "epsilon", x, SOURCE, windows=windows)
    sigma = inversion[INVERSION].sigmas[0]
    ours = (0.18215 * inversion["samples"] / (1 + sigma**2).sqrt()).to(expected)
    assert (ours - expected).norm() / expected.norm() < 1e-4
    sampled = sample(windowed, EDIT, EMPTY, inversion, 4.0)["samples"]
    expected = diffusers_walk(model, DDIMScheduler, "epsilon", expected, EDIT, 4.0, windows).cpu() / 0.18215
    assert (sampled.cpu() - expected).norm() / expected.norm() < 1e-4


def test_windows_tell_models_from_others(model, latent) -> None:
    digests = [model_digest(each) for each in (model, in_windows(model, 3), in_windows(model, 4))]
    assert len(set(digests)) == 3
    used = in_windows(model, 3)
    plain(used, latent, 2)
    assert model_digest(used) == digests[1], "a run leaves them as they are"


def test_reconstruction_gets_better_with_steps(model, latent) -> None:
    errors = []
    for steps in (8, 60):
        back = sample(model, SOURCE, EMPTY, plain(model, latent, steps), 1.0)["samples"].cpu()
        errors.append(((back - latent["samples"]).norm() / latent["samples"].norm()).item())
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.05


@pytest.mark.parametrize(("gamma", "direction"), [(0.0, "both"), (0.7, "none")])
def test_without_relation_it_is_plain_inversion_bit_for_bit(model, latent, gamma, direction) -> None:
    inversion = invert(model, latent, STEPS, gamma, direction)
    assert torch.equal(inversion["samples"], plain(model, latent)["samples"])


@pytest.fixture(scope="module")
def inverted(model, latent):
    return plain(model, latent)


@pytest.fixture(scope="module")
def last_prediction(model, latent, inverted) -> torch.Tensor:
    """The noise that the UNet predicts at the last inversion step, found from a walk of the papers' form."""
    sigmas = inverted[INVERSION].sigmas
    walk: list[torch.Tensor] = []
    sampler = comfy.samplers.KSAMPLER(lambda m, x, s, extra_args=None, **_: walk_inversion(m, x, s, extra_args, walk))
    run_sampler(model, latent["samples"], sampler, sigmas.flip(0), 1.0, SOURCE, SOURCE)
    return (walk[-1] - walk[-2]) / (sigmas[0] - sigmas[1])


def x_0_model(latent) -> torch.Tensor:
    return 0.18215 * latent["samples"]


def walk_inversion(denoise, x, sigmas, extra_args, walk: list) -> torch.Tensor:
    """Invert step by step in the papers' variance-preserving latents, keeping every state in k-diffusion's form."""
    x_vp = x  # the clean latent is taken for one, at whichever level the walk ends
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        seen = x_vp * (1 + after**2).sqrt()
        eps = (seen - denoise(seen, after.expand(len(x)), **extra_args)) / after
        alpha, alpha_after = 1 / (1 + sigma**2), 1 / (1 + after**2)
        x_0 = (x_vp - (1 - alpha).sqrt() * eps) / alpha.sqrt()
        x_vp = alpha_after.sqrt() * x_0 + (1 - alpha_after).sqrt() * eps
        x = x_vp * (1 + after**2).sqrt()
        walk.append(x.cpu())
    return x


@pytest.mark.parametrize("direction", ["both", "forward", "backward"])
@pytest.mark.parametrize("gamma", [0.3, 1.0])
@pytest.mark.parametrize("start", ["inverted latent", "clean latent"])
def test_the_start_is_that_of_equations_24_to_26(
    model, latent, inverted, last_prediction, start, direction, gamma
) -> None:
    """Their smoothed noise either takes the place of the predicted one or is added to the clean latent."""
    sigma = inverted[INVERSION].sigmas[0]
    x_0, eps_inv = x_0_model(latent), last_prediction
    eps = (0.18215 * inverted["samples"].cpu() - x_0) / sigma
    expected = []
    for n in range(FRAMES):
        neighbours = [n + 1] if direction in ("both", "backward") and n + 1 < FRAMES else []
        neighbours += [n - 1] if direction in ("both", "forward") and n > 0 else []
        predicted = [eps_inv[m] + eps[n] - eps[m] for m in neighbours] or [eps_inv[n]]
        expected.append((1 - gamma) * eps_inv[n] + gamma * sum(predicted) / len(predicted))
    smoothed = torch.stack(expected)
    starts = {
        "inverted latent": 0.18215 * inverted["samples"].cpu() + sigma * (smoothed - eps_inv),
        "clean latent": x_0 + sigma * smoothed,
    }
    found = 0.18215 * invert(model, latent, STEPS, gamma, direction, start=start)["samples"].cpu()
    assert (found - starts.pop(start)).norm() / found.norm() < 1e-4
    assert all((found - other).norm() / found.norm() > 1e-2 for other in starts.values())


def test_the_other_label_is_another_inversion(model, latent) -> None:
    current = invert(model, latent, STEPS, 0.0, "none", label="current")
    assert not torch.equal(current["samples"], plain(model, latent)["samples"])


def test_the_input_latent_stays_and_its_other_keys_survive(model) -> None:
    latent = {**clip_latent(), "batch_index": list(range(FRAMES))}
    before = latent["samples"].clone()
    inversion = plain(model, latent)
    assert torch.equal(latent["samples"], before) and INVERSION not in latent
    assert inversion["batch_index"] == latent["batch_index"]
    assert INVERSION not in sample(model, SOURCE, EMPTY, inversion, 1.0)


def test_the_hosts_sampler_node_gives_the_same_clip(model, latent) -> None:
    inversion = plain(model, latent)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(EDIT, EMPTY)
    guider.set_cfg(4.0)
    sigmas = inversion_of(inversion).sigmas
    (noise,) = DisableNoise.execute().args
    out = SamplerCustomAdvanced.execute(noise, guider, InvertedClipSampler(inversion_of(inversion)), sigmas, inversion)
    assert torch.equal(out.args[0]["samples"], sample(model, EDIT, EMPTY, inversion, 4.0)["samples"])


def test_noise_on_top_of_an_inversion_is_refused(model, latent) -> None:
    inversion = plain(model, latent)
    sigmas = inversion_of(inversion).sigmas
    guider = Guider_Basic(model)
    guider.set_conds(EDIT)
    (noise,) = RandomNoise.execute(1).args
    with pytest.raises(ValueError, match="DisableNoise"):
        SamplerCustomAdvanced.execute(noise, guider, InvertedClipSampler(inversion_of(inversion)), sigmas, inversion)
    (noise,) = DisableNoise.execute().args
    with pytest.raises(ValueError, match=f"{STEPS - 1} steps"):
        SamplerCustomAdvanced.execute(
            noise, guider, InvertedClipSampler(inversion_of(inversion)), sigmas[1:], inversion
        )
    with pytest.raises(ValueError, match="changed after it was made"):
        SamplerCustomAdvanced.execute(noise, guider, InvertedClipSampler(inversion_of(inversion)), sigmas, latent)
    masked = {**inversion, "noise_mask": torch.ones(1, 8 * HEIGHT, 8 * WIDTH)}
    with pytest.raises(ValueError, match="noise mask"):
        SamplerCustomAdvanced.execute(noise, guider, InvertedClipSampler(inversion_of(inversion)), sigmas, masked)


def test_what_does_not_match_the_inversion_is_refused(model, latent) -> None:
    inversion = plain(model, latent)
    with pytest.raises(ValueError, match="changed after it was made"):
        sample(model, EDIT, EMPTY, {**inversion, "samples": 0.5 * inversion["samples"]}, 4.0)
    with pytest.raises(ValueError, match="not inverted"):
        sample(model, EDIT, EMPTY, latent, 4.0)
    with pytest.raises(ValueError, match="noise mask"):
        sample(model, EDIT, EMPTY, {**inversion, "noise_mask": torch.ones(1, 8, 8)}, 4.0)
    with pytest.raises(ValueError, match="made of 5 frames and now has 3"):
        sample(model, EDIT, EMPTY, {**inversion, "samples": inversion["samples"][:3]}, 4.0)
    with pytest.raises(ValueError, match="num_frames = 2"):
        sample(inflate(model, 2), EDIT, EMPTY, inversion, 4.0)
    other = replace(inversion[INVERSION], sigmas=inversion[INVERSION].sigmas * 1.5)
    with pytest.raises(ValueError, match="noise schedule"):
        sample(model, EDIT, EMPTY, {**inversion, INVERSION: other}, 4.0)
    with pytest.raises(ValueError, match="Inflate UNet"):
        plain(random_model(), latent)
    with pytest.raises(ValueError, match="image latents"):
        plain(model, {"samples": torch.zeros(1, 4, 3, 8, 8)})
    with pytest.raises(ValueError, match="16 channels and the model's latents have 4"):
        plain(model, {"samples": torch.ones(3, 16, 8, 8)})
    with pytest.raises(ValueError, match="not finite"):
        sample(model, EDIT, EMPTY, {**inversion, "samples": inversion["samples"] * float("nan")}, 4.0)
    distilled = model.clone()
    sampling = type("ModelSampling", (comfy.model_sampling.ModelSamplingDiscrete, LCM), {})
    distilled.add_object_patch("model_sampling", sampling(model.model.model_config))
    with pytest.raises(ValueError, match="LCM"):
        plain(distilled, latent)


def test_controlnet_steers_the_edit_frame_by_frame(model, latent) -> None:
    inversion = plain(model, latent)
    hints = torch.rand(FRAMES, 3, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(12))

    def edit(strength: float, hints: torch.Tensor) -> torch.Tensor:
        control = control_net().set_cond_hint(hints, strength, (0.0, 1.0))
        positive = [[EDIT[0][0], {"control": control, "control_apply_to_uncond": True}]]
        return sample(model, positive, EMPTY, inversion, 4.0)["samples"]

    steered = edit(1.0, hints)
    assert steered.isfinite().all() and len(steered) == FRAMES
    without = sample(model, EDIT, EMPTY, inversion, 4.0)["samples"]
    assert torch.equal(edit(0.0, hints), without)
    assert not torch.allclose(steered, without, rtol=1e-2)
    assert not torch.allclose(edit(1.0, hints.flip(0)), steered, rtol=1e-2)
