"""Which layers are computed again: the choice against every other choice."""

from itertools import chain, combinations
from random import Random

import pytest

from consistent_video.modules.tuning.checkpoints import Layer, choose_layers, fullest

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def draw_layers(seed: int, number: int = 7, last: int = 0) -> dict[str, Layer]:
    """Draw layers; the last holds at least so much."""
    random = Random(seed)
    layers = {f"layer {i}": Layer(random.randint(1, 30), random.randint(1, 30)) for i in range(number)}
    final = layers.popitem()
    return {**layers, final[0]: Layer(max(last, final[1].held), final[1].flops)}


def work(layers: dict[str, Layer], chosen) -> float:
    return sum(layers[key].flops for key in chosen)


def every_choice(layers: dict[str, Layer]) -> list[tuple[str, ...]]:
    return list(chain.from_iterable(combinations(layers, number) for number in range(len(layers) + 1)))


@pytest.mark.parametrize("seed", range(4))
def test_the_fullest_layer_is_that_of_a_backward_pass_played_through(seed: int) -> None:
    layers = draw_layers(seed)
    for chosen in every_choice(layers):
        held, moments = {key: layer.held for key, layer in layers.items() if key not in chosen}, []
        for place, (key, layer) in reversed(list(enumerate(layers.items()))):
            held[key] = layer.held
            moments.append((sum(held.values()), -place))
            del held[key]
        most, place = max(moments)
        assert fullest(layers, chosen) == (most, -place)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", SHARES)
def test_nothing_else_saves_as_much_with_less_work(seed: int, share: float) -> None:
    """Where the last layer is the fullest; then what is chosen is the best by ratio."""
    layers = draw_layers(seed, last=40)
    chosen = choose_layers(layers, share)
    held, its_work = fullest(layers, chosen)[0], work(layers, chosen)
    assert all(work(layers, other) >= its_work for other in every_choice(layers) if fullest(layers, other)[0] <= held)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", SHARES)
def test_the_target_is_met_with_at_most_a_layer_more_than_the_least_work(seed: int, share: float) -> None:
    layers = draw_layers(seed)
    most, least = (fullest(layers, chosen)[0] for chosen in ((), layers))
    target = most - share * (most - least)
    chosen = choose_layers(layers, share)
    assert fullest(layers, chosen)[0] <= target
    best = min(work(layers, other) for other in every_choice(layers) if fullest(layers, other)[0] <= target)
    assert work(layers, chosen) <= best + max(layer.flops for layer in layers.values())


@pytest.mark.parametrize("seed", range(4))
def test_a_larger_share_adds_to_a_smaller_one(seed: int) -> None:
    layers = draw_layers(seed)
    choices = [choose_layers(layers, share) for share in SHARES]
    assert choices[0] == set() and list(layers)[-1] not in choices[-1]
    for one, more in zip(choices, choices[1:], strict=False):
        assert one <= more and fullest(layers, one)[0] >= fullest(layers, more)[0]


@pytest.mark.parametrize("number", [0, 1])
def test_where_there_is_nothing_to_choose_nothing_is_chosen(number: int) -> None:
    assert choose_layers(dict(list(draw_layers(1).items())[:number]), 1.0) == set()
