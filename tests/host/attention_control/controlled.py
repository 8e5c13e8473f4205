"""Prompts and edits under attention control."""

from collections.abc import Callable
from dataclasses import replace

import torch
from comfy.patcher_extension import WrappersMP

from consistent_video.modules.attention_control.host.call import RUN, ControlSettings
from consistent_video.modules.attention_control.host.control import attach_control
from consistent_video.modules.attention_control.host.prompts import Prompts
from consistent_video.modules.inversion.inversion import InversionSettings
from consistent_video.modules.sampling.host import SampleSettings, sample_clip

from ..small import EDIT, EMPTY, SOURCE, TOKENS

STEPS = 5
PLAIN = InversionSettings(STEPS, 0.0, denoise=1.0)
ALIGNED = (0, 1, -1, 2, 4, -1, 6)
SHARES = [{0: 1.0}, {1: 0.5}, {1: 0.5}, {2: 1.0, 3: 1.0}, {4: 1.0}, {5: 1.0}, {6: 1.0}]  # words of 1, 2, 1 and 2, 1, 1
REPLACEMENT = torch.tensor([[shares.get(i, 0.0) for shares in SHARES] for i in range(TOKENS)])
PROMPTS = Prompts(ALIGNED, (1.0,) * TOKENS, (3, 5), (2, 5), REPLACEMENT, (3, 3))
WEIGHTED = replace(PROMPTS, weights=(1.0, 1.0, 3.0, 1.0, 0.5, 1.0, 1.0))


def controlled(model, inversion, settings: ControlSettings, prompts: Prompts = PROMPTS):
    return attach_control(model, inversion, SOURCE, prompts, settings)


def sample(model, inversion, cfg: float = 3.0, positive=EDIT, **settings) -> torch.Tensor:
    return sample_clip(model, positive, EMPTY, inversion, SampleSettings(cfg, **settings))[0]["samples"]


def watched(model, seen: Callable[[torch.Tensor], object]):
    """Return a controlled model that tells of the source's rows in each call, as the UNet is given them."""

    def tell(executor, x, timesteps, context, y, control, options, **given):
        for one, rows in zip(options["uuids"], x.chunk(len(options["uuids"])), strict=True):
            if one in options[RUN].source_ids:
                seen(rows)
        return executor(x, timesteps, context, y, control, options, **given)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", tell)
    return model


def counted(model, rows: list[int], where: str = WrappersMP.DIFFUSION_MODEL):
    """Return a model that tells how many rows each call of its UNet has, or what else of the host is wrapped."""

    def count(executor, x, *rest, **given):
        rows.append(len(x))
        return executor(x, *rest, **given)

    model = model.clone()
    model.add_wrapper_with_key(where, "rows", count)
    return model
