"""Recipes of a tuning, against their closed form at work on a toy."""

import math

import pytest

from consistent_video.modules.tuning.recipes import LENGTH, PEAK, follow_recipe

from .toy import SETTINGS, Toy, make_tuner

RATE, STEPS = 3e-3, 40


def rates(settings) -> list[float]:
    """The learning rate of each step of a tuning."""
    tuner, found = make_tuner(Toy(), settings), []
    for _ in tuner.steps():
        found.append(tuner.updates.optimizer.param_groups[0]["lr"])
    return found


def test_the_papers_recipe_is_a_constant_rate_drawn_independently() -> None:
    settings = SETTINGS.changed(steps=5, learning_rate=RATE)
    assert follow_recipe(settings, "paper") == settings
    assert rates(follow_recipe(settings, "paper")) == [RATE] * 5


def test_the_fast_recipe_rises_and_falls_and_walks_as_far_as_the_papers_in_its_part_of_the_steps() -> None:
    given = SETTINGS.changed(steps=STEPS, learning_rate=RATE)
    found = rates(follow_recipe(given, "fast"))
    rise, fall = 4, 36
    expected = [step / rise for step in range(rise)]
    expected += [(1 + math.cos(math.pi * step / fall)) / 2 for step in range(fall)]
    assert found == pytest.approx([PEAK * RATE * factor for factor in expected], rel=1e-6)
    assert 1 <= sum(found) / (RATE * STEPS / LENGTH) < 1.25


def test_the_fast_recipe_keeps_what_is_asked_for() -> None:
    asked = SETTINGS.changed(steps=STEPS, schedule="linear", warmup_steps=9, weight_decay=0.3)
    got = follow_recipe(asked, "fast")
    assert got == asked.changed(learning_rate=PEAK * asked.optimization.learning_rate)


def test_the_fast_recipe_takes_any_number_of_steps() -> None:
    assert len(rates(follow_recipe(SETTINGS.changed(steps=1), "fast"))) == 1


def test_no_other_recipe_is_known() -> None:
    with pytest.raises(ValueError, match=r"recipe is 'slow'\. Choose fast or paper"):
        follow_recipe(SETTINGS, "slow")  # type: ignore[arg-type]


def test_the_fast_recipe_does_not_raise_the_rate_of_gradient_descent() -> None:
    plain = SETTINGS.changed(optimizer="gradient descent")
    assert follow_recipe(plain, "paper") == plain
    with pytest.raises(ValueError, match="optimizer is 'gradient descent', .*Choose paper, or AdamW"):
        follow_recipe(plain, "fast")
