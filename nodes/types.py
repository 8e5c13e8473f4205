"""The pack's own socket types, what node ids and menu entries begin with, and what many nodes have in common."""

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..modules.files.host import list_files, place_of

PREFIX = "ConsistentVideo_"
MENU = "Consistent Video/"

Tune = io.Custom("CONSISTENT_VIDEO_TUNE")
TuningOptions = io.Custom("CONSISTENT_VIDEO_TUNING_OPTIONS")
TuningPreview = io.Custom("CONSISTENT_VIDEO_TUNING_PREVIEW")
NoiseRelation = io.Custom("CONSISTENT_VIDEO_NOISE_RELATION")
Motion = io.Custom("CONSISTENT_VIDEO_MOTION")
PromptTokens = io.Custom("CONSISTENT_VIDEO_PROMPT_TOKENS")
LoraModel = io.Custom("LORA_MODEL")  # the host's
OpticalFlow = io.Custom("OPTICAL_FLOW")  # the host's

ADVANCED = {"optional": True, "advanced": True}


def part_input(name: str, default: float, tooltip: str, step: float = 0.01, **options: bool) -> io.Input:
    """Return an input for a number from 0 to 1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=step, tooltip=tooltip, **options)


def strength_input(name: str, tooltip: str) -> io.Input:
    """Return an input for a factor from 0 to 2, 1 = as learned."""
    return io.Float.Input(name, default=1.0, min=0.0, max=2.0, step=0.01, tooltip=tooltip)


def cfg_input(default: float, tooltip: str, **options: bool) -> io.Input:
    """Return an input for the scale of classifier-free guidance."""
    return io.Float.Input("cfg", default=default, min=1.0, max=100.0, step=0.1, tooltip=tooltip, **options)


def seed_input(tooltip: str, **options: bool) -> io.Input:
    """Return an input for a seed, which stays as it is from run to run."""
    limits = {"default": 0, "min": 0, "max": 2**64 - 1}
    control = io.ControlAfterGenerate.fixed
    return io.Int.Input("seed", **limits, control_after_generate=control, tooltip=tooltip, **options)


def prefix_input(default: str, what: str = "file") -> io.Input:
    """Return the input for the name of a file to write."""
    tooltip = f"Name of the {what}; a number is added. May name a subfolder: clips/swan."
    return io.String.Input("filename_prefix", default=default, tooltip=tooltip)


def try_values(check: Callable[..., object], *values: Any) -> bool | str:
    """Return True where a check takes the values, else what it says: the answer of `validate_inputs`.

    Args:
        check: raises ValueError.
        values: None where an input is linked, whose value is not known before the node before it has run.
    """
    try:
        if None not in values:
            check(*values)
    except ValueError as error:
        return str(error)
    return True


def try_prefix(prefix: str | None, folder: str) -> bool | str:
    """Return whether files of a prefix can lie in a models folder, so that this is known before anything has run."""
    return try_values(place_of, prefix, folder)


def file_input(name: str, folder: str) -> io.Input:
    """Return the input for a file of a models folder."""
    return io.Combo.Input(name, options=list_files(folder), tooltip=f"File below models/{folder}.")


def saved_at(path: object) -> io.NodeOutput:
    """Return where a file lies as a node's output, which shows it as well."""
    return io.NodeOutput(str(path), ui={"text": (str(path),)})
