"""JSON that every reader takes: RFC 8259 has no NaN and no infinity."""

import json
import math
from typing import Any


def without_undefined(data: Any) -> Any:
    """Return JSON values with None for numbers that are not finite."""
    if isinstance(data, dict):
        return {key: without_undefined(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_undefined(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def to_json(data: Any, indent: int | None = None) -> str:
    """Return JSON values as text, null where a number is undefined; letters stay as they are."""
    return json.dumps(without_undefined(data), indent=indent, ensure_ascii=False, allow_nan=False)
