"""Recipes of a tuning, by the learning rates of a toy's steps."""

import pytest

from consistent_video.modules.tuning.recipes import LENGTH, follow_recipe

from .toy import SETTINGS, Toy, make_tuner

RATE, STEPS = 3e-3, 10


def rates(settings) -> list[float]:
    """The learning rate of each step of a tuning."""
    tuner, found = make_tuner(Toy(), settings), []
    for _ in tuner.steps():
        found.append(tuner.updates.optimizer.param_groups[0]["lr"])
    return found


def test_the_papers_recipe_is_what_is_set() -> None:
    settings = SETTINGS.changed(steps=STEPS, learning_rate=RATE)
    assert follow_recipe(settings, "paper") == settings
    assert rates(settings) == [RATE] * STEPS


def test_the_fast_recipe_walks_twice_as_far_as_the_papers_in_its_part_of_the_steps() -> None:
    short = SETTINGS.changed(steps=round(LENGTH * STEPS), learning_rate=RATE)
    found = rates(follow_recipe(short, "fast"))
    assert found == pytest.approx([5 * RATE] * 4)
    assert sum(found) == pytest.approx(2 * RATE * STEPS)


def test_the_fast_recipe_keeps_what_else_is_asked_for() -> None:
    asked = SETTINGS.changed(schedule="linear", warmup_steps=2, weight_decay=0.3, learning_rate=RATE)
    assert follow_recipe(asked, "fast") == asked.changed(learning_rate=5 * RATE)


def test_the_fast_recipe_does_not_raise_the_rate_of_gradient_descent() -> None:
    plain = SETTINGS.changed(optimizer="gradient descent")
    assert follow_recipe(plain, "paper") == plain
    with pytest.raises(ValueError, match="optimizer is 'gradient descent', .*Choose paper, or AdamW"):
        follow_recipe(plain, "fast")


def test_no_other_recipe_is_known() -> None:
    with pytest.raises(ValueError, match=r"recipe is 'slow'\. Choose fast or paper"):
        follow_recipe(SETTINGS, "slow")  # type: ignore[arg-type]
