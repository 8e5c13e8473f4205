"""What all nodes have in common: what reaches a node is of the kind that its schema names."""

import math
from collections.abc import Callable
from functools import wraps
from numbers import Real
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..modules.files.names import shown
from ..modules.sockets.host import media_behind

MOST_OPTIONS = 600  # letters of the options in a message
FRAMES = ("IMAGE", "MASK", "LATENT", io.MatchType.io_type)  # sockets of clips
JSON = (str, int, float, list, dict, type(None))


class Node(io.ComfyNode):
    """A node that refuses what its inputs cannot be, by name, before its `execute` sees it.

    ComfyUI checks a number or a choice only where it is typed in, not where it is connected, lets NaN through, and
    lets a value pass for what is to be connected.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("execute")
        if own is not None and not hasattr(own.__func__, "__wrapped__"):  # ComfyUI makes subclasses of its own
            cls.execute = classmethod(with_checks(own.__func__))  # type: ignore[method-assign]


def with_checks(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Return a node's `execute` behind the checks."""

    @wraps(execute)
    def checked(cls: type[io.ComfyNode], *args: Any, **given: Any) -> io.NodeOutput:
        for each in cls.define_schema().inputs:
            if each.id in given and (given[each.id] is not None or not each.optional):
                check_frames(each, given[each.id])
                check_input(each, given[each.id])
        return execute(cls, *args, **given)

    return checked


def check_input(expected: io.Input, value: Any) -> None:
    """Refuse a value that an input cannot be.

    Raises:
        ValueError: naming the input and the value.
    """
    name, given = expected.id, shown(value)
    if isinstance(expected, io.Int.Input | io.Float.Input):
        is_number = isinstance(value, Real) and math.isfinite(value)
        least, most = (-math.inf if expected.min is None else expected.min), expected.max
        if not is_number or not least <= value <= (math.inf if most is None else most):
            raise ValueError(f"{name} is {given}. Give a number from {least:g} to {most:g}.")
    elif isinstance(expected, io.String.Input):
        if not isinstance(value, str):
            raise ValueError(f"{name} is {given}, which is not a text. Write one.")
    elif isinstance(expected, io.Combo.Input):
        options = list(expected.options or [])
        if value not in options:
            raise ValueError(f"{name} is {given}. Choose one of {shown(options, MOST_OPTIONS)}.")
    elif not isinstance(expected, io.Boolean.Input | io.AnyType.Input) and is_literal(expected.io_type, value):
        raise ValueError(f"{name} is {given}, a value that was written where something is to be connected. Connect it.")


def check_frames(expected: io.Input, value: Any) -> None:
    """Refuse a clip without frames: what ComfyUI makes of a video of which it can decode none, None as a latent.

    Raises:
        ValueError: naming the input and the files that it comes from.
    """
    frames = value["samples"] if isinstance(value, dict) and "samples" in value else value
    is_empty = isinstance(frames, Tensor) and frames.ndim > 0 and not len(frames)
    if expected.io_type in FRAMES and (frames is None or is_empty):
        files = ", ".join(map(shown, media_behind(expected.id))) or "the video that it comes from"
        raise ValueError(
            f"{expected.id} is a clip without frames: no frame could be decoded from {files}, or none was selected. "
            "The file may be cut short or hold sound alone: copy it again, or choose another in Load Video. Where "
            "Trim Video or Get Image from Batch takes a part, begin before the end."
        )


def is_literal(kind: str, value: Any) -> bool:
    """Whether a value of a socket is what a prompt may write, a JSON value, and not what nodes hand on."""
    if kind == "LATENT" or (kind == io.MatchType.io_type and isinstance(value, dict)):
        return not (isinstance(value, dict) and "samples" in value)
    if kind == "CONDITIONING" and isinstance(value, list):
        return not all(map(is_prompt, value))
    return isinstance(value, JSON)


def is_prompt(pair: Any) -> bool:
    """Whether an entry of a conditioning is one: text states, and a dictionary."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    return not isinstance(pair[0], JSON) and isinstance(pair[1], dict)
