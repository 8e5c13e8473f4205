"""What identifies a model across restarts."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ...clip_model.host.settings import clip_settings
from ...diffusion.host.latent import prediction_of
from ...slices.host import slices_of

SAMPLED = 256  # values of a tensor that a digest looks at; no two models share them


def model_digest(model: ModelPatcher) -> str:
    """Return a digest of an inflated model's weights, patches, clip settings, slices, prediction and context length.

    Functions that other nodes attached do not count.

    Raises:
        ValueError: the model is not inflated, or it samples in an unknown way.
    """
    settings, slices = clip_settings(model), slices_of(model)
    parts = [
        # the weights as they were before the host put patches into them
        *model.get_key_patches("diffusion_model.").items(),
        *(settings.temporal.state_dict().items() if settings.temporal is not None else ()),
        getattr(settings.temporal, "config", None),
        replace(settings, temporal=None),
        prediction_of(model),
        getattr(model.model_options.get("context_handler"), "context_length", None),
        *((slices.settings, *slices.empty[0][:1]) if slices is not None else ()),
    ]
    digest = hashlib.sha256()
    for found in flatten(parts):
        digest.update(found + b"\n")
    return digest.hexdigest()


def flatten(part: Any) -> Iterator[bytes]:
    """Yield bytes that identify a part of a model; of a tensor its shape and values at equal distances."""
    if isinstance(part, Tensor):
        flat = part.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu().numpy()
        yield f"{tuple(part.shape)} ".encode() + values.tobytes()
    elif isinstance(part, WeightAdapterBase):
        yield from flatten(part.weights)
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from flatten(inner)
    elif not callable(part):
        yield repr(part).encode()
