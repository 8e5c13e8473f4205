"""JSON is strict: what is undefined is null."""

import json
import math

import pytest

from consistent_video.modules.files.strict_json import to_json


def read(text: str):
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_undefined_numbers_are_null_wherever_they_are() -> None:
    data = {"a": math.nan, "b": [1.5, (math.inf, -math.inf)], "c": {"d": [{"e": math.nan}]}}
    assert read(to_json(data)) == {"a": None, "b": [1.5, [None, None]], "c": {"d": [{"e": None}]}}


@pytest.mark.parametrize("indent", [None, 2])
def test_the_rest_stays(indent: int | None) -> None:
    data = {"whole": 2**53, "number": 1 / 3, "text": "EI² 圆", "nothing": None, "yes": True, "list": []}
    assert read(to_json(data, indent)) == data and "EI² 圆" in to_json(data, indent)
