"""Turns of a timing, and what times say against each other."""

from collections import Counter
from statistics import median

import pytest
import torch

from consistent_video.bench.timing import (
    balanced_order,
    in_common,
    ratios,
    read_turns,
    time_rounds,
    write_milliseconds,
    write_spread,
)

CPU = torch.device("cpu")


def test_over_two_rounds_each_has_the_same_mean_place() -> None:
    names = ["a", "b", "c", "d"]
    places = Counter()
    for number in range(4):
        order = balanced_order(names, number)
        assert sorted(order) == names
        places.update({name: order.index(name) for name in names})
    assert set(places.values()) == {6}


def test_every_contender_is_timed_in_every_round() -> None:
    called = Counter()
    contenders = {name: (lambda name=name: called.update([name])) for name in ("a", "b", "c")}
    times = time_rounds(contenders, 3, CPU)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert min(called.values()) >= 5  # one not timed, one to choose the number of calls


def test_ratios_are_those_of_the_same_round() -> None:
    assert ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b") == [2, 3]


def test_turns_of_a_round_that_was_broken_off_are_left_out() -> None:
    order = [("a", 0, 2.0), ("b", 0, 1.0), ("c", 0, None), ("b", 2, 3.0), ("a", 1, 9.0), ("a", 2, 12.0)]
    turns = read_turns([{"way": way, "round_number": n, "seconds": seconds} for way, n, seconds in order], "way")
    assert turns == {"a": {0: 2.0, 1: 9.0, 2: 12.0}, "b": {0: 1.0, 2: 3.0}}
    assert ratios(in_common(turns, "a", "b"), "a", "b") == [2, 4]
    assert in_common(turns, "a", "c") == {}


def test_a_spread_is_median_and_quartiles() -> None:
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert write_spread(values) == f"{median(values):g} (2 to 4)"
    assert write_milliseconds(values) == "3000" and write_milliseconds([0.0123456]) == "12.3"


@pytest.mark.parametrize("values", [[1.25], [1.25, 1.25]])
def test_few_values_have_a_spread_too(values: list[float]) -> None:
    assert write_spread(values).startswith("1.25")
