"""JSON values as records."""

import json
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistent_video.modules.files.record import Count, Part, read_record
from consistent_video.modules.files.strict_json import DEEPEST, read_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@dataclass(frozen=True)
class Inner:
    r: int = 4

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"r is {self.r}.")


@dataclass(frozen=True)
class Outer:
    OPEN: ClassVar = True
    kind: Literal["a", "b"]
    inner: Inner | None
    strength: Part = 1.0
    ends: tuple[Part, Part] = (0.0, 1.0)
    frames: Count = 0
    loss: list[float | None] = field(default_factory=list)


GOOD: dict[str, Any] = {"kind": "b", "inner": {"r": 2}, "ends": [0, 0.5], "loss": [1, None, 2.5], "more": [{}]}


def test_values_become_a_record() -> None:
    assert read_record(Outer, GOOD, "info") == Outer("b", Inner(2), 1.0, (0, 0.5), 0, [1, None, 2.5])
    assert read_record(Outer, {"kind": "a", "inner": None}, "info") == Outer("a", None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "later"}, "info.kind is 'later', not one of 'a', 'b'"),
        ({"kind": ["a"]}, "info.kind is"),
        ({"inner": {"r": 2.5}}, "info.inner.r is 2.5, not a whole number"),
        ({"inner": {"r": True}}, "info.inner.r is True, not a whole number"),
        ({"inner": {"r": 0}}, "info.inner is refused: r is 0"),
        ({"inner": {"later": 1}}, "info.inner has 'later', which is not one of r"),
        ({"inner": 3}, "info.inner is 3, not a record"),
        ({"strength": 1e308}, "info.strength is 1e.308, not from 0 to 1"),
        ({"strength": math.nan}, "info.strength is nan, not a finite number"),
        ({"strength": 10**400}, "info.strength is 1000"),
        ({"strength": None}, "info.strength is None, not a finite number"),
        ({"ends": [0]}, r"info.ends is \[0\], not a list of 2"),
        ({"ends": [0, 2]}, r"info.ends\[1\] is 2, not from 0 to 1"),
        ({"frames": -1}, "info.frames is -1, not from 0"),
        ({"loss": [0.5, "x"]}, r"info.loss\[1\] is 'x', not a finite number"),
    ],
)
def test_a_wrong_value_is_named(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        read_record(Outer, GOOD | change, "info")


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ValueError, match="^info lacks kind"):
        read_record(Outer, {"inner": None}, "info")


@given(values)
def test_whatever_stands_anywhere_is_a_record_or_refused(value: Any) -> None:
    for given_values in (value, *(GOOD | {key: value} for key in GOOD), GOOD | {"inner": {"r": value}}):
        try:
            read_record(Outer, given_values, "info")
        except ValueError as error:
            assert type(error) is ValueError and str(error).startswith("info")


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), '{"a":' * 50 + "1" + "}" * 50, "NaN", "{"]
)
def test_json_that_is_deep_or_undefined_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nested deeper|NaN is not|Expecting"):
        read_json(text)


def test_other_json_is_read() -> None:
    text = "[" * (DEEPEST - 1) + "1e999" + "]" * (DEEPEST - 1)
    assert read_json(text) == json.loads(text)
