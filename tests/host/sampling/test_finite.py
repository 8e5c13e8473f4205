"""Values that are not finite, at the doors and at each step, and sizes that do not fit."""

import math

import comfy.model_management
import comfy.sample
import pytest
import torch
from torch import Tensor

from consistent_video.modules.clip_model.host.calls import MOST_FRAMES, begin_call
from consistent_video.modules.clip_model.host.windows import check_hints
from consistent_video.modules.diffusion.host.finite import likely_source
from consistent_video.modules.inversion.host import invert as inverting
from consistent_video.nodes.inversion import INRBidirectionalDDIMInversion
from consistent_video.nodes.sample import InterframeNoiseRelation

from ..edits import edit, invert, patched, small_latent
from ..small import EDIT, control_net

WEIGHT = "diffusion_model.out.2.weight"


@pytest.fixture(scope="module")
def model():
    return patched()


@pytest.fixture(scope="module")
def latent() -> dict[str, Tensor]:
    return small_latent()


@pytest.fixture(scope="module")
def inversion(model, latent):
    return invert(model, latent, steps=3)


def spoilt(model, value: float = math.nan):
    """Return the model with a weight that a LoRA, as it were, made NaN or infinite."""
    clone = model.clone()
    difference = torch.zeros_like(model.model.diffusion_model.out[2].weight)
    difference[0, 0, 0, 0] = value
    clone.add_patches({WEIGHT: ("diff", (difference,))})
    return clone


def test_a_sampling_that_is_not_finite_names_step_and_source(model, latent, inversion) -> None:
    with pytest.raises(FloatingPointError, match="sampling .* step 1 of 3. 1 weights .* out.2.weight among them"):
        edit(spoilt(model), inversion)
    with pytest.raises(FloatingPointError, match="inversion .* step 1 of 3. 1 weights .* out.2.weight among them"):
        invert(spoilt(model, math.inf), latent, steps=3)
    assert edit(model, inversion).isfinite().all()


def test_what_becomes_infinite_on_the_way_names_its_step(model, inversion, monkeypatch) -> None:
    def guide(given: dict[str, Tensor]) -> Tensor:
        return given["input"] - given["cond_denoised"] * (math.inf if given["sigma"].max() < 2 else 1)

    guided = model.clone()
    guided.set_model_sampler_cfg_function(guide)
    with pytest.raises(FloatingPointError, match="at step 2 of 3. The model's weights are finite: lower cfg"):
        edit(guided, inversion)
    monkeypatch.setattr(type(model.model), "get_dtype_inference", lambda _: torch.float16)
    assert "computes in float16" in likely_source(guided) and "--bf16-unet" in likely_source(guided)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_is_refused_by_the_inputs_name(value: float, model, latent, inversion) -> None:
    states, values = EDIT[0]
    with pytest.raises(ValueError, match="^positive holds values that are not finite"):
        edit(model, inversion, positive=[[states + value, values]])
    with pytest.raises(ValueError, match="^negative holds values that are not finite"):
        edit(model, inversion, negative=[[states, {"pooled_output": values["pooled_output"] * value}]])
    with pytest.raises(ValueError, match="^The mask on positive holds values that are not finite"):
        edit(model, inversion, positive=[[states, {**values, "mask": torch.full((1, 64, 48), value)}]])
    net = control_net().set_cond_hint(torch.full((1, 3, 64, 48), value))
    with pytest.raises(ValueError, match="^The hint of ControlNet holds values that are not finite"):
        check_hints({"positive": [{"control": net}]}, len(latent["samples"]))


def test_what_does_not_fit_is_refused_before_memory_is_taken(model, latent, monkeypatch) -> None:
    options = model.model_options["transformer_options"]
    with pytest.raises(ValueError, match=f"see {MOST_FRAMES + 1} frames at once; at most {MOST_FRAMES}.*Windows"):
        begin_call(pytest.fail, torch.empty(MOST_FRAMES + 1, 4, 1, 1), transformer_options=options)
    monkeypatch.setattr(inverting.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 4000}))
    with pytest.raises(ValueError, match="inversion of 4 frames in 2 steps holds .* GiB.* Lower steps"):
        INRBidirectionalDDIMInversion.execute(model, EDIT, latent, steps=2, denoise=1.0, gamma=0.0, direction="none")


def test_lists_of_numbers_have_an_end() -> None:
    given = {"strength": 0.4, "start": 0.2, "end": 0.9, "keep_texture": 0.5, "frame_strengths": "1," * 500_000}
    with pytest.raises(ValueError, match="^frame_strengths has 500001 numbers. Give 1024 or fewer"):
        InterframeNoiseRelation.execute(**given)
    with pytest.raises(ValueError, match="^frame_strengths holds 2. Each must be"):
        InterframeNoiseRelation.execute(**{**given, "frame_strengths": "1," * 1000 + "2"})


def test_a_full_memory_is_met_with_advice(model, latent, inversion, monkeypatch) -> None:
    def fill(*_given: object) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(comfy.sample, "sample_custom", fill)
    for run in (lambda: invert(model, latent), lambda: edit(model, inversion)):
        with pytest.raises(
            torch.cuda.OutOfMemoryError, match=r"^4 frames of 48 x 64 do not fit .* long_clip"
        ) as caught:
            run()
        assert comfy.model_management.is_oom(caught.value)
