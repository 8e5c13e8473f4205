"""Prompts and edits under attention control."""

from collections.abc import Callable
from dataclasses import replace

import torch
from comfy.patcher_extension import WrappersMP

from consistent_video.modules.attention_control.host.call import ControlSettings
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
    """Return a controlled model that tells of each state that the source is evaluated at."""

    def tell(executor, inner, conds, x, *rest):
        if conds[1] is None:
            seen(x)
        return executor(inner, conds, x, *rest)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "test", tell)
    return model
