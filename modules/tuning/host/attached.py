"""What other nodes attached to a model, where its UNet is to run without ComfyUI's sampler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...clip_model.host.calls import OURS, attend_block
from ...clip_model.host.conflicts import layer_runners, origin, origins
from ...clip_model.host.settings import CACHE, CONTROL, KEY

HARMLESS = (KEY, COMPILE_KEY, CACHE)  # keys of wrappers: ours, and those that only make sampling faster
FAILURES = (RuntimeError, LookupError, TypeError, AttributeError)


def refuse_injections(model: ModelPatcher) -> None:
    """Raise ValueError where something is put into the UNet's layers for sampling alone, such as a bypass LoRA."""
    if model.injections:
        raise ValueError(
            f"model carries {', '.join(map(str, model.injections))}, which would have no effect here: it acts while "
            "ComfyUI samples and is not part of the weights. Replace Load LoRA (Bypass) by Load LoRA, or remove it."
        )


def check_attached(model: ModelPatcher) -> None:
    """Refuse what would have no effect on a private copy, naming the nodes to remove."""
    refuse_injections(model)
    options = model.model_options
    if CONTROL in options["transformer_options"]:
        raise ValueError(
            "model carries Attention Control, which is for the edit. Connect the clip model before Attention Control."
        )
    names = [
        origin(wrapper)
        for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)
        for key, wrappers in model.wrappers.get(kind, {}).items()
        if key not in HARMLESS
        for wrapper in wrappers
    ]
    if "model_function_wrapper" in options:
        names.append(origin(options["model_function_wrapper"]))
    names += [f"a patch of {key}" for key in model.object_patches if key.startswith("diffusion_model")]
    if runners := layer_runners(model):
        raise ValueError(
            f"model carries {', '.join(runners)}, which runs layers of the UNet that have to run otherwise here. "
            "Remove that node; it may follow this one."
        )
    if names:
        raise ValueError(
            f"model carries {', '.join(dict.fromkeys(names))}, which changes how ComfyUI's sampler calls the UNet and "
            "would have no effect here. Remove that node; it may follow this one."
        )


def apply_apart(patch: Callable[..., Any], *given: Any) -> Any:
    """Apply another node's patch to copies, and save copies for the backward pass, because it may write in place."""
    with saved_tensors_hooks(torch.clone, lambda saved: saved):
        return patch(*(value.clone() if isinstance(value, Tensor) else value for value in given))


def foreign_patches(model: ModelPatcher) -> list[Any]:
    """Return the functions that other nodes patched a model's UNet with."""
    options = model.model_options["transformer_options"]
    patches = [patch for kind in options.get("patches", {}).values() for patch in kind if patch not in OURS]
    patches += [patch for kind in options.get("patches_replace", {}).values() for patch in kind.values()]
    return [patch[-1] if isinstance(patch, tuple) else patch for patch in patches if patch is not attend_block]


@contextmanager
def naming_patches(model: ModelPatcher) -> Iterator[None]:
    """Name the nodes whose patches a model carries where it fails, for they are written for sampling alone.

    Raises:
        ValueError: it failed, not for want of memory, and other nodes patched it.
    """
    try:
        yield
    except FAILURES as error:
        names = origins(foreign_patches(model))
        if not names or comfy.model_management.is_oom(error):
            raise
        raise ValueError(
            f"The model failed outside of sampling ({type(error).__name__}: {error}). It carries patches of "
            f"{', '.join(names)}, made for sampling. Remove them before this node; they may follow it."
        ) from error
