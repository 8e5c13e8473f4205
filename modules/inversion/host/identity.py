"""What identifies a model across restarts."""

import hashlib
from dataclasses import replace

from comfy.model_patcher import ModelPatcher

from ...clip_model.host.identity import flatten
from ...clip_model.host.settings import clip_settings
from ...diffusion.host.latent import prediction_of
from ...slices.host import slices_of


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
