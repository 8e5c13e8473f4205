"""In which steps each recipe acts, by hand."""

import pytest

from consistent_video.modules.attention_control.recipe import FATEZERO, GENERAL, RECIPES, VIDEO_P2P, Recipe


def count(acts, steps: int, *end: float) -> int:
    """Return the number of steps until an end, all those before it."""
    found = [acts(step, steps, *end) for step in range(steps)]
    assert found == sorted(found, reverse=True)
    return sum(found)


@pytest.mark.parametrize(
    ("recipe", "steps", "end", "of_self", "of_cross"),
    [
        (GENERAL, 5, 0.5, 3, 3),
        (GENERAL, 50, 0.0, 0, 0),
        (FATEZERO, 5, 0.5, 2, 3),
        (FATEZERO, 5, 0.9, 4, 5),
        (FATEZERO, 50, 0.8, 40, 40),
        (VIDEO_P2P, 50, 0.99, 49, 50),
        (VIDEO_P2P, 50, 1.0, 50, 50),
        (VIDEO_P2P, 50, 0.01, 0, 0),
    ],
)
def test_steps_until_an_end(recipe: Recipe, steps: int, end: float, of_self: int, of_cross: int) -> None:
    assert count(recipe.acts_on_self, steps, end) == of_self
    assert count(recipe.acts_on_cross, steps, end) == of_cross


@pytest.mark.parametrize(
    ("recipe", "steps", "first", "last"),
    [(GENERAL, 50, 10, 49), (GENERAL, 12, 3, 11), (FATEZERO, 50, 10, 38), (FATEZERO, 12, 2, 7), (VIDEO_P2P, 12, 2, 11)],
)
def test_steps_of_local_blend(recipe: Recipe, steps: int, first: int, last: int) -> None:
    assert [step for step in range(steps) if recipe.blends(step, steps)] == list(range(first, last + 1))


def test_names() -> None:
    assert RECIPES == {"general": GENERAL, "FateZero": FATEZERO, "Video-P2P": VIDEO_P2P}
