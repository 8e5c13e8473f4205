"""What AnimateDiff-Evolved attaches to a model by Use Evolved Sampling, as far as a clip's sampling depends on it."""

from collections.abc import Mapping
from typing import Any

from comfy.model_patcher import ModelPatcher

SETTINGS, PARAMS = "ADE_sample_settings", "ADE_params"  # its names of what it attaches
STATE = "ADGS"  # in the transformer options for as long as a sampling lasts
TOLD = "ad_params"  # in the transformer options: what others read there of the frames that a call holds
CONTEXT = "Context Options of AnimateDiff-Evolved"
WINDOWS = "Context Windows (Manual)"  # ComfyUI's


def window_length(model: ModelPatcher) -> int | None:
    """Return how many frames its windows hold, None where it has none."""
    return getattr(getattr(model.get_attachment(PARAMS), "context_options", None), "context_length", None)


def samples_in_windows(options: Mapping[str, Any]) -> bool:
    """Whether the sampling that has some transformer options goes through its windows."""
    return STATE in options and options[STATE].is_using_sliding_context()


def sets_guidance(model: ModelPatcher) -> bool:
    """Whether its own CFG takes the place of the sampler's."""
    return getattr(model.get_attachment(SETTINGS), "custom_cfg", None) is not None


def refuse_other_starts(model: ModelPatcher) -> None:
    """Raise ValueError where it samples several times, or stops on the way, to go on from another latent."""
    settings = model.get_attachment(SETTINGS)
    injection = getattr(settings, "image_injection", None)
    found = []
    if getattr(getattr(settings, "iteration_opts", None), "iterations", 1) > 1:
        found.append("Iteration Options (FreeInit is such)")
    if injection is not None and not injection.is_empty():
        found.append("Image Injection")
    if found:
        raise ValueError(
            f"model carries {' and '.join(found)} in Sample Settings of AnimateDiff-Evolved, which begin from other "
            "latents. A clip is inverted, and sampled from its inversion, once and as it is: remove them."
        )


def tell_frames(options: Mapping[str, Any], frames: list[int], total: int) -> dict[str, Any]:
    """Return transformer options that tell other nodes which frames of a clip a call holds.

    AnimateDiff-Evolved's form, which Advanced-ControlNet and IPAdapter read: without it their keyframes, masks and
    pictures would start over in each window.
    """
    return {**options, TOLD: {"sub_idxs": frames, "full_length": total, "context_length": len(frames)}}
