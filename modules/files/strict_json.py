"""JSON that every reader takes: RFC 8259 has no NaN and no infinity."""

import json
import math
from typing import Any

DEEPEST = 32  # levels of a text that is read


def without_undefined(data: Any) -> Any:
    """Return JSON values with None for numbers that are not finite."""
    if isinstance(data, dict):
        return {key: without_undefined(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_undefined(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def read_json(text: str) -> Any:
    """Return the values of a JSON text.

    Raises:
        ValueError: it is not JSON, has numbers that are not finite, or is nested deeper than DEEPEST.
    """

    def refuse(number: str) -> None:
        raise ValueError(f"{number} is not a JSON number")

    nested = f"it is nested deeper than {DEEPEST} levels"
    try:
        data = json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError(nested) from error
    level = [data]
    for _ in range(DEEPEST):
        parts = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [inner for part in parts for inner in part]
    if level:
        raise ValueError(nested)
    return data


def to_json(data: Any, indent: int | None = None) -> str:
    """Return JSON values as text, null where a number is undefined; letters stay as they are."""
    return json.dumps(without_undefined(data), indent=indent, ensure_ascii=False, allow_nan=False)
