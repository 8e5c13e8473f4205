"""What no node can use is refused in words before anything is computed, whichever node it is connected to."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.nested_tensor
import pytest
import torch
from comfy_extras.nodes_custom_sampler import DisableNoise, Guider_Basic, SamplerCustomAdvanced
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from torch import Tensor

from consistent_video.modules.attention_control.host.call import ControlSettings
from consistent_video.modules.attention_control.host.control import attach_control
from consistent_video.modules.inversion.host.invert import INVERSION
from consistent_video.modules.inversion.host.stability import measure_stability
from consistent_video.modules.prompt_tokens.adapter import PromptAdapter
from consistent_video.modules.sampling.host import SampleSettings
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.nodes.inversion import INRBidirectionalDDIMInversion, SaveInversion
from consistent_video.nodes.judge import CompareGrid, EditScorecard
from consistent_video.nodes.plan import FitPlanner
from consistent_video.nodes.prompt import ApplyPromptTokens, TunePromptTokens
from consistent_video.nodes.report import CovariateShiftReport, InversionStability, ReconstructionReport
from consistent_video.nodes.sample import ClipMotion, InterframeNoiseRelation, SmoothSample, SmoothSampler
from consistent_video.nodes.tune import OneShotTune
from nodes import ConditioningSetTimestepRange, SetLatentNoiseMask

from ..attention_control.controlled import PROMPTS
from ..edits import FACTOR, FRAMES, edit, invert, patched, small_latent
from ..small import EDIT, EMPTY, SOURCE, UNET

Latent = dict[str, Any]
PICTURES = torch.rand(3, 24, 40, 3, generator=torch.Generator().manual_seed(0))
ADAPTER = PromptAdapter(torch.randn(2, UNET["context_dim"]), torch.randn(FRAMES, 1, UNET["context_dim"]), {})


@pytest.fixture(autouse=True)
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for node in (OneShotTune, TunePromptTokens, InversionStability):
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="1"))


@pytest.fixture(scope="module")
def model():
    return patched()


@pytest.fixture(scope="module")
def latent() -> Latent:
    return small_latent()


@pytest.fixture(scope="module")
def inversion(model, latent) -> Latent:
    return invert(model, latent)


@pytest.fixture(scope="module")
def plain(model, latent) -> Latent:
    return invert(model, latent, direction="none")


# Images.

TAKES_IMAGES: dict[str, Callable[[Tensor], Any]] = {
    "source of Compare Grid": lambda images: CompareGrid.execute(images, edit_1=PICTURES).args,
    "edit_2 of Compare Grid": lambda images: CompareGrid.execute(PICTURES, edit_1=PICTURES, edit_2=images).args,
    "source of Edit Scorecard": lambda images: EditScorecard.execute(images, PICTURES, "").args[1:2],
    "edited of Edit Scorecard": lambda images: EditScorecard.execute(PICTURES, images, "").args[1:2],
    "images of Clip Motion": lambda images: [ClipMotion.execute(images).args[0].forward],
}


@pytest.mark.parametrize("socket", TAKES_IMAGES)
def test_pictures_with_alpha_are_those_without(socket: str) -> None:
    take = TAKES_IMAGES[socket]
    found, expected = take(torch.cat([PICTURES.sqrt(), torch.zeros(3, 24, 40, 1)], dim=-1)), take(PICTURES.sqrt())
    assert all(a == b if isinstance(a, str) else torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("socket", TAKES_IMAGES)
def test_one_channel_is_grey(socket: str) -> None:
    take, grey = TAKES_IMAGES[socket], PICTURES[..., :1]
    found, expected = take(grey), take(grey.expand(-1, -1, -1, 3))
    assert all(a == b if isinstance(a, str) else torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("socket", TAKES_IMAGES)
@pytest.mark.parametrize(
    "images",
    [PICTURES[0], PICTURES[..., :2], PICTURES * math.nan, (PICTURES * 255).int()],
    ids=["one picture", "two channels", "NaN", "whole numbers"],
)
def test_what_are_no_images_is_refused_by_the_inputs_name(socket: str, images: Tensor) -> None:
    with pytest.raises(ValueError, match=f"^{socket.split()[0]} (has the shape|holds) .*Connect the frames"):
        TAKES_IMAGES[socket](images)


# Masks.


def tune(model, latent: Latent, mask: Tensor | None = None) -> None:
    OneShotTune.execute(model, SOURCE, latent, 1, learning_rate=1e-3, seed=0, mask=mask)


def tune_tokens(model, latent: Latent, mask: Tensor | None = None) -> None:
    settings = {"advise_learning_rate": False, "on_interrupt": "discard", "options": TuneSettings()}
    TunePromptTokens.execute(model, SOURCE, latent, 1, 1, steps=1, learning_rate=1e-3, seed=0, mask=mask, **settings)


TAKES_MASKS: dict[str, Callable[..., Any]] = {
    "One-Shot Tune": tune,
    "Tune Prompt Tokens": tune_tokens,
    "Edit Scorecard": lambda *_, mask: EditScorecard.execute(PICTURES, PICTURES, "", mask=mask),
    "Interframe Noise Relation": lambda *_, mask: InterframeNoiseRelation.execute(0.5, 0, 1, 0, "", mask=mask),
    "Smooth Sample": lambda *_, mask: SampleSettings(mask=mask),
}


@pytest.mark.parametrize("node", TAKES_MASKS)
@pytest.mark.parametrize(
    "mask",
    [torch.full((1, 24, 40), math.nan), torch.ones(1, 24, 40, 3), torch.ones(1, 24, 40).byte()],
    ids=["NaN", "a picture", "bytes"],
)
def test_what_is_no_mask_is_refused(node: str, model, latent, mask: Tensor) -> None:
    with pytest.raises(ValueError, match="^mask (has the shape|holds) .*Connect a mask"):
        TAKES_MASKS[node](model, latent, mask=mask)


@pytest.mark.parametrize("node", ["Interframe Noise Relation", "Smooth Sample", "One-Shot Tune"])
def test_a_mask_that_selects_nothing_is_refused(node: str, model, latent) -> None:
    with pytest.raises(ValueError, match="^mask (selects nothing|leaves nothing)"):
        TAKES_MASKS[node](model, latent, mask=torch.zeros(1, 24, 40))


# Latents.

TAKES_CLIPS: dict[str, Callable[[Any, Latent], Any]] = {
    "INR Bidirectional DDIM Inversion": lambda model, latent: INRBidirectionalDDIMInversion.execute(
        model, SOURCE, latent, steps=2, gamma=0.0, direction="none"
    ),
    "One-Shot Tune": tune,
    "Tune Prompt Tokens": tune_tokens,
    "Covariate Shift Report": lambda model, latent: CovariateShiftReport.execute(model, SOURCE, latent, 0.5, 0),
}
TAKES_SIZES: dict[str, Callable[[Any, Latent], Any]] = {
    "Fit Planner": lambda model, latent: FitPlanner.execute(model, latent, 100.0),
    "Apply Prompt Tokens": lambda model, latent: ApplyPromptTokens.execute(SOURCE, ADAPTER, latent, 1.0, 1.0),
}
WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a video latent": (lambda samples: samples[None].movedim(1, 2), r"latent has shape \(1, 4, 4, 8, 6\)"),
    "one latent": (lambda samples: samples[0], r"latent has shape \(4, 8, 6\)"),
    "latents of two kinds": (
        lambda samples: comfy.nested_tensor.NestedTensor([samples] * 2),
        "latent has shape Nested",
    ),
    "NaN": (lambda samples: samples * math.nan, "latent holds values that are not finite"),
    "whole numbers": (lambda samples: samples.int(), "latent holds int32 values"),
}
CHANNELS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "16 channels": (
        lambda samples: samples.repeat(1, 4, 1, 1),
        "latent has 16 channels and the model's latents have 4",
    ),
    "16 empty channels": (lambda samples: 0 * samples.repeat(1, 4, 1, 1), "latent has 16 channels"),
}


@pytest.mark.parametrize("node", TAKES_CLIPS | TAKES_SIZES)
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_batch_of_image_latents_is_refused(node: str, kind: str, model, latent) -> None:
    change, said = WRONG[kind]
    with pytest.raises(ValueError, match=f"^{said}.*Encode the frames"):
        (TAKES_CLIPS | TAKES_SIZES)[node](model, {"samples": change(latent["samples"])})


@pytest.mark.parametrize("node", [*TAKES_CLIPS, "Fit Planner"])
@pytest.mark.parametrize("kind", CHANNELS)
def test_latents_of_another_model_are_refused(node: str, kind: str, model, latent) -> None:
    change, said = CHANNELS[kind]
    with pytest.raises(ValueError, match=f"^{said}"):
        (TAKES_CLIPS | TAKES_SIZES)[node](model, {"samples": change(latent["samples"])})


@pytest.mark.parametrize("node", TAKES_CLIPS)
def test_an_empty_latent_is_no_clip(node: str, model, latent) -> None:
    with pytest.raises(ValueError, match="^latent is an empty latent, all zeros. Encode the frames"):
        TAKES_CLIPS[node](model, {"samples": 0 * latent["samples"]})


@pytest.mark.parametrize("node", TAKES_CLIPS)
def test_a_noise_mask_on_a_clip_is_refused(node: str, model, latent) -> None:
    (masked,) = SetLatentNoiseMask().set_mask(latent, torch.ones(1, 24, 40))
    with pytest.raises(ValueError, match="^latent has a noise mask, from Set Latent Noise Mask"):
        TAKES_CLIPS[node](model, masked)


@pytest.mark.parametrize("node", TAKES_CLIPS)
@pytest.mark.parametrize("change", [lambda x: x, lambda x: x[1:3], lambda x: x.half()], ids=["whole", "cut", "half"])
def test_an_inversion_is_no_clip(node: str, change: Callable[[Tensor], Tensor], model, inversion) -> None:
    with pytest.raises(ValueError, match="^latent is an inversion, which is noise. Connect the latent of the clip"):
        TAKES_CLIPS[node](model, {**inversion, "samples": change(inversion["samples"])})


@pytest.mark.parametrize("change", [lambda x: x.flip(-1), lambda x: x[..., 1:], lambda x: 0.9 * x, lambda x: x + 1])
def test_noise_that_was_made_of_an_inversion_is_no_clip(change: Callable[[Tensor], Tensor], model, inversion) -> None:
    source = inversion[INVERSION].source
    noise = source + 14.6 / FACTOR * torch.randn(source.shape, generator=torch.Generator().manual_seed(1))
    changed = {"samples": change(noise), INVERSION: replace(inversion[INVERSION], start=noise)}
    with pytest.raises(ValueError, match="^latent is an inversion"):
        invert(model, changed)
    invert(model, {**changed, "samples": 1.5 * source.flip(0)})


@pytest.mark.parametrize("denoise", [0.2, 1.0])
def test_an_edited_clip_that_carries_its_inversion_is_a_clip(denoise: float, model, latent) -> None:
    inversion = invert(model, latent, denoise=denoise)
    edited = {**inversion, "samples": edit(model, inversion)}
    again = invert(model, edited, denoise=denoise)
    assert torch.equal(again[INVERSION].source, edited["samples"])


TAKES_INVERSIONS: dict[str, Callable[[Any, Latent], Any]] = {
    "Smooth Sample": lambda model, latent: SmoothSample.execute(model, EDIT, EMPTY, latent, 4.0),
    "Smooth Sampler": lambda model, latent: SmoothSampler.execute(latent),
    "Save Inversion": lambda model, latent: SaveInversion.execute(latent, "swan"),
    "Reconstruction Report": lambda model, latent: ReconstructionReport.execute(
        model, None, SOURCE, EMPTY, latent, 1.0
    ),
    "Inversion Stability": lambda model, latent: InversionStability.execute(model, SOURCE, latent, 1),
}


@pytest.mark.parametrize("node", TAKES_INVERSIONS)
def test_a_clip_is_no_inversion(node: str, model, latent, inversion) -> None:
    with pytest.raises(ValueError, match="^inversion is a latent that was not inverted. Connect the inversion output"):
        TAKES_INVERSIONS[node](model, latent)
    for samples, said in ((inversion["samples"] * math.nan, "holds values"), (inversion["samples"][None], "has shape")):
        with pytest.raises(ValueError, match=f"^inversion {said}"):
            TAKES_INVERSIONS[node](model, {**inversion, "samples": samples})


# Conditionings.


def with_values(**values) -> list:
    return [[states, {**given, **values}] for states, given in EDIT]


def half(start: float, end: float) -> list:
    return ConditioningSetTimestepRange().set_range(EDIT, start, end)[0]


TAKES_PROMPTS: dict[str, Callable[..., Any]] = {
    "INR Bidirectional DDIM Inversion": lambda model, latent, _, positive: INRBidirectionalDDIMInversion.execute(
        model, positive, latent, steps=2, denoise=1.0, gamma=0.0, direction="none"
    ),
    "Covariate Shift Report": lambda model, latent, _, positive: CovariateShiftReport.execute(
        model, positive, latent, 0.7, 0
    ),
    "Smooth Sample": lambda model, _, inversion, positive: edit(model, inversion, positive=positive),
    "Smooth Sampler": lambda model, _, inversion, positive: sample_by_host(model, inversion, positive),
    "One-Shot Tune": lambda model, latent, _, positive: OneShotTune.execute(
        model, positive, latent, 1, learning_rate=1e-3, seed=0
    ),
    "Attention Control": lambda model, _, inversion, positive: attach_control(
        model, inversion, positive, PROMPTS, ControlSettings()
    ),
    "Inversion Stability": lambda model, _, inversion, positive: measure_stability(model, positive, inversion),
}
SAMPLING = ["INR Bidirectional DDIM Inversion", "Covariate Shift Report", "Smooth Sample", "Smooth Sampler"]


def sample_by_host(model, inversion: Latent, positive: list) -> Any:
    guider = Guider_Basic(model)
    guider.set_conds(positive)
    (sampler, sigmas), (noise,) = SmoothSampler.execute(inversion).args, DisableNoise.execute().args
    return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, inversion)


@pytest.mark.parametrize("node", TAKES_PROMPTS)
def test_prompts_for_other_frames_are_refused(node: str, model, latent, plain) -> None:
    three = [[EDIT[0][0].repeat(3, 1, 1), EDIT[0][1]]]
    with pytest.raises(ValueError, match="has 3 prompts and the clip 4 frames"):
        TAKES_PROMPTS[node](model, latent, plain, three)
    each = [[EDIT[0][0].repeat(4, 1, 1), EDIT[0][1]]]
    TAKES_PROMPTS[node](model, latent, plain, each)


@pytest.mark.parametrize("node", SAMPLING)
def test_steps_without_a_prompt_are_refused(node: str, model, latent, plain) -> None:
    with pytest.raises(ValueError, match=r"No prompt of positive acts at sigma .*Set Timestep Range"):
        TAKES_PROMPTS[node](model, latent, plain, half(0.0, 0.5))
    TAKES_PROMPTS[node](model, latent, plain, half(0.0, 0.5) + half(0.5, 1.0))


@pytest.mark.parametrize("node", SAMPLING)
def test_masks_of_prompts_that_select_nothing_or_other_frames_are_refused(node: str, model, latent, plain) -> None:
    for mask, said in ((torch.zeros(1, 64, 48), "selects nothing"), (torch.ones(3, 64, 48), "has 3 frames")):
        with pytest.raises(ValueError, match=f"The mask on positive {said}"):
            TAKES_PROMPTS[node](model, latent, plain, with_values(mask=mask, mask_strength=1.0))
    TAKES_PROMPTS[node](model, latent, plain, with_values(mask=torch.ones(4, 64, 48), mask_strength=1.0))


UNHEARD = ("control", "mask", "area", "gligen", "hooks", "end_percent", "concat_latent_image")
LEARNING = [(node, key) for node in TAKES_PROMPTS if node not in SAMPLING for key in UNHEARD]
LEARNING.remove(("One-Shot Tune", "control"))  # which it tunes with


@pytest.mark.parametrize(("node", "key"), LEARNING)
def test_what_only_sampling_uses_is_refused(node: str, key: str, model, latent, plain) -> None:
    with pytest.raises(ValueError, match=f"ositive carries {key}, which would have no effect here"):
        TAKES_PROMPTS[node](model, latent, plain, with_values(**{key: None}))


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
def test_caches_are_refused_where_steps_rise_or_all_are_needed(node, model, latent, plain) -> None:
    (cached,) = node.execute(model, 0.2, 0.15, 0.95, False).args
    with pytest.raises(ValueError, match=f"model of the inversion carries {node.__name__[:9]}, which knows falling"):
        invert(cached, latent)
    controlled = attach_control(cached, plain, SOURCE, PROMPTS, ControlSettings())
    with pytest.raises(ValueError, match=f"every step of the model, and {node.__name__[:9]} skips some. Remove it"):
        edit(controlled, plain)
    assert edit(cached, plain).isfinite().all()


@pytest.mark.parametrize("labels", ["a" * 1_000_000, "a\nb", "\ud800", "\0", "a" * 1000 + ", " + "a" * 1000 + "b"])
def test_labels_of_any_length_and_kind_leave_the_grid_its_size(labels: str) -> None:
    plain, strip = CompareGrid.execute(PICTURES, edit_1=PICTURES, edit_2=PICTURES).args
    clip, labelled = CompareGrid.execute(PICTURES, labels, edit_1=PICTURES, edit_2=PICTURES).args
    assert clip.shape == plain.shape and labelled.shape[2] < strip.shape[2] + 500


def test_reports_are_strict_json(monkeypatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    undefined = PICTURES.clone()
    monkeypatch.setattr("consistent_video.modules.judging.scorecard.texture_kept", lambda edit, source: math.inf)
    _, data, _ = EditScorecard.execute(undefined, undefined, "").args
    assert json.loads(data, parse_constant=refuse)["rows"]["edit"]["texture"] is None
