"""What ComfyUI promises of sampling, one test for each hook that the pack relies on."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import pytest
import torch
from comfy.context_windows import (
    ContextFuseMethods,
    ContextSchedule,
    IndexListContextHandler,
    get_matching_fuse_method,
)
from comfy.model_sampling import EPS, V_PREDICTION
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import convert_cond
from comfy.samplers import KSAMPLER, CFGGuider, encode_model_conds
from comfy_extras.nodes_context_windows import ContextWindowsManualNode

from ..small import (
    EDIT,
    EMPTY,
    FRAMES,
    HEIGHT,
    TOKENS,
    UNET,
    WIDTH,
    SmallV,
    control_net,
    draw_noise,
    random_model,
    sample,
)

SIGMAS = (5.0, 2.0, 0.5)


def run(model, latent, function, callback=None, **options):
    """Sample by a function from a latent without noise."""
    samples = latent["samples"]
    sampler = KSAMPLER(function, options)
    given = torch.zeros_like(samples), 3.0, sampler, torch.tensor(SIGMAS), EDIT, EMPTY, samples
    return comfy.sample.sample_custom(model, *given, callback=callback, disable_pbar=True, seed=0)


def test_ksampler_hands_over_the_scaled_latent_and_its_options(model, latent) -> None:
    seen = {}

    def function(denoiser, x, sigmas, extra_args=None, callback=None, disable=None, ours=None):
        seen.update(x=x, sigmas=sigmas, ours=ours, options=extra_args["model_options"])
        seen["x_0"] = denoiser(x, sigmas[0] * x.new_ones(len(x)), **extra_args)
        return x

    run(model, latent, function, ours="here")
    torch.testing.assert_close(seen["x"].cpu(), 0.18215 * latent["samples"])
    assert seen["sigmas"].tolist() == [*SIGMAS] and seen["ours"] == "here"
    assert seen["x_0"].shape == seen["x"].shape and "transformer_options" in seen["options"]


def test_inverse_noise_scaling_leaves_an_image_models_state(model, latent) -> None:
    returned = run(model, latent, lambda _model, x, *_given, **_named: 2 * x)
    torch.testing.assert_close(returned, 2 * latent["samples"])


def test_process_latent_in_and_out_scale_and_are_inverse(model, latent) -> None:
    scaled = model.model.process_latent_in(latent["samples"])
    torch.testing.assert_close(scaled, 0.18215 * latent["samples"])
    torch.testing.assert_close(model.model.process_latent_out(scaled), latent["samples"])
    assert model.get_model_object("latent_format").latent_channels == 4


def test_model_sampling_has_its_table_and_its_prediction(model) -> None:
    sampling = model.get_model_object("model_sampling")
    assert len(sampling.sigmas) == 1000 and (sampling.sigmas.diff() > 0).all()
    assert type(sampling).calculate_denoised is EPS.calculate_denoised
    other = random_model(SmallV).get_model_object("model_sampling")
    assert type(other).calculate_denoised is V_PREDICTION.calculate_denoised
    assert sampling.percent_to_sigma(0.75) < sampling.percent_to_sigma(0.25)


def test_callbacks_get_each_step(model, latent) -> None:
    seen = []
    euler = comfy.samplers.sampler_object("euler").sampler_function
    run(model, latent, euler, lambda step, x_0, x, total: seen.append((step, x_0.shape == x.shape, total)))
    assert seen == [(0, True, 2), (1, True, 2)]


def test_prepare_callback_shows_previews_and_progress(model, latent, monkeypatch) -> None:
    shown = []
    latents = model.model.latent_format
    factors = latents.latent_rgb_factors, latents.latent_rgb_factors_bias, latents.latent_rgb_factors_reshape
    previewer = latent_preview.Latent2RGBPreviewer(*factors)
    monkeypatch.setattr(latent_preview, "get_previewer", lambda device, latent_format: previewer)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *given, **named: shown.append(given))
    x = latent["samples"]
    latent_preview.prepare_callback(model, 2)(0, x, x, 2)
    ((value, total, (kind, picture, _)),) = shown
    assert (value, total, kind, picture.size) == (1, 2, "JPEG", (WIDTH, HEIGHT))
    assert previewer.decode_latent_to_preview(x[:1]).size == (WIDTH, HEIGHT)


def test_interruption_ends_a_sampling(model, latent) -> None:
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, latent)
    comfy.model_management.throw_exception_if_processing_interrupted()  # is raised once


def test_progress_bar_shows_in_the_node_that_it_names(monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *given, **named: shown.append((given, named)))
    comfy.utils.ProgressBar(4, node_id="7").update_absolute(2, 4, "frame")
    assert shown == [((2, 4, "frame"), {"node_id": "7"})]


def test_wrappers_of_the_sampler_see_guider_and_prediction(model, latent) -> None:
    seen = {"levels": []}

    def begin(executor, guider, sigmas, extra_args, callback, noise, *rest, **kwargs):
        seen["guided"] = [cond["uuid"] for cond in guider.conds["positive"]]
        seen["model"] = guider.inner_model
        options = extra_args["model_options"]
        ours = {**options, "transformer_options": {**options["transformer_options"], "ours": 1}}
        return executor(guider, sigmas, {**extra_args, "model_options": ours}, callback, noise, *rest, **kwargs)

    def predict(executor, x, timestep, model_options=None, seed=None):
        seen["levels"].append(float(timestep[0]))
        assert model_options["transformer_options"]["ours"] == 1 and executor.class_obj.inner_model is seen["model"]
        return executor(x, timestep, model_options, seed)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "ours", begin)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "ours", predict)
    assert torch.equal(sample(patched, latent, sigmas=SIGMAS), sample(model, latent, sigmas=SIGMAS))
    assert len(seen["guided"]) == 1 and seen["model"] is model.model and seen["levels"] == [5.0, 2.0]


def test_a_wrapper_of_the_whole_sampling_sees_its_start(model, latent) -> None:
    seen = {}

    def begin(executor, noise, latent_image, sampler, sigmas, denoise_mask, *rest, **kwargs):
        seen.update(noise=noise, start=latent_image, sampler=sampler, first=float(sigmas[0]), mask=denoise_mask)
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, *rest, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "ours", begin)
    assert torch.equal(sample(patched, latent), sample(model, latent))
    assert torch.equal(seen["noise"].cpu(), draw_noise(latent)) and torch.equal(seen["start"], latent["samples"])
    assert isinstance(seen["sampler"], KSAMPLER) and seen["first"] == 5.0 and seen["mask"] is None


def test_cfg_guider_skips_the_negative_once_its_cfg_is_one(model, latent) -> None:
    rows = []

    def lower(guider, denoiser, x, sigmas, extra_args=None, callback=None, disable=None):
        denoiser(x, sigmas[0] * x.new_ones(len(x)), **extra_args)
        guider.cfg = 1.0
        denoiser(x, sigmas[0] * x.new_ones(len(x)), **extra_args)
        return x

    def count(executor, x, *given, **named):
        rows.append(len(x))
        return executor(x, *given, **named)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "ours", count)
    guider = CFGGuider(patched)
    guider.set_conds(EDIT, EMPTY)
    guider.set_cfg(3.0)
    samples = latent["samples"]
    sampler = KSAMPLER(lambda *given, **named: lower(guider, *given, **named))
    guider.sample(torch.zeros_like(samples), samples, sampler, torch.tensor(SIGMAS), disable_pbar=True, seed=0)
    assert rows == [2 * FRAMES, FRAMES]


def test_sampler_cfg_function_gets_both_predictions(model, latent) -> None:
    def guide(given):
        guided = torch.lerp(given["uncond_denoised"], given["cond_denoised"], float(given["cond_scale"]))
        assert given["input"].shape == guided.shape and len(given["sigma"]) == FRAMES
        return given["input"] - guided

    patched = model.clone()
    patched.set_model_sampler_cfg_function(guide)
    torch.testing.assert_close(sample(patched, latent), sample(model, latent), rtol=1e-4, atol=1e-4)


def test_context_windows_name_the_frames_of_each_call(model, latent) -> None:
    seen = set()

    def count(executor, x, *given, **named):
        window = named.get("transformer_options", given[-1])["context_window"]
        assert len(x) == 2 * len(window.index_list)
        seen.add(tuple(window.index_list))
        return executor(x, *given, **named)

    given = 3, 1, "standard_static", 1, False, "pyramid", 0, False
    windowed = ContextWindowsManualNode.execute(model, *given, causal_window_fix=False).args[0]
    assert windowed.model_options["context_handler"].context_length == 3
    windowed.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "ours", count)
    sample(windowed, latent)
    assert seen == {(0, 1, 2), (2, 3, 4)}


def test_relative_windows_may_leave_frames_out(model, latent) -> None:
    given = 3, 1, "standard_static", 1, False, "relative", 0, False
    windowed = ContextWindowsManualNode.execute(model, *given, causal_window_fix=False).args[0]
    handler = windowed.model_options["context_handler"]
    assert isinstance(handler, IndexListContextHandler) and handler.dim == 0
    assert handler.fuse_method.name == get_matching_fuse_method(ContextFuseMethods.RELATIVE).name
    handler.context_schedule = ContextSchedule("ours", lambda *_: [[0, 2, 4]])
    rows = []

    def count(executor, x, *given, **named):
        rows.append(len(x))
        return executor(x, *given, **named)

    windowed.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "ours", count)
    assert sample(windowed, latent, sigmas=SIGMAS).isfinite().all()
    assert rows == [2 * 3, 2 * 3]


def test_conditioning_becomes_the_unets_arguments(model, latent) -> None:
    x = latent["samples"]
    (cond,) = encode_model_conds(model.model.extra_conds, convert_cond(EDIT), x, x.device, "positive")
    given = cond["model_conds"]["c_crossattn"].process_cond(batch_size=FRAMES).cond
    assert given.shape == (FRAMES, TOKENS, UNET["context_dim"])
    assert torch.equal(given[-1:].cpu(), EDIT[0][0]) and cond["uuid"]


def test_a_wrapper_of_calc_cond_batch_may_evaluate_one_side(model, latent) -> None:
    seen = {}

    def evaluate(executor, unet, conds, x, timestep, model_options):
        both = executor(unet, conds, x, timestep, model_options)
        seen["apart"] = (executor(unet, [conds[0], None], x, timestep, model_options)[0] - both[0]).abs().max()
        return both

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "ours", evaluate)
    assert torch.equal(sample(patched, latent, sigmas=SIGMAS), sample(model, latent, sigmas=SIGMAS))
    assert seen["apart"] < 1e-3


def test_controlnet_takes_the_hints_that_it_holds_when_it_is_evaluated(latent) -> None:
    control, hints = control_net(), torch.rand(FRAMES, 3, 8 * HEIGHT, 8 * WIDTH)
    control.set_cond_hint(hints, 1.0, (0.0, 1.0))
    assert control.cond_hint is None and control.previous_controlnet is None
    assert torch.equal(control.cond_hint_original, hints)
    assert torch.equal(control.copy().cond_hint_original, hints)
