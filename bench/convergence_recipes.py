"""The recipes of tuning that `python -m bench convergence` compares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch

from ..modules.tuning import settings as tuning_settings
from ..modules.tuning.settings import FACTOR, LENGTH, TuneSettings
from ..modules.tuning.tuner import Tuner
from .convergence_tuners import Averaged, ByMuon, EvenLevels, OppositeNoise, WalkedLevels

UNTUNED, PAPERS, OURS = "untuned", "paper", "fast"


@dataclass(frozen=True)
class Recipe:
    """A way to take the steps of a tuning.

    Attributes:
        says: what it is, for the document.
        factor: of the learning rate.
        length: of its tuning, as a part of the paper's steps.
        others: further settings by their names.
        follows: recipe of the pack.
        tuner: takes the steps.
        needs: optimiser of torch without which it cannot be tried.
    """

    says: str
    factor: float = 1.0
    length: float = 1.0
    others: Mapping[str, Any] = field(default_factory=dict)
    follows: tuning_settings.Recipe = "paper"
    tuner: type[Tuner] = Tuner
    needs: str = ""

    def can_run(self) -> bool:
        """Whether torch has what it needs."""
        return not self.needs or hasattr(torch.optim, self.needs)

    def settings(self, steps: int, rate: float, seed: int) -> TuneSettings:
        """Return the settings of a tuning by it, where the paper's has some steps at a learning rate."""
        return TuneSettings(round(self.length * steps), seed).changed(
            learning_rate=self.factor * rate, recipe=self.follows, **self.others
        )

    def stamp(self, steps: int, rate: float) -> str:
        """Return what identifies the settings of such a tuning, and what takes its steps."""
        settings = self.settings(steps, rate, 0)
        how = self.tuner.__name__, settings.optimization.rate_taken, sorted(settings.flat().items())
        return sha256(repr(how).encode()).hexdigest()[:8]


RECIPES: Mapping[str, Recipe] = {
    PAPERS: Recipe("EI²'s and Tune-A-Video's: AdamW at a constant rate, noise levels and noise drawn independently."),
    OURS: Recipe(f"a constant rate, {FACTOR:g} times as high.", length=LENGTH, follows="fast"),
    "cosine": Recipe(
        "a warm-up over 4 steps to 6 times the rate, from which it falls as a cosine.",
        6.0,
        LENGTH,
        {"schedule": "cosine", "warmup_steps": 4},
    ),
    "3 × rate": Recipe("a constant rate, three times as high.", 3.0, LENGTH),
    "10 × rate": Recipe("a constant rate, ten times as high.", 10.0, LENGTH),
    "min-SNR": Recipe("the paper's, with min-SNR weights of the loss, gamma 5.", 1.0, LENGTH, {"min_snr_gamma": 5.0}),
    "even levels": Recipe(
        "the paper's, with noise levels spread evenly over the run: after k steps at the fractional part of "
        "u + k · 0.618 of the timesteps, u drawn by the seed.",
        length=LENGTH,
        tuner=EvenLevels,
    ),
    "walked levels": Recipe(
        "the paper's, with noise levels drawn among those that inversion and edit cover at this size where denoise is "
        "auto; its loss, too, is measured over all levels.",
        length=LENGTH,
        tuner=WalkedLevels,
    ),
    "opposite noise": Recipe(
        "the paper's, in antithetic pairs of steps: the second has the first's noise level, and its noise with the "
        "opposite sign.",
        length=LENGTH,
        tuner=OppositeNoise,
    ),
    "average": Recipe(
        "the paper's steps, of which an exponential moving average of the weights is measured, its decay k / (9 + k) "
        "after k steps.",
        length=LENGTH,
        tuner=Averaged,
    ),
    "Muon": Recipe(
        "the paper's, with Muon for matrices, its steps scaled to the size of AdamW's at the same rate, and AdamW for "
        "the rest.",
        length=LENGTH,
        tuner=ByMuon,
        needs="Muon",
    ),
}
