"""Edits with a prompt adapter: alone, with FFAM, and with EI²'s tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..modules.host.apply import apply_tune
from ..modules.host.inversion import InversionSettings, invert_clip
from ..modules.host.patch import attach, inflate
from ..modules.host.progress import TuningProgress
from ..modules.host.prompt_session import PromptSettings
from ..modules.host.prompt_tokens import apply_prompt_tokens, tune_prompt
from ..modules.host.sampling import SampleSettings, sample_clip
from ..modules.host.training import tune_model
from ..modules.host.tune_inputs import TuneInputs
from ..modules.presets import EI2, method
from ..modules.prompt_adapter import PromptAdapter
from ..modules.tuning import TuneSettings
from .world import World, load_clip

Base = Literal["image model", "FFAM", "EI²"]
TUNING_RATE, TOKEN_RATE, R, CFG = 1e-4, 1e-2, 4, 7.5


@dataclass(frozen=True)
class PromptEdit:
    """One edit with learned tokens.

    Attributes:
        base: the clip model that the tokens are learned on and that draws.
        clip: of demo/clips.
        seed: of both tunings.
        tuning_steps, token_steps: of EI²'s tuning and of the tokens', 0 = no tokens.
        ddim_steps: of inversion and sampling.
        consistency_weight: of the temporal consistency loss.
        strength: of the tokens in the edit.
        negative_strength: of the tokens before the negative prompt.
        inverted_with: strength of the tokens in the prompt of the inversion, which is else empty; None = without.
    """

    base: Base
    clip: str
    seed: int = 0
    tuning_steps: int = 200
    token_steps: int = 200
    ddim_steps: int = 50
    consistency_weight: float = 0.0
    strength: float = 1.0
    negative_strength: float = 1.0
    inverted_with: float | None = 1.0


def base_model(world: World, edit: PromptEdit) -> ModelPatcher:
    """Return the clip model of an edit, tuned where it is to be."""
    if edit.base == "image model":
        return inflate(world.model)
    if edit.base == "FFAM":
        return attach(inflate(world.model), method(EI2, R)[0], None)
    source, notes = load_clip(edit.clip)
    inputs = TuneInputs(world.prompt(notes["prompt"]), world.encode(source))
    settings = TuneSettings(edit.tuning_steps, TUNING_RATE, edit.seed)
    return apply_tune(world.patched(r=R), tune_model(world.patched(r=R), inputs, settings, TuningProgress("")))


def learn_tokens(world: World, edit: PromptEdit, model: ModelPatcher) -> PromptAdapter | None:
    """Return the tokens of an edit, None where it has none."""
    if not edit.token_steps:
        return None
    source, notes = load_clip(edit.clip)
    inputs = TuneInputs(world.prompt(notes["prompt"]), world.encode(source))
    settings = TuneSettings(edit.token_steps, TOKEN_RATE, edit.seed, consistency_weight=edit.consistency_weight)
    return tune_prompt(model, inputs, settings, PromptSettings(), TuningProgress(""), with_advice=False).adapter


def edit_with_tokens(world: World, edit: PromptEdit, model: ModelPatcher, tokens: PromptAdapter | None) -> Tensor:
    """Return the edited frames (f, 3, h, w) in 0 ... 1, to be judged; called in inference mode.

    Args:
        world: the demo model.
        edit: what to do.
        model: from `base_model`; one for several edits.
        tokens: from `learn_tokens`.
    """
    source, notes = load_clip(edit.clip)
    latent = world.encode(source)

    def prompt(words: str, strength: float | None) -> list:
        plain = world.prompt(words)
        if tokens is None or strength is None:
            return plain
        return apply_prompt_tokens(plain, tokens, len(source), strength, strength)

    empty = prompt("", edit.inverted_with)
    inversion = invert_clip(model, empty, empty, latent, InversionSettings(edit.ddim_steps, 0.0, "none"))
    sides = prompt(notes["edit"], edit.strength), prompt("", edit.negative_strength)
    with torch.inference_mode():
        return world.decode(sample_clip(model, *sides, inversion, SampleSettings(CFG))[0])
