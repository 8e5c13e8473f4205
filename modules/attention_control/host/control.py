"""Attention Control: an edit whose attention follows the source clip's, as in prompt-to-prompt and FateZero.

At each step the UNet is evaluated on the source as well, at the state of the inversion at that step and with the source
prompt, or as the inversion itself evaluated it, which is computed again instead of kept for all steps. What its
attention layers computed there is used in the rows of the edited prompt, and forgotten with the step. In context
windows both are done window by window.
"""

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import convert_cond
from comfy.samplers import encode_model_conds
from torch import Tensor

from ...clip_model.host.bank import transformer_blocks
from ...clip_model.host.evolved import CONTEXT, WINDOWS, samples_in_windows
from ...clip_model.host.family import require_unet
from ...clip_model.host.settings import CACHE, CONTROL, KEY, STEER, UNSEEN
from ...clip_model.host.windows import WINDOW, frames_of_window
from ...inversion.host.invert import inversion_of, trajectory
from ...tuning.host.tune_inputs import check_plain
from .call import CALL, RUN, Call, Control, ControlSettings, Run, attend_cross, attend_self
from .prompts import Prompts
from .together import SourceRows, fit_together


def begin_sampling(executor, guider, sigmas, extra_args, callback, noise, *rest, **kwargs):
    """Wrap a sampling: prepare what its steps share, for as long as it lasts."""
    options = extra_args["model_options"]
    control: Control = options["transformer_options"][CONTROL]
    if sigmas[0] < sigmas[-1]:
        raise ValueError(
            "model of the inversion carries Attention Control, which is for the edit. Connect the clip model before "
            "Attention Control to the inversion."
        )
    check_run(control, options, guider.conds["positive"])
    model = guider.inner_model
    source = encode_model_conds(model.extra_conds, convert_cond(control.positive), noise, noise.device, "positive")
    edited = frozenset(cond["uuid"] for cond in guider.conds["positive"])
    places = list(dict.fromkeys(block.place for block in transformer_blocks(model.diffusion_model)))
    run = Run(control, source, edited, places)
    shared = {**options, "transformer_options": {**options["transformer_options"], RUN: run}}
    return executor(guider, sigmas, {**extra_args, "model_options": shared}, callback, noise, *rest, **kwargs)


def check_run(control: Control, options: dict[str, Any], positive: list) -> None:
    """Refuse what the control does not know, by name."""
    cache = options["transformer_options"].get(CACHE)
    if cache is not None:
        raise ValueError(f"Attention Control needs every step of the model, and {cache.name} skips some. Remove it.")
    if samples_in_windows(options["transformer_options"]):
        raise ValueError(f"Attention Control does not know the frames of {CONTEXT}. Use ComfyUI's {WINDOWS} instead.")
    if any("area" in cond for cond in positive):
        raise ValueError("Attention Control does not know prompts for an area. Use a mask, or a prompt for all of it.")
    wants_modules = control.recipe.follows == "temporal" and control.settings.self_end > 0
    if wants_modules and options["transformer_options"][KEY].temporal is None:
        raise ValueError(
            f"recipe {control.settings.recipe} lets attention over frames follow the source's until self_end "
            f"{control.settings.self_end:g}, and model has no temporal modules. Apply a tune that has them, choose "
            "another recipe, or set self_end to 0."
        )
    taken = options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    if taken and (control.changes_cross or control.needs_mask()):
        raise ValueError(
            "Another node (IPAdapter is one) replaces the model's cross-attention, which Attention Control has to. "
            "Remove it, or set cross to none with no weighted words and no mask."
        )


def predict_controlled(executor, x, timestep, model_options=None, seed=None):
    """Wrap the prediction of a step: check that it is one of the source's, and blend the source in."""
    run: Run = model_options["transformer_options"][RUN]
    control = run.control
    step, _ = control.find(float(timestep[0]))
    if x.shape != control.states[step].shape:
        raise ValueError(
            f"Attention Control holds a source of shape {tuple(control.states[step].shape)} and the clip that is "
            f"sampled has {tuple(x.shape)}. Sample the inversion that is connected to Attention Control."
        )
    run.begin_step()
    denoised = executor(x, timestep, model_options, seed)
    blends = control.settings.local_blend and control.recipe.blends(step, control.steps)
    return blend(run, step, x, denoised) if blends else denoised


def evaluate_controlled(executor, model, conds, x, timestep, model_options):
    """Wrap an evaluation of the UNet: evaluate the source's frames, too, and let the edit's attention follow them.

    Both are one call where they have one noise level, no mask of all layers is needed at once and memory suffices.
    """
    options = model_options["transformer_options"]
    run: Run = options[RUN]
    control, settings = run.control, run.control.settings
    step, states = control.find(float(timestep[0]))
    acts_on_self, acts_on_cross = control.acts_on_self(step), control.acts_on_cross(step)
    needs_mask = control.needs_mask(step)
    if not (acts_on_self or acts_on_cross or needs_mask):
        return executor(model, conds, x, timestep, model_options)
    replaced = options.get("patches_replace", {}).get("attn1", {})
    uses_cross = acts_on_cross or needs_mask
    told = timestep
    if control.recipe.calls == "inversion":
        states, level = control.inversion.call_at(control.states, step)
        told = level.to(timestep).expand_as(timestep)
    source, frames = run.source, frames_of_window(options)
    if frames is not None:
        source = model_options["context_handler"].get_resized_cond(source, states, options[WINDOW])
    else:
        frames = list(range(len(states)))

    # Evaluate the source first, or at once with the edit, whose attention follows.
    call = Call(run, step, frames, replaced)
    given = with_patches(model_options, call, uses_cross)
    if acts_on_self or settings.cross != "none" or needs_mask:
        seen, masks_at_once = states[frames].to(x), control.fuses and acts_on_self
        if told is timestep and not masks_at_once and fit_together(model, source, conds, x, model_options):
            given = with_rows(given, SourceRows(seen, *source))
        else:
            executor(model, [source, None], seen, told, with_options(given, {UNSEEN: True}))
    return executor(model, conds, x, timestep, given)


def with_options(model_options: dict[str, Any], further: dict[str, Any]) -> dict[str, Any]:
    """Return model options with further transformer options."""
    return {**model_options, "transformer_options": {**model_options["transformer_options"], **further}}


def with_rows(model_options: dict[str, Any], rows: SourceRows) -> dict[str, Any]:
    """Return model options for calls of which the first takes the source's rows, unseen by other wrappers."""
    wrappers = model_options["transformer_options"].get("wrappers", {})
    innermost = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), CONTROL: [rows]}
    return with_options(model_options, {"wrappers": {**wrappers, WrappersMP.APPLY_MODEL: innermost}})


def with_patches(model_options: dict[str, Any], call: Call, uses_cross: bool) -> dict[str, Any]:
    """Return model options for a step, with attention that the call decides on."""
    options = model_options["transformer_options"]
    patches = {**options.get("patches_replace", {}), "attn1": dict.fromkeys(call.run.places, attend_self)}
    if uses_cross:
        patches["attn2"] = dict.fromkeys(call.run.places, attend_cross)
    controlled: dict[str, Any] = {"patches_replace": patches, CALL: call}
    if call.run.control.recipe.follows == "temporal":
        controlled[STEER] = call.attend_temporal
    return with_options(model_options, controlled)


def blend(run: Run, step: int, x: Tensor, denoised: Tensor) -> Tensor:
    """Return a prediction from which a deterministic step leads to the source's state outside of the mask."""
    sigma, sigma_next = run.control.sigmas[step].to(x), run.control.sigmas[step + 1].to(x)
    kept = x - sigma * (run.control.kept_state(step).to(x) - x) / (sigma_next - sigma)
    mask = run.mask(x.shape[-2], x.shape[-1], with_edit=True, frames=list(range(len(x))))
    return torch.lerp(kept, denoised, mask.to(x))


def attach_control(
    model: ModelPatcher, latent: dict[str, Any], positive: list, prompts: Prompts, settings: ControlSettings
) -> ModelPatcher:
    """Return a clone of a clip model whose edits follow the source's attention, replacing any control before.

    Args:
        model: inflated model.
        latent: LATENT of the inversion that the edit is sampled from.
        positive: conditioning of the source prompt.
        prompts: tokens of both prompts.
        settings: of the control.

    Raises:
        ValueError: the inversion is not the model's, or the conditioning carries more than a prompt.
    """
    require_unet(model, "Attention Control", "Connect the model before that node.")
    inversion = inversion_of(latent, model)
    check_plain(positive, inversion.num_frames, "source_positive")
    clone = model.clone()
    for kind, wrapper in (
        (WrappersMP.SAMPLER_SAMPLE, begin_sampling),
        (WrappersMP.PREDICT_NOISE, predict_controlled),
        (WrappersMP.CALC_COND_BATCH, evaluate_controlled),
    ):
        clone.remove_wrappers_with_key(kind, CONTROL)
        clone.add_wrapper_with_key(kind, CONTROL, wrapper)
    control = Control(settings, prompts, positive, inversion, trajectory(model.model, inversion))
    check_recipe(control)
    check_prompts(control)
    clone.model_options["transformer_options"][CONTROL] = control
    return clone


def check_recipe(control: Control) -> None:
    """Raise ValueError where the settings or the inversion have what a recipe does not know."""
    settings, made = control.settings, control.inversion.settings
    if control.recipe.follows == "temporal" and settings.self_attention == "fusion":
        raise ValueError(
            f"self_attention is fusion, which mixes attention within frames, and recipe {settings.recipe} leaves that "
            "to the edit and controls attention over frames. Set self_attention to replace, or choose another recipe."
        )
    if made.solver != "DDIM" and (settings.local_blend or control.recipe.calls == "inversion"):
        part = "local_blend" if settings.local_blend else f"recipe {settings.recipe}"
        raise ValueError(
            f"{part} belongs to steps of DDIM, at whose noise levels it has the source, and inversion was made with "
            f"solver {made.solver}. Invert with solver DDIM, or "
            f"{'set local_blend to false' if settings.local_blend else 'choose another recipe'}."
        )
    if control.recipe.calls == "inversion" and made.refinements:
        raise ValueError(
            f"recipe {settings.recipe} takes attention from the inversion's own calls, one for each step, and "
            f"inversion made {made.refinements} more, its refinements. Invert with refinements 0, or choose another "
            "recipe."
        )
    if control.recipe.calls == "inversion" and made.method == "STEM":
        raise ValueError(
            f"recipe {settings.recipe} takes attention from the inversion's own calls, and those of method STEM attend "
            "to bases instead of tokens. Invert by DDIM, or choose another recipe."
        )


def check_prompts(control: Control) -> None:
    """Raise ValueError where the prompts do not fit the settings."""
    settings, prompts = control.settings, control.prompts
    if control.fuses and not prompts.source_words:
        raise ValueError(
            "No words of source_text say where the mask of fusion is: there are none that the edited prompt has not. "
            "Name some in mask_words."
        )
    if control.needs_mask() and not prompts.source_words + prompts.edited_words:
        raise ValueError("No words say where the mask is: the prompts have the same. Name some in mask_words.")
    if settings.cross == "replace" and prompts.replacement is None:
        raise ValueError(
            f"cross is replace, which pairs the words of source_text and edit_text one by one, and they have "
            f"{prompts.words[0]} and {prompts.words[1]}, or weights in parentheses. Choose refine."
        )
