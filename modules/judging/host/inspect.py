"""What is attached to a MODEL, by this pack and by others, what sampling it takes, and what does not go together."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...attention_control.host.call import Control
from ...clip_model.host.attach import inflate
from ...clip_model.host.calls import OURS, attend_block
from ...clip_model.host.conflicts import find_conflicts, origin, origins
from ...clip_model.host.family import doubt_of_flow, family_of
from ...clip_model.host.settings import CONTROL, KEY, SLICES, ClipSettings, clip_settings
from ...diffusion.host.latent import fitting_latents, prediction_of
from ...slices.host import slices_of
from ...tuning.host.planner import GIB, free_memory, sampling_peak
from ..inspection import inspection_text

OWN = (KEY, CONTROL, SLICES)
FUNCTIONS = (
    "model_function_wrapper",
    "sampler_cfg_function",
    "sampler_calc_cond_batch_function",
    "denoise_mask_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
)
UNTUNED = (
    "Temporal modules are not tuned and do next to nothing. Tune them by One-Shot Tune, or set temporal_strength to 0."
)


def inspect_model(model: ModelPatcher, latent: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """Return what is attached to a model, as Markdown and as JSON values.

    Args:
        model: clip model or image model, of any kind.
        latent: a clip that is to be sampled with it; None = memory is not counted.

    Raises:
        ValueError: the latent is not one of the model's.
    """
    options = model.model_options["transformer_options"]
    settings: ClipSettings | None = options.get(KEY)
    control: Control | None = options.get(CONTROL)
    slices = slices_of(model)
    found = find_conflicts(model, settings) if settings is not None else []
    data = {
        "model": describe_model(model),
        "clip": None if settings is None else describe_clip(settings),
        "attention_control": None if control is None else asdict(control.settings),
        "slices": None if slices is None else asdict(slices.settings),
        "others": [{"kind": kind, "count": count, "by": by} for kind, count, by in list_others(model)],
        "windows": describe_windows(model),
        "sampling": None if latent is None else describe_sampling(model, latent),
        "conflicts": [{"name": one.name, "what": one.text(by), "refused": one.is_refused} for one, by in found],
        "hints": list_hints(model, settings),
    }
    return inspection_text(data), data


def describe_model(model: ModelPatcher) -> dict[str, Any]:
    """Return the kind of a model, what its UNet predicts, and in which precision."""
    known: dict[str, Any] = {
        "kind": type(model.model.model_config).__name__,
        "network": type(model.model.diffusion_model).__name__,
        "weights": str(model.model_dtype()).removeprefix("torch."),
        "computes_in": str(model.model.get_dtype_inference()).removeprefix("torch."),
        "gib": round(model.model_size() / GIB, 2),
    }
    sampling = type(model.get_model_object("model_sampling"))
    known["sampling"] = [base.__name__ for base in sampling.__bases__]
    return known


def describe_clip(settings: ClipSettings) -> dict[str, Any]:
    """Return clip settings as JSON values."""
    bank = settings.temporal
    return {
        "num_frames": settings.num_frames,
        "attention": None if settings.spatial is None else asdict(settings.spatial),
        "attention_strength": settings.spatial_strength,
        "temporal": None if bank is None else bank.config.noted(),
        "temporal_modules": 0 if bank is None else len(bank.paths),
        "temporal_tuned": bank is not None and bank.is_tuned,
        "temporal_strength": settings.temporal_strength,
        "percents": list(settings.percents),
        "tunes": len(settings.tunes),
        "tuned_frames": settings.tuned_frames,
    }


def list_others(model: ModelPatcher) -> Iterator[tuple[str, int, list[str]]]:
    """Yield what other nodes attached to a model: a kind, how many of it, and what made them."""
    options = model.model_options
    transformer = options["transformer_options"]
    for kind, patches in transformer.get("patches", {}).items():
        others = [run[1] if isinstance(run, tuple) else run for run in patches if run not in OURS]
        if others:
            yield f"patches {kind}", len(others), origins(others)
    for kind, replaced in transformer.get("patches_replace", {}).items():
        others = [patch for patch in replaced.values() if patch is not attend_block]
        if others:
            yield f"replacements {kind}", len(others), origins(others)
    for name in FUNCTIONS:
        functions = options.get(name) or []
        functions = functions if isinstance(functions, list) else [functions]
        if functions:
            yield name, len(functions), origins(functions)
    for attached, groups in (("wrappers", model.wrappers), ("callbacks", model.callbacks)):
        for kind, keyed in groups.items():
            others = [run for key, runs in keyed.items() if key not in OWN for run in runs]
            if others:
                yield f"{attached} {kind}", len(others), origins(others)
    named: dict[str, Iterable[str]] = {
        "weight patches (LoRA and the like)": model.patches,
        "weight functions": model.weight_wrapper_patches,
        "object patches": model.object_patches,
        "injections": model.injections,
        "attachments": model.attachments,
        "additional models": model.additional_models.keys() - {KEY},
    }
    for kind, names in named.items():
        if names:
            yield kind, len(list(names)), [] if names is model.patches else sorted(names)
    if model.hook_patches:
        yield "hooks", len(model.hook_patches), origins(model.hook_patches)


def describe_windows(model: ModelPatcher) -> dict[str, Any] | None:
    """Return the context windows of a model, None where it has none."""
    handler = model.model_options.get("context_handler")
    if handler is None:
        return None
    length = getattr(handler, "context_length", None)
    return {"by": origin(handler), "length": length, "overlap": getattr(handler, "context_overlap", None)}


def describe_sampling(model: ModelPatcher, latent: dict[str, Any]) -> dict[str, Any]:
    """Return the memory that sampling a clip with guidance takes, as far as this pack and the model need it."""
    samples = fitting_latents(model, latent, 0)
    frames, _, height, width = samples.shape
    size: dict[str, Any] = {"frames": frames, "width": 8 * width, "height": 8 * height}
    try:
        is_counted = family_of(model).parts
    except ValueError:
        is_counted = False
    if not is_counted:
        return {**size, "gib": None, "free_gib": None}
    windows = describe_windows(model) or {}
    at_once = min(frames, windows.get("length") or frames)
    peak = sampling_peak(only_ours(model), (at_once, *samples.shape[1:]))
    return {**size, "gib": round(peak / GIB, 2), "free_gib": round(free_memory() / GIB, 2)}


def only_ours(model: ModelPatcher) -> ModelPatcher:
    """Return a clip model with the settings and patches of this pack alone, whose memory can be counted."""
    clone = model.clone() if KEY in model.model_options["transformer_options"] else inflate(model)
    options = clone.model_options["transformer_options"]
    replaced, settings = options.get("patches_replace", {}).get("attn1", {}), clip_settings(clone)
    has_parts = settings.spatial is not None or settings.temporal is not None
    clone.model_options["transformer_options"] = {
        KEY: replace(settings, num_frames=0),
        "patches_replace": {"attn1": {place: run for place, run in replaced.items() if run is attend_block}},
        "patches": {"forward_timestep_embed_patch": list(OURS) if has_parts else []},
    }
    return clone


def list_hints(model: ModelPatcher, settings: ClipSettings | None) -> list[str]:
    """Return what is unusual in a model, and what to do."""
    hints: list[str] = []
    try:
        prediction_of(model)
        hints += filter(None, [doubt_of_flow(model)])
    except ValueError as error:
        hints.append(str(error))
    if settings is None:
        hints.append("The model is an image model: connect it through Inflate UNet, so that its batch is a clip.")
    elif settings.temporal is not None and not settings.temporal.is_tuned:
        hints.append(UNTUNED)
    return hints
