"""Recipes of a tuning, by the learning rates of a toy's steps."""

import pytest

from consistent_video.modules.tuning.settings import LENGTH

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
    assert settings.optimization.recipe == "paper" and rates(settings) == [RATE] * STEPS


def test_the_fast_recipe_walks_twice_as_far_as_the_papers_in_its_part_of_the_steps() -> None:
    fast = SETTINGS.changed(steps=round(LENGTH * STEPS), learning_rate=RATE, recipe="fast")
    found = rates(fast)
    assert found == pytest.approx([5 * RATE] * 4)
    assert sum(found) == pytest.approx(2 * RATE * STEPS)
    assert (fast.flat()["learning_rate"], fast.flat()["recipe"]) == (RATE, "fast"), "as a tune notes it"


def test_the_fast_recipe_keeps_the_schedule_that_is_asked_for() -> None:
    asked = SETTINGS.changed(steps=STEPS, schedule="linear", warmup_steps=2, learning_rate=RATE)
    paper, fast = rates(asked), rates(asked.changed(recipe="fast"))
    assert fast == pytest.approx([5 * rate for rate in paper]) and len(set(paper)) > 2


def test_the_fast_recipe_does_not_raise_the_rate_of_gradient_descent() -> None:
    plain = SETTINGS.changed(optimizer="gradient descent")
    with pytest.raises(ValueError, match="optimizer is 'gradient descent', .*Choose paper, or AdamW"):
        plain.changed(recipe="fast")


def test_no_other_recipe_is_known() -> None:
    with pytest.raises(ValueError, match=r"recipe is 'slow'\. Choose paper or fast"):
        SETTINGS.changed(recipe="slow")
