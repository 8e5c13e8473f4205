"""Recipes of one-shot tuning: how its learning rate goes over its steps."""

from typing import Literal

from .settings import TuneSettings

Recipe = Literal["paper", "fast"]
PEAK, WARMUP, LENGTH = 6.0, 0.1, 0.4  # of "fast": of the learning rate, of its own steps, of the paper's steps


def follow_recipe(settings: TuneSettings, recipe: Recipe) -> TuneSettings:
    """Return the settings as a recipe has them.

    "paper" leaves them as they are: by default EI²'s and Tune-A-Video's constant rate. "fast" (ours) takes PEAK times
    the learning rate at its highest, reached over the first WARMUP of the steps, or later where the settings say so,
    and falling from there as a cosine, or as a line where they say so. A mean of about half its peak over LENGTH of the
    steps walks a little more than the constant rate does over all of them, and ends in small steps.

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
    return settings.changed(
        learning_rate=PEAK * given.learning_rate,
        schedule="cosine" if given.schedule == "constant" else given.schedule,
        warmup_steps=max(given.warmup_steps, round(WARMUP * settings.steps)),
    )
