"""ControlNets of the prompt that a model is tuned with: called as ComfyUI's sampler does, and frozen."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.controlnet import ControlBase
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import convert_cond
from torch import Tensor

from ...clip_model.host.windows import CHOSEN, check_hints, controls, hints_of
from ..weights import hash_tensors


class Residual(Tensor):
    """What a ControlNet adds to an activation of the UNet, added out of place.

    ComfyUI adds in place, also to the skips, which the encoder's backward pass needs as they were.
    """

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        plain = [value.as_subclass(Tensor) if isinstance(value, cls) else value for value in args]
        if function.__name__ == "add_":
            activation, residual = plain
            return (activation + residual).to(activation.dtype)
        return function(*plain, **(kwargs or {}))


@dataclass(frozen=True)
class ControlNets:
    """ControlNets, T2I adapters and other such of ComfyUI, with the hints of some frames of a clip.

    Attributes:
        last: the last of the chain.
        frames: numbers of the frames in the clip.
    """

    last: ControlBase
    frames: range

    def __getitem__(self, frames: slice) -> "ControlNets":
        """Return the same for some of the frames."""
        return ControlNets(self.last, self.frames[frames])

    @property
    def chain(self) -> list[ControlBase]:
        """Return all of them, the last first."""
        return controls([[{"control": self.last}]])

    def residuals(
        self, x: Tensor, sigmas: Tensor, given: Mapping[str, Any], options: Mapping[str, Any]
    ) -> dict[str, list[Tensor | None]] | None:
        """Return what they add to the UNet, without gradient; None where they do not act at this noise level.

        Args:
            x: state x_0 + sigma * eps of the frames, model latent.
            sigmas: noise level of each row.
            given: the UNet's other arguments.
            options: transformer options.
        """
        with torch.inference_mode(), ExitStack() as afterwards:  # as where they were loaded
            for control in self.chain:
                afterwards.enter_context(hints_of(control, list(self.frames)))
            made = self.last.get_control(x, sigmas, given, 1, options)
        if made is None:
            return None
        return {
            place: [None if value is None else value.clone().as_subclass(Residual) for value in values]
            for place, values in made.items()
        }

    def notes(self) -> list[dict[str, Any]]:
        """Return what is to be noted of them in a tune; JSON values."""
        return [
            {
                "kind": type(control).__name__,
                "strength": control.strength,
                "percents": list(control.timestep_percent_range),
                "hints_hash": hash_tensors([control.cond_hint_original]),
            }
            for control in self.chain
        ]


def control_of(conditioning: list, frames: int, name: str) -> ControlNets | None:
    """Return the ControlNets of a conditioning for a clip, None = it has none.

    Raises:
        ValueError: they have neither one hint nor one for each frame.
    """
    (values,) = convert_cond(conditioning)
    if values.get("control") is None:
        return None
    check_hints({name: [values]}, frames)
    return ControlNets(values["control"], range(frames))


def check_kinds(found: list[ControlBase]) -> None:
    """Raise ValueError where one acts only while ComfyUI samples: Advanced-ControlNet's, or one with hooks."""
    chain = controls([[{"control": control} for control in found]])
    kinds = [type(each).__name__ for each in chain if hasattr(each, CHOSEN) or each.get_extra_hooks()]
    if kinds:
        raise ValueError(
            f"positive carries {', '.join(kinds)} of Advanced-ControlNet or with hooks, which acts only while ComfyUI "
            "samples. Connect ComfyUI's own Load ControlNet Model and Apply ControlNet, without hooks."
        )


@contextmanager
def with_controls(copy: ModelPatcher, conditionings: Iterable[list]) -> Iterator[None]:
    """Load the ControlNets of conditionings next to a private copy; afterwards they are unloaded, whatever was raised.

    It happens in inference mode, in which their weights were made: elsewhere those cannot be moved.

    Raises:
        ValueError: one acts only while ComfyUI samples.
    """
    values = [values.get("control") for conditioning in conditionings for _, values in conditioning]
    found = [control for control in dict.fromkeys(values) if control is not None]
    check_kinds(found)
    models = [model for control in found for model in control.get_models()]
    to_sigma = copy.get_model_object("model_sampling").percent_to_sigma
    try:
        with torch.inference_mode():
            if models:
                comfy.model_management.load_models_gpu([copy, *models], force_full_load=True)
            for control in found:
                control.pre_run(copy.model, to_sigma)
        yield
    finally:
        with torch.inference_mode():
            for control in found:
                control.cleanup()
            for model in models:
                comfy.model_management.unload_model_and_clones(model)
