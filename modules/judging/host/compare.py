"""Several edits of a clip side by side."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from ..grid import difference_map, draw_strip, flow_maps, side_by_side
from .judges import NONE, flow_by

SOURCE = "source"


def name_clips(edits: Mapping[str, Tensor], labels: str) -> dict[str, Tensor]:
    """Return edits by their comma-separated labels, the name of their input where none is given.

    Raises:
        ValueError: there are more labels than edits, or two are equal.
    """
    given = [label.strip() for label in labels.split(",")] if labels.strip() else []
    if len(given) > len(edits):
        raise ValueError(f"labels names {len(given)} clips and {len(edits)} are connected. Write one for each edit.")
    names = [*(given or []), *list(edits)[len(given) :]]
    names = [name or key for name, key in zip(names, edits, strict=True)]
    if len({SOURCE, *names}) <= len(names):
        raise ValueError(f"labels gives two clips one name, or the name {SOURCE!r}. Give each its own.")
    return dict(zip(names, edits.values(), strict=True))


def fit_clip(name: str, edit: Tensor, source: Tensor) -> Tensor:
    """Return an edit, frames (f, 3, h, w), at the size of the source; ValueError where it has other frames."""
    if len(edit) != len(source):
        raise ValueError(f"{name} has {len(edit)} frames and source has {len(source)}. Cut the longer, ImageFromBatch.")
    if edit.shape == source.shape:
        return edit
    return F.interpolate(edit, size=source.shape[2:], mode="bilinear", antialias=True)


def compare_clips(
    source: Tensor, edits: Mapping[str, Tensor], labels: str, difference: bool, flow: str, columns: int
) -> tuple[Tensor, Tensor]:
    """Return clips beside each other as a clip, and as a strip.

    Args:
        source: frames (f, h, w, 3), 0 ... 1.
        edits: the same by the name of their input.
        labels: of the edits, see `name_clips`.
        difference: whether to show where each edit differs from the source.
        flow: what estimates the optical flow that is shown too, see `judges.flow_methods`; NONE = none is.
        columns: how many frames the strip shows.

    Returns:
        Images (f, height, width, 3) and (1, height, width, 3).

    Raises:
        ValueError: labels or frames do not fit.
    """
    first = source.movedim(-1, 1)
    given = {name: edit.movedim(-1, 1) for name, edit in edits.items()}
    clips = name_clips({name: fit_clip(name, edit, first) for name, edit in given.items()}, labels)
    rows = [{SOURCE: first, **clips}]
    if difference:
        rows.append({f"{name}, difference": difference_map(clip, first) for name, clip in clips.items()})
    if flow != NONE:
        if len(first) < 2:
            raise ValueError(
                f"flow is {flow!r} and the clip has one frame. Connect two frames or more, or choose none."
            )
        find = flow_by(flow)
        maps = flow_maps([find(clip.movedim(1, -1)) for clip in rows[0].values()])
        rows.append({f"{name}, flow": shown for name, shown in zip(rows[0], maps, strict=True)})
    strip = draw_strip({name: clip for row in rows for name, clip in row.items()}, columns)
    return side_by_side(rows).movedim(1, -1).contiguous(), strip.movedim(0, -1)[None].contiguous()
