"""Prompt tokens learned for a small model."""

import torch

from consistent_video.modules.clip_model.host.attach import inflate
from consistent_video.modules.prompt_tokens.adapter import PromptAdapter
from consistent_video.modules.prompt_tokens.host.session import PromptSettings
from consistent_video.modules.prompt_tokens.host.tokens import apply_prompt_tokens, tune_prompt
from consistent_video.modules.tuning.host import progress
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs
from consistent_video.modules.tuning.settings import TuneSettings

from ..small import EDIT, FRAMES, SOURCE, clip_latent, family_model

SETTINGS = TuneSettings().changed(steps=6, learning_rate=3e-2, seed=11)
PROMPT = PromptSettings(3, 2)


def clip_model(base=None):
    return inflate(base or family_model("SD1.x"))


def run(model=None, settings=SETTINGS, asked=PROMPT, keep=None, with_advice=False, embeddings=None, **changes):
    """Tune as the node does: the host executes nodes in inference mode."""
    inputs = TuneInputs(**{"positive": SOURCE, "latent": clip_latent(), **changes})
    with torch.inference_mode():
        shown = progress.TuningProgress("1")
        return tune_prompt(model or clip_model(), inputs, settings, asked, shown, keep, with_advice, embeddings)


def with_tokens(tokens: PromptAdapter, conditioning=EDIT, frames: int = FRAMES, *strengths: float) -> list:
    return apply_prompt_tokens(conditioning, tokens, frames, *strengths)


def assert_same(adapter: PromptAdapter, expected: PromptAdapter) -> None:
    assert torch.equal(adapter.shared, expected.shared) and torch.equal(adapter.frame, expected.frame)
    assert adapter.info == expected.info and adapter.state.keys() == expected.state.keys()
    assert all(torch.equal(adapter.state[key], value) for key, value in expected.state.items())
