"""What tells models and conditionings from others across restarts: digests of what they hold."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from comfy.context_windows import ContextHandlerABC, IndexListContextHandler
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn

from .patch import KEY, clip_settings

WINDOWS = "context_handler"
SAMPLED = 256  # values of a weight that a model's digest looks at


class NotIdentified(ValueError):
    """Something has no content that a digest could be made of."""


def digest(*things: Any) -> str:
    """Return the SHA-256 of tensors, numbers, texts, and lists, mappings and dataclasses of them.

    Raises:
        NotIdentified: one of them is none of these.
    """
    found = hashlib.sha256()
    for part in flatten(things):
        found.update(part + b"\0")
    return found.hexdigest()


def flatten(thing: Any) -> Iterable[bytes]:
    """Yield what a digest is made of."""
    if isinstance(thing, Tensor):
        yield str(tuple(thing.shape)).encode()
        yield thing.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    elif thing is None or isinstance(thing, bool | int | float | str | torch.dtype):
        yield repr(thing).encode()
    elif isinstance(thing, Mapping):
        for key in sorted(thing, key=str):
            yield str(key).encode()
            yield from flatten(thing[key])
    elif isinstance(thing, list | tuple | set):
        for part in sorted(thing, key=str) if isinstance(thing, set) else thing:
            yield from flatten(part)
        yield b"end"
    elif isinstance(thing, nn.Module):
        yield from flatten({key: look_at(value) for key, value in thing.state_dict().items()})
    elif isinstance(thing, WeightAdapterBase):
        yield type(thing).__name__.encode()
        yield from flatten(thing.weights)
    elif is_dataclass(thing):
        yield type(thing).__name__.encode()
        yield from flatten({field.name: getattr(thing, field.name) for field in fields(thing)})
    else:
        raise NotIdentified(type(thing).__name__)


def look_at(weight: Tensor) -> tuple[list[int], Tensor]:
    """Return what tells a weight from others: its shape and values at equal distances, which no two models share."""
    flat = weight.detach().reshape(-1)
    return list(weight.shape), flat[:: max(1, flat.numel() // SAMPLED)]


def model_digest(model: ModelPatcher, *but_for: str) -> str:
    """Return the digest of a model: its weights and their precision, patches, clip settings and kind of sampling.

    Args:
        model: inflated model.
        but_for: transformer options that are left out.

    Raises:
        NotIdentified: it carries patches of another node's making, whose content cannot be told.
        ValueError: it is not inflated.
    """
    settings, options = clip_settings(model), model.model_options["transformer_options"]
    known = {KEY, "patches", "patches_replace", "wrappers", "callbacks", "sample_sigmas", *but_for}
    own = {"transformer_options", "to_load_options", WINDOWS}
    foreign = set(options) - known | set(model.model_options) - own
    held = {**model.object_patches, **model.injections, **model.hook_patches}
    if foreign or held or other_functions(model):
        raise NotIdentified(", ".join(sorted(map(str, foreign))) or "patches of another node")
    # the weights as they were before the host put patches into them
    weights = {key: look_at(before[0][0]) for key, before in model.get_key_patches("diffusion_model.").items()}
    patches = {key: [patch[:4] for patch in added] for key, added in model.patches.items()}
    temporal = settings.temporal.config if settings.temporal is not None else None
    sampling = model.get_model_object("model_sampling")
    kind = [base.__name__ for base in type(sampling).__mro__], getattr(sampling, "sigmas", None)
    windows = [windows_of(model.model_options[WINDOWS])] if WINDOWS in model.model_options else []
    return digest(weights, patches, settings, temporal, kind, model.model.get_dtype_inference(), *windows)


def windows_of(handler: ContextHandlerABC) -> dict[str, Any]:
    """Return the settings of the host's context windows.

    Raises:
        NotIdentified: they are another node's.
    """
    if type(handler) is not IndexListContextHandler:
        raise NotIdentified("context windows of another node")
    held = {key: value for key, value in vars(handler).items() if key not in ("callbacks", "_step", "_model")}
    return {**held, "context_schedule": handler.context_schedule.name, "fuse_method": handler.fuse_method.name}


def other_functions(model: ModelPatcher) -> list[str]:
    """Return the names of functions on a model that this pack did not put there."""
    package, options = __name__.rsplit(".", 1)[0], model.model_options["transformer_options"]
    held = [patch for patches in options.get("patches", {}).values() for patch in patches]
    held += [patch for patches in options.get("patches_replace", {}).values() for patch in patches.values()]
    for kinds in (options.get("wrappers", {}), model.wrappers, options.get("callbacks", {}), model.callbacks):
        held += [function for keyed in kinds.values() for functions in keyed.values() for function in functions]
    functions = [part for patch in held for part in (patch if isinstance(patch, tuple) else (patch,)) if callable(part)]
    return [
        str(f)
        for f in functions
        if not getattr(f, "__module__", "").startswith((package, "comfy.ldm", "comfy.context_windows"))
    ]
