"""Clips of flow-matching models: tiny random ones of the host's own configurations, inverted and sampled."""

from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import CFGGuider, DisableNoise, SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import (
    ModelSamplingDiscrete,
)
from torch import Tensor

from consistent_video.modules.attention_control.host.control import attach_control
from consistent_video.modules.clip_model.host.attach import attach
from consistent_video.modules.clip_model.methods import EI2, method
from consistent_video.modules.diffusion.host.latent import is_inverted
from consistent_video.modules.inversion.file import load_inversion, save_inversion
from consistent_video.modules.inversion.host.invert import INVERSION, to_latent
from consistent_video.modules.inversion.inversion import Method
from consistent_video.modules.sampling.host import InvertedClipSampler, SampleSettings
from consistent_video.modules.slices.host import SliceSettings, attach_slices
from consistent_video.modules.tuning.host.private_copy import check_tunable
from consistent_video.nodes.inversion import INRBidirectionalDDIMInversion
from consistent_video.nodes.sample import SmoothSampler
from nodes import ConditioningSetMask

from ..edits import away, edit, invert, left_half, patched, relation, small_latent, still
from ..flows import CHANNELS, EDIT, EMPTY, FRAMES, HEIGHT, KINDS, SOURCE, WIDTH, as_encoded, clip_of, draw, make, sample
from ..small import in_windows

STEPS = 5
PROMPTS = {"positive": SOURCE, "negative": EMPTY}


@pytest.fixture(scope="module", params=list(KINDS))
def model(request: pytest.FixtureRequest) -> ModelPatcher:
    return make(request.param)


@pytest.fixture(scope="module")
def flux() -> ModelPatcher:
    return make("Flux")


@pytest.fixture(scope="module")
def qwen() -> ModelPatcher:
    return make("Qwen-Image")


@pytest.fixture(scope="module")
def latent() -> dict[str, Tensor]:
    return clip_of()


@pytest.fixture(scope="module")
def clip(model, latent) -> dict[str, Tensor]:
    return as_encoded(model, latent)


def plain(model: ModelPatcher, latent: dict[str, Any], **given: Any) -> dict[str, Any]:
    return invert(model, latent, **{"steps": STEPS, "denoise": 0.9, **PROMPTS, **given})


def back(model: ModelPatcher, inversion: dict[str, Any], **given: Any) -> Tensor:
    return edit(model, inversion, **{"cfg": 1.0, **PROMPTS, **given})


@pytest.mark.parametrize(("given", "bound"), [({"refinements": 6}, 5e-4), ({"solver": "midpoint", "steps": 10}, 0.03)])
def test_the_clip_comes_back(model, clip, given: dict[str, Any], bound: float) -> None:
    found = away(back(model, plain(model, clip, **given)), clip["samples"])
    assert found < min(bound, 0.5 * away(back(model, plain(model, clip)), clip["samples"]))


def test_the_model_is_the_base_model_to_the_bit(model, clip) -> None:
    base = model.clone()
    base.wrappers.clear()
    noise = draw(*clip["samples"][:1].shape, seed=9)
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.4, 0.0])
    given = 2.0, sampler, sigmas, EDIT, EMPTY, clip["samples"][:1]
    one, other = (comfy.sample.sample_custom(each, noise, *given, disable_pbar=True, seed=0) for each in (model, base))
    assert one.equal(other)


def test_sampling_is_the_hosts_euler(model, clip) -> None:
    inverted = plain(model, clip)
    inversion = inverted[INVERSION]
    start = model.model.process_latent_in(inverted["samples"])
    sampling = model.get_model_object("model_sampling")
    sigmas = inversion.sigmas
    # The host scales what it is given by 1 - sigma.
    given = model.model.process_latent_out(start / (1 - sigmas[0]))
    wrapped = model.clone()
    wrapped.wrappers.clear()  # which refuse an inverted clip in other samplers
    sampler = comfy.samplers.sampler_object("euler")
    expected = comfy.sample.sample_custom(
        wrapped, torch.zeros_like(given), 1.0, sampler, sigmas, EDIT, EMPTY, given, disable_pbar=True, seed=0
    )
    assert sigmas[0] < 1 and torch.isin(sigmas[:-1], sampling.sigmas.cpu()).all()
    assert away(edit(model, inverted, cfg=1.0, positive=EDIT, negative=EMPTY), expected) < 1e-5


def test_a_step_there_and_one_back_in_bfloat16_are_near_full_precision(request, model, clip) -> None:
    """Some dozens of roundings by half of eps each, like a walk at random, come to a few eps of what a step moves."""
    inverted, edited = [], []
    for one in (model, make(request.node.callspec.params["model"], torch.bfloat16)):
        inverted.append(plain(one, clip, steps=1))
        edited.append(back(one, inverted[-1], positive=EDIT, cfg=2.0))
    starts, eps = [each["samples"] for each in inverted], torch.finfo(torch.bfloat16).eps
    assert 0 < away(starts[1] - clip["samples"], starts[0] - clip["samples"]) < 4 * eps
    assert 0 < away(edited[1] - starts[1], edited[0] - starts[0]) < 4 * eps


def test_a_walk_from_noise_alone_comes_back(flux, latent) -> None:
    inverted = plain(flux, latent, denoise=1.0, refinements=8)
    assert inverted[INVERSION].sigmas[0] == 1
    assert away(back(flux, inverted), latent["samples"]) < 2e-3


def test_frames_of_a_batch_do_not_mix(model, clip) -> None:
    together = plain(model, clip)["samples"]
    alone = plain(model, {"samples": clip["samples"][1:2]})["samples"]
    assert away(together[1:2], alone) < 1e-5
    assert away(back(model, plain(model, clip))[:1], clip["samples"][:1]) > 1e-4


def test_gamma_moves_the_start_continuously_and_one_frame_not_at_all(flux, latent) -> None:
    start = plain(flux, latent)["samples"]
    assert plain(flux, latent, gamma=0.5, direction="none")["samples"].equal(start)
    moved = [away(plain(flux, latent, gamma=gamma)["samples"], start) for gamma in (0.5, 1e-3)]
    assert moved[0] > 1e-3 > 100 * moved[1] > 0
    one = {"samples": latent["samples"][:1]}
    assert plain(flux, one, gamma=0.5)["samples"].equal(plain(flux, one)["samples"])


def test_the_relation_acts_at_sampling_and_not_without_an_edit(flux, latent) -> None:
    inverted = plain(flux, latent, refinements=8)
    tied = {"relation": relation(motion=still())}
    assert away(back(flux, inverted, **tied), back(flux, inverted)) < 5e-3
    edited = {"positive": EDIT, "cfg": 2.0}
    assert away(back(flux, inverted, **edited, **tied), back(flux, inverted, **edited)) > 0.01


def test_a_saved_inversion_gives_the_same_edit(flux, latent, tmp_path) -> None:
    inverted = plain(flux, latent)
    save_inversion(inverted[INVERSION], tmp_path / "a.safetensors")
    loaded = to_latent(load_inversion(tmp_path / "a.safetensors"))
    assert loaded[INVERSION].kind == "flow"
    assert back(flux, loaded).equal(back(flux, inverted))


def test_pictures_with_an_axis_of_time_keep_it_and_walk_without(qwen, latent, tmp_path) -> None:
    """Through the host's own sampling as well, from any step, and from a file, which has no such axis."""
    clip = as_encoded(qwen, latent)
    inverted = plain(qwen, clip, gamma=0.5)
    assert inverted["samples"].shape == clip["samples"].shape == (FRAMES, CHANNELS, 1, HEIGHT, WIDTH)
    assert inverted[INVERSION].source.equal(latent["samples"])
    tied = {"relation": relation(motion=still()), "mask": left_half(), "start_step": 1}
    edited = back(qwen, inverted, positive=EDIT, cfg=2.0, **tied)
    left, right = (edited - clip["samples"]).chunk(2, dim=-1)
    assert left.abs().amax() > 1e-2 > 1e-4 > right.abs().amax()
    assert away(back(qwen, inverted, positive=EDIT, cfg=2.0, **{**tied, "relation": None}), edited) > 1e-3

    save_inversion(inverted[INVERSION], tmp_path / "a.safetensors")
    loaded = to_latent(load_inversion(tmp_path / "a.safetensors"))
    assert back(qwen, loaded, positive=EDIT, cfg=2.0, **tied).equal(edited)
    sampler = InvertedClipSampler(loaded[INVERSION], SampleSettings(**tied))
    (guider,) = CFGGuider.execute(qwen, EDIT, EMPTY, 2.0).args
    given = DisableNoise.execute().args[0], guider, sampler, sampler.sigmas, loaded
    out, predicted = SamplerCustomAdvanced.execute(*given).args
    torch.testing.assert_close(out["samples"], edited)
    assert predicted["samples"].shape == edited.shape


def test_latents_of_other_axes_are_refused(qwen, latent) -> None:
    video = latent["samples"].movedim(0, 1)[None]
    with pytest.raises(ValueError, match=r"shape \(1, 16, 4, 8, 6\).* Rebatch Images with batch_size 1, VAE Encode"):
        plain(qwen, {"samples": video})
    with pytest.raises(ValueError, match=r"shape \(4, 16, 8, 6\) and the model's latents have 5 axes.* Rebatch Im"):
        plain(qwen, latent)
    inverted = plain(qwen, as_encoded(qwen, latent))
    with pytest.raises(ValueError, match=r"shape \(4, 16, 1, 8, 6\) and the model's latents have 4 axes"):
        back(make("SD3"), inverted)
    with pytest.raises(ValueError, match=r"shape \(4, 16, 8, 6\) and the model's latents have 5 axes"):
        back(qwen, plain(make("SD3"), latent))
    with pytest.raises(ValueError, match="is an inversion, which is noise"):
        plain(qwen, inverted)
    with pytest.raises(ValueError, match=r"shape \(1, 16, 4, 8, 6\); a clip of image latents .* mixes them\.$"):
        plain(make("SD3"), {"samples": video})


def test_a_clip_of_one_frame_may_be_what_is_left_of_more(qwen, flux, latent, caplog: pytest.LogCaptureFixture) -> None:
    for model, said in ((flux, False), (qwen, True)):
        caplog.clear()
        plain(model, as_encoded(model, {"samples": latent["samples"][:1]}), steps=1)
        assert ("latent has one frame. If more were encoded, they are lost." in caplog.text) == said


def test_prompts_travel_over_pictures_with_an_axis_of_time(qwen, latent) -> None:
    """By masks, in inversions and in the host's own samplers; in windows, too."""

    def masked(conditioning: list, *shares: float) -> list:
        mask = torch.tensor(shares)[:, None, None].expand(-1, 8 * HEIGHT, 8 * WIDTH)
        return ConditioningSetMask().append(conditioning, mask, "default", 1.0)[0]

    travel = masked(EDIT, 1, 1, 0.5, 0) + masked(SOURCE, 0, 0, 0.5, 1)
    for use in (lambda given: plain(qwen, as_encoded(qwen, latent), positive=given, steps=2)["samples"],
                lambda given: sample(qwen, latent, positive=given),
                lambda given: sample(in_windows(qwen, 3), latent, positive=given)):  # fmt: skip
        found, first, last = (use(given) for given in (travel, EDIT, SOURCE))
        assert max(away(found[:2], first[:2]), away(found[3], last[3])) < 1e-5
        assert min(away(found[2], first[2]), away(found[2], last[2])) > 1e-4
    with pytest.raises(ValueError, match="The mask on positive has 3 frames and the clip 4"):
        plain(qwen, as_encoded(qwen, latent), positive=masked(EDIT, 1, 1, 0.5))


def test_the_report_says_what_cfg_means(flux, latent) -> None:
    found = INRBidirectionalDDIMInversion.execute(flux, SOURCE, latent, steps=2, denoise=0.0, refinements=0)
    assert "guidance-distilled" in found.args[2] and "full noise" in found.args[2]
    assert float(found.args[1][0]) < 0.65  # 8 x 6 positions


@pytest.mark.parametrize("kind", ["edit-friendly DDPM", "STEM"])
def test_other_methods_are_refused(flux, latent, kind: Method) -> None:
    with pytest.raises(ValueError, match=f"method {kind} does not apply to Flux: .* Set method to DDIM"):
        plain(flux, latent, method=kind)


def test_parts_for_unets_are_refused_by_name(flux, latent) -> None:
    inverted = plain(flux, latent)
    for name, use in {
        "A temporal module does not apply to Flux: .* Set temporal": lambda: attach(flux, *method(EI2)),
        "Slice Denoiser": lambda: attach_slices(flux, EMPTY, SliceSettings()),
        "One-Shot Tune": lambda: check_tunable(flux),
        "cfg_rescale": lambda: back(flux, inverted, cfg_rescale=0.5),
        "eta 0.5": lambda: back(flux, inverted, eta=0.5),
        "gamma 0.5 has no effect": lambda: plain(flux, latent, gamma=0.5, denoise=1.0),
        "noise Gaussian does not": lambda: plain(flux, latent, gamma=0.5, noise="Gaussian", start="every step"),
        "end_step 2": lambda: back(flux, inverted, end_step=2),
        "Attention Control": lambda: attach_control(flux, inverted, SOURCE, None, None),
        "shape .*1, 8, 6": lambda: plain(flux, {"samples": latent["samples"].unsqueeze(2)}),
        "4 channels and the model's latents have 16": lambda: plain(flux, small_latent()),
        "by flow matching, and model samples without it": lambda: edit(patched(), inverted),
    }.items():
        with pytest.raises(ValueError, match=name):
            use()


def test_a_changed_inversion_is_still_known_as_one(flux) -> None:
    """Its spread is a clip's; what it was made of is smoother."""
    smooth = torch.nn.functional.interpolate(
        draw(FRAMES, CHANNELS, 4, 3, seed=7), size=(HEIGHT, WIDTH), mode="bilinear"
    )
    inverted = plain(flux, {"samples": smooth})
    assert not is_inverted({"samples": smooth}) and is_inverted(inverted)
    assert inverted["samples"].std() < 2 * smooth.std()
    for changed in (0.8 * inverted["samples"], inverted["samples"].flip(-1), inverted["samples"][..., 1:] + 0.5):
        assert is_inverted({**inverted, "samples": changed})
    for clip in (smooth.flip(-1), 1.2 * smooth + 0.1 * draw(*smooth.shape, seed=9), back(flux, inverted)):
        assert not is_inverted({**inverted, "samples": clip})


def test_cfg_of_a_guidance_distilled_model_is_spoken_of(flux, latent, caplog: pytest.LogCaptureFixture) -> None:
    inverted = plain(flux, latent)
    sampler, sigmas = SmoothSampler.execute(inverted, eta=0.0, seed=0, start_step=0, end_step=0).args
    given = sampler, sigmas, EDIT, EMPTY, inverted["samples"]
    for cfg, said in ((1.0, False), (2.0, True)):
        caplog.clear()
        comfy.sample.sample_custom(flux, torch.zeros_like(inverted["samples"]), cfg, *given, disable_pbar=True, seed=0)
        assert ("guidance-distilled" in caplog.text) == said


def test_other_samplers_refuse_an_inverted_clip(model, clip) -> None:
    inverted = plain(model, clip)  # held, or else it is forgotten
    samples = inverted["samples"]
    sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([0.5, 0.0])
    with pytest.raises(ValueError, match="scale down by 1 - sigma"):
        comfy.sample.sample_custom(
            model, torch.zeros_like(samples), 1.0, sampler, sigmas, EDIT, EMPTY, samples, disable_pbar=True, seed=0
        )


def test_transformers_made_to_sample_without_flow_matching_are_refused(flux, latent) -> None:
    (transformer,) = ModelSamplingDiscrete().patch(flux, "eps", False)
    with pytest.raises(ValueError, match="made to sample without flow matching"):
        plain(transformer, latent)
