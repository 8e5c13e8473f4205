"""What previews of the edit take of a tuning."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from ..modules.tuning.host.preview import PreviewSettings
from ..modules.tuning.host.training import Tuning
from .document import judge
from .memory_count import OUT_OF_MEMORY
from .performance import Row, Setting
from .table import write_table
from .timing import Times, ratios, time_rounds, write_spread
from .unets import make_prompt

LIMIT = 0.05  # of a tuning's time


@dataclass(frozen=True)
class PreviewCase(Setting):
    """Steps of a tuning and previews of its edit, of some steps of inversion and of sampling."""

    preview_steps: int = PreviewSettings.steps


def time_previews(made: Tuning, case: PreviewCase) -> Times:
    """Return the seconds of steps of a tuning and of previews, as Tuning Preview draws them by default."""
    draw = made.preview(PreviewSettings(make_prompt(), make_prompt())).draw
    return time_rounds({"step": made.tuner.advance, "preview": draw}, case.rounds, torch.device(case.device))


def tell_previews(setting: Setting, rows: Sequence[Row]) -> str:
    """Return the paragraph and the table of previews."""
    lines = []
    for seconds in (row["seconds"] for row in rows):
        steps = ratios(seconds, "preview", "step") if seconds else []
        share = median(steps) / (PreviewSettings.every + median(steps)) if steps else 0.0
        lines.append(
            [write_spread(steps), f"{share:.1%}", *judge(share, LIMIT)] if steps else [OUT_OF_MEMORY, "", "", ""]
        )
    said = (
        f"A preview of {PreviewSettings.steps} steps of inversion and as many of sampling, drawn every "
        f"{PreviewSettings.every} steps of the tuning, as Tuning Preview does by default; {setting.frames} frames of "
        f"{setting.size} × {setting.size} latents:"
    )
    return f"{said}\n\n{write_table(['× a step', 'of the tuning', 'target', 'met'], lines)}"
