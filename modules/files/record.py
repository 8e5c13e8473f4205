"""JSON values as records: a dataclass says which there are, of which types and between which limits."""

from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .names import shown

Record = TypeVar("Record")
FLOAT = 1.7976931348623157e308  # the largest
NAMES = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", list: "a list"}


@dataclass(frozen=True)
class Between:
    """Limits of a number, for `Annotated`."""

    least: float
    most: float


Part = Annotated[float, Between(0, 1)]
Count = Annotated[int, Between(0, 2**31)]


def read_record(kind: type[Record], values: Any, name: str) -> Record:
    """Return JSON values as a record.

    Args:
        kind: a dataclass whose fields are numbers, texts, Literals, lists, tuples, dataclasses, or one of these or
            None; numbers have limits by `Annotated` and `Between`. Where its class says `OPEN = True`, there may be
            other values, which are passed over.
        values: by the names of its fields; those with defaults may be missing.
        name: of the values, for messages.

    Raises:
        ValueError: says which value is not what the record needs, and what it is.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {shown(values)}, not a record")
    known, hints = {field.name: field for field in fields(kind)}, get_type_hints(kind, include_extras=True)  # type: ignore[arg-type]
    if unknown := [] if getattr(kind, "OPEN", False) else [key for key in values if key not in known]:
        raise ValueError(f"{name} has {shown(unknown[0])}, which is not one of {', '.join(known)}")
    for key, field in known.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} lacks {key}")
    given = {key: read_value(hints[key], values[key], f"{name}.{key}") for key in known if key in values}
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{name} is refused: {error}") from error


def read_value(kind: Any, value: Any, name: str) -> Any:
    """Return a JSON value as a type, see `read_record`."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        value = read_value(parts[0], value, name)
        if not parts[1].least <= value <= parts[1].most:
            raise ValueError(f"{name} is {shown(value)}, not from {parts[1].least} to {parts[1].most}")
        return value
    if origin in (Union, UnionType):
        inner = next(part for part in parts if part is not NoneType)
        return None if value is None else read_value(inner, value, name)
    if is_dataclass(kind):
        return read_record(kind, value, name)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"{name} is {shown(value)}, not one of {', '.join(map(repr, parts))}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, list) or origin is tuple and len(value) != len(parts):
            raise ValueError(f"{name} is {shown(value)}, not {NAMES[list]}{f' of {len(parts)}' * (origin is tuple)}")
        inner = parts if origin is tuple else parts * len(value)
        return origin(
            read_value(part, entry, f"{name}[{i}]") for i, (part, entry) in enumerate(zip(inner, value, strict=True))
        )
    is_number = origin is float and type(value) is int
    if not is_number and type(value) is not origin or origin is float and not -FLOAT <= value <= FLOAT:
        raise ValueError(f"{name} is {shown(value)}, not {NAMES[origin]}")
    return value
