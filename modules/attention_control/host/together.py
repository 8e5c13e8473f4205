"""The source's rows in one evaluation with the edit's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_base import BaseModel
from torch import Tensor
from torch.utils._pytree import tree_map_only

# In a conditioning, what makes the host evaluate it by itself, by other weights, or not at each step.
APART = "area", "default", "gligen", "hooks", "timestep_start", "timestep_end"
ELSEWHERE = "model_function_wrapper", "multigpu_clones"  # in model options: another node evaluates the rows
MARGIN = 1.5  # of the memory that is free, as the host leaves it when it joins conditionings


def fit_together(
    model: BaseModel, source: Sequence[dict], conds: Sequence[list | None], x: Tensor, options: Mapping[str, Any]
) -> bool:
    """Whether the source can be evaluated in one call with the first of an edit's, and memory is left for it.

    Args:
        model: that is evaluated.
        source: conditioning of the source, as the host's samplers take it.
        conds: those of the edit, a list for each side.
        x: rows of a conditioning.
        options: of the model.
    """
    sides = [cond for side in conds for cond in side or ()]
    if any(key in options for key in ELSEWHERE) or any(cond.get(key) is not None for cond in sides for key in APART):
        return False
    shapes = [shapes_of(cond, len(x)) for cond in (*source, *sides)]
    if any(None in shape.values() or shape != shapes[0] for shape in shapes):
        return False
    rows = [len(shapes) * len(x), *x.shape[1:]]
    needed = model.memory_required(rows, {key: [shape[key] for shape in shapes] for key in shapes[0]})
    return needed * MARGIN < model.current_patcher.get_free_memory(x.device)


def shapes_of(cond: Mapping[str, Any], rows: int) -> dict[str, list[int] | None]:
    """Return the shapes of what a conditioning gives the model for so many rows; None = it is no tensor."""
    given = {key: value.process_cond(batch_size=rows, area=None) for key, value in cond["model_conds"].items()}
    return {key: list(value.cond.shape) if isinstance(value.cond, Tensor) else None for key, value in given.items()}


@dataclass
class SourceRows:
    """Wraps the evaluation of a model's rows: those of the source go before the first that come.

    Attributes:
        states: of the source, shape (f, c, h, w).
        cond: its conditioning, as the host's samplers take it.
        are_due: whether they have not been evaluated yet.
    """

    states: Tensor
    cond: Mapping[str, Any]
    are_due: bool = True

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        sigma: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Tensor:
        """Return the denoised rows that were given, as the host's `apply_model`."""
        given = {"c_concat": c_concat, "c_crossattn": c_crossattn, **extra}
        if not self.are_due:
            return executor(x, sigma, control=control, transformer_options=transformer_options, **given)
        self.are_due = False
        frames, options = len(self.states), transformer_options or {}
        for key, value in self.cond["model_conds"].items():
            own = value.process_cond(batch_size=frames, area=None).cond
            given[key] = torch.cat([own.to(given[key]), given[key]])
        told = {"cond_or_uncond": [0, *options["cond_or_uncond"]], "uuids": [self.cond["uuid"], *options["uuids"]]}

        def without(hint: Tensor) -> Tensor:
            hint = hint.expand(len(x), *hint.shape[1:])
            return torch.cat([hint.new_zeros(frames, *hint.shape[1:]), hint])

        rows, levels = torch.cat([self.states, x]), torch.cat([sigma[:1].expand(frames), sigma])
        control = tree_map_only(Tensor, without, control)
        return executor(rows, levels, control=control, transformer_options={**options, **told}, **given)[frames:]
