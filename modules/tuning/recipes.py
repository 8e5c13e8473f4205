"""Recipes of one-shot tuning: how long its steps are."""

from typing import Literal

from .settings import TuneSettings

Recipe = Literal["paper", "fast"]
FACTOR, LENGTH = 5.0, 0.4  # of "fast": of the learning rate, of the paper's steps


def follow_recipe(settings: TuneSettings, recipe: Recipe) -> TuneSettings:
    """Return the settings as a recipe has them.

    "paper" leaves them as they are: by default EI²'s and Tune-A-Video's. "fast" (ours) takes FACTOR times the learning
    rate, for LENGTH of the paper's steps.

    Raises:
        ValueError: there is no such recipe, or "fast" is to raise the rate of gradient descent.
    """
    if recipe == "paper":
        return settings
    if recipe != "fast":
        raise ValueError(f"recipe is {recipe!r}. Choose fast or paper.")
    given = settings.optimization
    if given.optimizer == "gradient descent":
        raise ValueError(
            "recipe is 'fast', which raises learning_rate, and optimizer is 'gradient descent', which diverges above a "
            "rate of its own. Choose paper, or AdamW."
        )
    return settings.changed(learning_rate=FACTOR * given.learning_rate)
