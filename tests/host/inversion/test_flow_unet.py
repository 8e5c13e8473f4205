"""UNets that sample by flow matching, and nodes that change how a model samples after it was patched."""

import math
from dataclasses import replace

import pytest
from comfy_extras.nodes_model_advanced import (
    ModelSamplingAuraFlow,
    ModelSamplingDiscrete,
    ModelSamplingFlux,
    ModelSamplingSD3,
)

from consistent_video.modules.attention_control.host.control import attach_control
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.settings import KEY, clip_settings
from consistent_video.modules.clip_model.methods import EI2, method
from consistent_video.modules.inversion.host.invert import INVERSION
from consistent_video.modules.judging.host.inspect import inspect_model, list_hints
from consistent_video.modules.slices.host import SliceSettings, attach_slices
from consistent_video.modules.tuning.host.private_copy import check_tunable

from .. import small
from ..edits import away, edit, invert, patched, small_latent
from ..flows import EMPTY, SOURCE, clip_of, make


def test_a_unet_made_to_sample_by_flow_matching_is_walked_so_and_not_tuned(caplog: pytest.LogCaptureFixture) -> None:
    """As an SDXL checkpoint that was trained so; a random UNet is as good a velocity as it is a noise."""
    (unet,) = ModelSamplingSD3().patch(patched(temporal="none"), 3.0)
    inverted = invert(unet, small_latent(), steps=4, denoise=0.4, refinements=12)
    assert inverted[INVERSION].kind == "flow" and "trained that way" in caplog.text
    back = edit(unet, inverted, cfg=1.0, positive=small.SOURCE, negative=small.EMPTY)
    assert away(back, small_latent()["samples"]) < 1e-3
    assert any("trained that way" in hint for hint in list_hints(unet, clip_settings(unet)))
    report = inspect_model(unet, small_latent())[1]
    assert report["sampling"]["gib"] > 0
    refused = {
        "One-Shot Tune.* does not apply to a UNet that samples by flow matching": lambda: check_tunable(unet),
        "A temporal module does not apply to a UNet": lambda: attach(unet, *method(EI2)),
        "Slice Denoiser does not": lambda: attach_slices(unet, small.EMPTY, SliceSettings()),
        "Attention Control does not": lambda: attach_control(unet, inverted, small.SOURCE, None, None),
        "method STEM does not": lambda: invert(unet, small_latent(), method="STEM"),
        "cfg_rescale does not": lambda: edit(unet, inverted, cfg_rescale=0.5),
        "without it, and model samples by flow matching": lambda: edit(unet, invert(patched(), small_latent())),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_what_a_flow_cannot_have_is_refused_in_the_other_order_too() -> None:
    """ModelSamplingSD3 after what was attached to a UNet that predicted noise."""
    attached = {
        "temporal modules, tunes and slices": patched(),
        "slices do not apply": attach_slices(patched(temporal="none"), small.EMPTY, SliceSettings()),
    }
    for message, model in attached.items():
        (flow,) = ModelSamplingSD3().patch(model, 3.0)
        with pytest.raises(ValueError, match=f"ModelSamplingSD3 .*{message}"):
            invert(flow, small_latent(), steps=2, denoise=0.4)
        assert invert(model, small_latent(), steps=2)["samples"].isfinite().all(), "without that node"


def test_noise_levels_moved_after_a_start_and_an_end_were_taken_from_them_are_refused() -> None:
    prompts = {"positive": SOURCE, "negative": EMPTY}
    spatial = method(EI2, 2, "area", temporal="none")
    unet, transformer = (attach(model, *spatial, percents=(0.0, 0.3)) for model in (patched(), inflate(make("Flux"))))
    moved = (
        (ModelSamplingSD3().patch(unet, 3.0), small_latent(), {}),
        (ModelSamplingDiscrete().patch(unet, "eps", True), small_latent(), {}),
        (ModelSamplingFlux().patch(transformer, 1.15, 0.5, 64, 64), clip_of(), prompts),
    )
    for (model,), given, own in moved:
        with pytest.raises(ValueError, match="A ModelSampling node .*took start_percent and end_percent"):
            invert(model, given, steps=2, **own)
    nudged = unet.clone()
    options = nudged.model_options["transformer_options"]
    options[KEY] = replace(options[KEY], sigmas=(math.inf, math.nextafter(options[KEY].sigmas[1], 0)))
    assert invert(nudged, small_latent(), steps=2)["samples"].isfinite().all(), "as on another device"
    assert invert(transformer, clip_of(), steps=2, **prompts)["samples"].isfinite().all(), "without that node"


def test_times_that_a_unet_does_not_count_in_are_refused() -> None:
    for (model,) in (
        ModelSamplingAuraFlow().patch_aura(patched(temporal="none"), 1.73),
        ModelSamplingFlux().patch(patched(temporal="none"), 1.15, 0.5, 64, 64),
    ):
        with pytest.raises(ValueError, match="times from 0 to 1, but UNets expect 0 to 1000. Put ModelSamplingSD3"):
            invert(model, small_latent(), steps=2, denoise=0.4)
