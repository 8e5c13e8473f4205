"""Clip models: what is attached to a host MODEL so that its batch is a clip."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import comfy.model_patcher
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..attention.spatial import SpatialConfig
from ..temporal import TemporalConfig
from .bank import TemporalBank, transformer_blocks
from .calls import OURS, attend_block, begin_call, prepare_call
from .conflicts import check_sampling, refuse_conflicts
from .family import Family, family_of, require_attention, require_unet
from .joint import begin_joint_call, prepare_joint_call
from .settings import KEY, ClipSettings, clip_settings, sigmas_of
from .windows import begin_sampling, evaluate_window, predict_step

WRAPPERS: dict[str, Callable[..., Any]] = {  # of all families; what builds on clip models may add to it
    WrappersMP.SAMPLER_SAMPLE: begin_sampling,
    WrappersMP.PREDICT_NOISE: predict_step,
    WrappersMP.CALC_COND_BATCH: evaluate_window,
}


def wrappers_of(family: Family) -> dict[str, Callable[..., Any]]:
    """Return what wraps the host's work with a clip model of a family."""
    if family.transformer is None:
        return {**WRAPPERS, WrappersMP.PREPARE_SAMPLING: prepare_call, WrappersMP.DIFFUSION_MODEL: begin_call}
    return {**WRAPPERS, WrappersMP.PREPARE_SAMPLING: prepare_joint_call, WrappersMP.APPLY_MODEL: begin_joint_call}


def inflate(model: ModelPatcher, num_frames: int = 0) -> ModelPatcher:
    """Return a clone whose batch is a clip; the weights and, alone, the outputs are the base model's.

    Args:
        model: image model of a family that is known.
        num_frames: frames per clip, 0 = the whole batch is one clip.

    Raises:
        ValueError: the model is not supported.
    """
    wrappers, clone = wrappers_of(family_of(model)), model.clone()
    for kind, wrapper in wrappers.items():
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, check_sampling)
    options = clone.model_options["transformer_options"]
    options[KEY] = replace(options.get(KEY, ClipSettings()), num_frames=num_frames)
    return clone


def attach(
    model: ModelPatcher,
    spatial: SpatialConfig | None,
    temporal: TemporalConfig | None,
    spatial_strength: float = 1.0,
    temporal_strength: float = 1.0,
    percents: tuple[float, float] = (0.0, 1.0),
    tensors: Mapping[str, Tensor] | None = None,
) -> ModelPatcher:
    """Return a clone of an inflated model with attention across frames, replacing any attached before.

    A part of strength 0 is not attached at all, so that without both the outputs are the base model's.

    Args:
        model: inflated model.
        spatial: self-attention across frames, None = each frame for itself.
        temporal: temporal module in each block, None = none.
        spatial_strength: 0 ... 1, weight against the base model's self-attention.
        temporal_strength: 0 ... 1, factor of what the temporal modules add.
        percents: start and end of sampling between which both act, 0 ... 1.
        tensors: weights of the temporal modules, by the host's block paths; None = as they start.

    Raises:
        ValueError: the model is not inflated, does not take a part, carries a tune or what does not go together with
            it, or the part of sampling is empty.
    """
    attached = clip_settings(model)
    spatial = spatial if spatial_strength > 0 else None
    temporal = temporal if temporal_strength > 0 else None
    if spatial is not None:
        require_attention(model, spatial.kind)
    if temporal is not None:
        require_unet(model, "A temporal module", "Set temporal of STAM/FFAM Patch to none, or temporal_strength to 0.")
    sigmas = sigmas_of(model, percents)
    if tensors is None and attached.temporal is not None and attached.temporal.is_tuned:
        raise ValueError(
            "model carries a tune, whose temporal modules this patch would throw away. Connect STAM/FFAM Patch before "
            "One-Shot Tune, and nothing of it after Apply Tune."
        )
    clone = detach(model)
    bank = make_bank(clone, temporal, tensors) if temporal is not None else None
    refuse_conflicts(clone, ClipSettings(spatial=spatial, temporal=bank))
    if family_of(model).transformer is None:
        patch_unet(clone, spatial, bank)
    clone.model_options["transformer_options"][KEY] = replace(
        clip_settings(clone),
        spatial=spatial,
        spatial_strength=spatial_strength,
        temporal=bank,
        temporal_strength=temporal_strength,
        percents=percents,
        sigmas=sigmas,
    )
    return clone


def patch_unet(model: ModelPatcher, spatial: SpatialConfig | None, bank: TemporalBank | None) -> None:
    """Give a UNet the host's patches by which its frames are connected; a transformer needs none."""
    if spatial is not None:
        for place in dict.fromkeys(block.place for block in transformer_blocks(model.model.diffusion_model)):
            model.set_model_attn1_replace(attend_block, *place)
    if bank is not None:
        patcher = comfy.model_patcher.CoreModelPatcher(bank, model.load_device, model.offload_device)
        model.set_additional_models(KEY, [patcher])
    if spatial is not None or bank is not None:
        for patch in OURS:
            model.set_model_forward_timestep_embed_patch(patch)


def detach(model: ModelPatcher) -> ModelPatcher:
    """Return a clone of an inflated model without what `attach` put there."""
    clone = model.clone()
    clone.remove_additional_models(KEY)
    options = clone.model_options["transformer_options"]
    replaced = options.get("patches_replace", {}).get("attn1", {})
    for place in [place for place, patch in replaced.items() if patch is attend_block]:
        del replaced[place]
    patches = options.get("patches", {}).get("forward_timestep_embed_patch", [])
    patches[:] = [patch for patch in patches if patch not in OURS]
    attached = clip_settings(model)  # a tune's query projections stay
    options[KEY] = ClipSettings(attached.num_frames, tunes=attached.tunes, tuned_frames=attached.tuned_frames)
    return clone


def make_bank(model: ModelPatcher, temporal: TemporalConfig, tensors: Mapping[str, Tensor] | None) -> TemporalBank:
    """Return the temporal modules of a model, of its type and not to be trained; arguments as those of `attach`."""
    unet, weights = model.model.diffusion_model, None
    if temporal.follows == "self-attention" and tensors is None:
        # As in the checkpoint: without the patches that the host may have put into the weights.
        found = model.get_key_patches("diffusion_model.")
        weights = {name.removeprefix("diffusion_model."): patched[0][0] for name, patched in found.items()}
    bank = TemporalBank(transformer_blocks(unet), temporal, tensors, weights)
    return bank.to(model.model.get_dtype_inference()).eval().requires_grad_(False)
