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
from torch import Tensor

from consistent_video.modules.inversion.host.invert import INVERSION
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

from ..edits import FACTOR, FRAMES, HEIGHT, WIDTH, edit, invert, patched
from ..small import EDIT, EMPTY, SOURCE, UNET, clip_latent

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
    return {"samples": clip_latent(FRAMES)["samples"][..., :HEIGHT, :WIDTH].contiguous()}


@pytest.fixture(scope="module")
def inversion(model, latent) -> Latent:
    return invert(model, latent)


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
    [PICTURES[:0], PICTURES[0], PICTURES[..., :2], PICTURES * math.nan, (PICTURES * 255).int()],
    ids=["no frame", "one picture", "two channels", "NaN", "whole numbers"],
)
def test_what_are_no_images_is_refused_by_the_inputs_name(socket: str, images: Tensor) -> None:
    with pytest.raises(ValueError, match=f"^{socket.split()[0]} (has the shape|is empty,|holds) .*Connect the frames"):
        TAKES_IMAGES[socket](images)


# Masks.


def tune(model, latent: Latent, mask: Tensor | None = None) -> None:
    OneShotTune.execute(model, SOURCE, latent, 1, 1e-3, 0, mask=mask)


def tune_tokens(model, latent: Latent, mask: Tensor | None = None) -> None:
    settings = {"advise_learning_rate": False, "on_interrupt": "discard", "options": TuneSettings()}
    TunePromptTokens.execute(model, SOURCE, latent, 1, 1, 1, 1e-3, 0, mask=mask, **settings)


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
    [torch.full((1, 24, 40), math.nan), torch.ones(0, 24, 40), torch.ones(1, 24, 40, 3), torch.ones(1, 24, 40).byte()],
    ids=["NaN", "no frame", "a picture", "bytes"],
)
def test_what_is_no_mask_is_refused(node: str, model, latent, mask: Tensor) -> None:
    with pytest.raises(ValueError, match="^mask (has the shape|is empty,|holds) .*Connect a mask"):
        TAKES_MASKS[node](model, latent, mask=mask)


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
    "no frame": (lambda samples: samples[:0], r"latent is empty, of shape \(0, 4, 8, 6\)"),
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


# Texts.


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
