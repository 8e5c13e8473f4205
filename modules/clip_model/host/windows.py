"""Clips in the host's context windows: what windows see of each other, and what in a conditioning is by frame."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

from comfy.context_windows import (
    ContextFuseMethods,
    ContextSchedule,
    IndexListContextHandler,
    get_matching_fuse_method,
)
from comfy.controlnet import ControlBase
from torch import Tensor

from ...sockets.pictures import check_finite
from ..attention.memory import ClipMemory
from .evolved import CONTEXT, WINDOWS, samples_in_windows, tell_frames
from .settings import KEY, is_active

log = logging.getLogger(__name__)
MEMORY, LENGTH = f"{KEY}_memory", f"{KEY}_length"
CHOSEN = "sub_idxs"  # attribute of Advanced-ControlNet's ControlNets
SPREAD = "sparse_settings"  # attribute of its SparseCtrl, whose few hints have frames of their own
WINDOW = "context_window"  # the host's key, there while it evaluates a window


def begin_sampling(executor, guider, sigmas, extra_args, callback, noise, *rest, **kwargs):
    """Wrap a sampling: check what conditionings have by frame, and give its windows a memory of the whole clip."""
    options = extra_args["model_options"]
    check_hints(guider.conds, len(noise))
    check_patches(options["transformer_options"].get("patches", {}))
    check_windows(options, len(noise))
    check_references(guider.conds, options, noise)
    put_masks_on_frames(guider.conds)
    shared = {**options["transformer_options"], LENGTH: len(noise)}
    memory = make_memory(options, len(noise))
    if memory is not None:
        shared[MEMORY] = memory
    options = {**options, "transformer_options": shared}
    return executor(guider, sigmas, {**extra_args, "model_options": options}, callback, noise, *rest, **kwargs)


def has_windows(options: Mapping[str, Any], frames: int) -> bool:
    """Whether the host's context windows split a clip of some frames."""
    return getattr(options.get("context_handler"), "context_length", frames) < frames


def check_windows(options: Mapping[str, Any], frames: int) -> None:
    """Say where windows are AnimateDiff-Evolved's, which keep the frames apart, and refuse them inside the host's."""
    if not samples_in_windows(options["transformer_options"]):
        return
    if has_windows(options, frames):
        raise ValueError(f"model carries both {CONTEXT} and {WINDOWS}, each of which splits the clip. Remove one.")
    if options["transformer_options"][KEY].spatial is not None:
        log.warning(
            "Frames attend to those of their own window alone in %s. In %s they see the clip.", CONTEXT, WINDOWS
        )


def make_memory(options: Mapping[str, Any], frames: int) -> ClipMemory | None:
    """Return the memory of a sampling, None where its attention does not look beyond a window, or there are none."""
    handler, settings = options.get("context_handler"), options["transformer_options"][KEY]
    if not isinstance(handler, IndexListContextHandler) or handler.dim != 0 or handler.context_length >= frames:
        return None
    if settings.spatial is None or settings.spatial.kind != "fine-coarse" or settings.spatial.r == 1:
        return None
    return ClipMemory(frames, settings.spatial.r)


def frames_at_once(options: Mapping[str, Any], frames: int) -> tuple[int, int]:
    """Return how many of a clip's frames a call of the network holds, and how many those attend to at most."""
    held = min(frames, getattr(options.get("context_handler"), "context_length", frames))
    memory = make_memory(options, frames)
    return held, held if memory is None else min(frames, held + len(memory.kept))


def predict_step(executor, x, timestep, model_options=None, seed=None):
    """Wrap the prediction of a step: fill the memory where it is used, then predict by it."""
    options = model_options["transformer_options"]
    memory: ClipMemory | None = options.get(MEMORY)
    if memory is not None and is_active(options[KEY], {"sigmas": timestep}):
        memory.begin()
        try:
            handler = model_options["context_handler"]
            spread, windows = copy(handler), memory.windows(handler.context_length)
            spread.context_schedule = ContextSchedule("spread", lambda *_: windows)
            spread.fuse_method = get_matching_fuse_method(ContextFuseMethods.RELATIVE)  # lets frames be left out
            spread.causal_window_fix = False
            executor(x, timestep, {**model_options, "context_handler": spread}, seed)
        finally:
            memory.is_filling = False
    return executor(x, timestep, model_options, seed)


def frames_of_window(options: Mapping[str, Any]) -> list[int] | None:
    """Return the numbers in the clip of the frames that a UNet call holds, None where it holds all of them."""
    window = options.get(WINDOW)
    if window is None or window.dim != 0:
        return None
    anchor = getattr(window, "causal_anchor_index", None)  # a frame before the window, which the host drops afterwards
    return [*([] if anchor is None or anchor < 0 else [anchor]), *window.index_list]


def evaluate_window(executor, model, conds, x, timestep, model_options):
    """Wrap the evaluation of a window: show its ControlNets the hints of its frames, not those of the first.

    Those of Advanced-ControlNet choose theirs themselves, with their masks and keyframes, by the frames that are told.
    """
    options = model_options["transformer_options"]
    frames = frames_of_window(options)
    if frames is None:
        return executor(model, conds, x, timestep, model_options)
    told = {**model_options, "transformer_options": tell_frames(options, frames, options[LENGTH])}
    with ExitStack() as afterwards:
        for control in controls(conds):
            if not hasattr(control, CHOSEN):
                afterwards.enter_context(hints_of(control, frames))
        return executor(model, conds, x, timestep, told)


@contextmanager
def hints_of(control: ControlBase, frames: list[int]) -> Iterator[None]:
    """Let a ControlNet have the hints of some frames alone; one hint is for all of them."""
    hints, prepared = control.cond_hint_original, control.cond_hint
    if hints is not None and len(hints) > 1:
        control.cond_hint_original, control.cond_hint = hints[frames], None
    try:
        yield
    finally:
        control.cond_hint_original, control.cond_hint = hints, prepared


def controls(conds: Any) -> list[ControlBase]:
    """Return the ControlNets of some lists of conditionings, each once, with those that precede them."""
    found = {id(cond["control"]): cond["control"] for side in conds for cond in side or () if "control" in cond}
    chain = list(found.values())
    for control in chain:
        before = control.previous_controlnet
        if before is not None and before not in chain:
            chain.append(before)
    return chain


def check_hints(conds: Mapping[str, list], frames: int) -> None:
    """Raise ValueError where a ControlNet has neither one hint nor one for each frame, or would mix those."""
    for control in controls(conds.values()):
        hints = control.cond_hint_original
        if isinstance(hints, Tensor):
            check_finite(hints, "The hint of ControlNet", "Connect its images again.")
            check_encoding(control, hints)
        if isinstance(hints, Tensor) and not hasattr(control, SPREAD) and len(hints) not in (1, frames):
            raise ValueError(
                f"ControlNet has {len(hints)} hints and the clip {frames} frames: ComfyUI would repeat or cut them "
                "without a word. Give it one hint for each frame, or one for all."
            )


def check_patches(patches: Mapping[str, list]) -> None:
    """Raise ValueError where a ControlNet that is a patch of the model, such as DiffSynth's, would mix its hints."""
    for patch in (patch for kind in patches.values() for patch in kind):
        check_encoding(patch, getattr(patch, "image", None))


def check_encoding(control: Any, hints: Any) -> None:
    """Raise ValueError where several hints are to be encoded by a video VAE, to which they are one video."""
    vae = getattr(control, "vae", None)
    is_of_videos = getattr(vae, "latent_dim", 2) == 3 and not getattr(vae, "not_video", False)
    if isinstance(hints, Tensor) and len(hints) > 1 and is_of_videos:
        raise ValueError(
            f"ControlNet has {len(hints)} hints and encodes them by a video VAE, as Qwen-Image's is, which would mix "
            "or drop them. Give it one hint for all frames."
        )


def check_references(conds: Mapping[str, list], options: Mapping[str, Any], noise: Tensor) -> None:
    """Raise ValueError where a reference is a video, or has neither one picture nor, without windows, one a frame."""
    frames, counts = len(noise), (1, options["transformer_options"][KEY].num_frames, len(noise))
    is_split = has_windows(options, frames) or samples_in_windows(options["transformer_options"])
    for cond in (cond for side in conds.values() for cond in side):
        for latent in cond.get("reference_latents", ()):
            if latent.ndim != noise.ndim or math.prod(latent.shape[2:-2]) > 1:
                raise ValueError(
                    f"A reference latent has shape {tuple(latent.shape)}, a video or another model's. Encode a "
                    "reference by the model's VAE, one picture for all frames; or one for each, encoded one by one, by "
                    "ReferenceLatent."
                )
            if len(latent) not in counts[: 1 if is_split else None]:
                raise ValueError(
                    f"A reference latent has {len(latent)} pictures and the clip {frames} frames. Give one for all "
                    "frames or, without context windows, one for each."
                )


def put_masks_on_frames(conds: Mapping[str, list]) -> None:
    """Give masks their axis of frames back where latents have one of time, for which the host took it."""
    for cond in (cond for side in conds.values() for cond in side):
        if "mask" in cond and cond["mask"].ndim > 3 and len(cond["mask"]) == 1:
            cond["mask"] = cond["mask"].movedim(1, 0)
