"""What `bench edit` keeps on disk: a row for each case, and the frames of those that are shown."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..modules.demo_model.host import WEIGHTS
from ..modules.files.strict_json import to_json
from .table import add_row, load_rows
from .tasks import Task
from .world import Row

NETWORKS = ("clip", "reader", "unet", "vae")  # that make and judge an edit
REVISION = 7  # raised when the same case gives another row


@dataclass(frozen=True)
class Case:
    """One edit: the method, the clip and the seed, and how they are worked on.

    Attributes:
        method: name in METHODS or BOUNDS.
        clip: name of the task.
        held_out: whether it is measured or for validation.
        seed: of the tuning, 0 where nothing is drawn.
        steps: of the tuning, 0 where there is none.
        rate: of learning in the tuning of the model, 0 where there is none.
        ddim_steps: of inversion and sampling.
        cfg, cfg_end: of the sampling, and the part of the steps that is guided.
        denoise: part of the noise levels that is walked.
        passes, end: of the relation at sampling, 0 where there is none.
        value: of the method's own hyper-parameter, 0 where it has none.
        world: identifies the demo model and the way of measuring, see `world_stamp`.
    """

    method: str
    clip: str
    held_out: bool
    seed: int
    steps: int
    rate: float
    ddim_steps: int
    cfg: float
    cfg_end: float
    denoise: float
    passes: int
    end: float
    value: float
    world: str


Run = Callable[[Case, Task], tuple[Row, Tensor]]


@cache
def world_stamp() -> str:
    """Return what changes when rows that are done do not hold any more: the demo model's weights, and REVISION."""
    weights = b"".join(sha256((WEIGHTS / f"{name}.safetensors").read_bytes()).digest() for name in NETWORKS)
    return f"{REVISION}-{sha256(weights).hexdigest()[:8]}"


def round_floats(row: Row) -> Row:
    """Return a row with its figures to six digits; what a case is known by stays as it is."""
    known = {field.name for field in fields(Case)}
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) and key not in known else value
        for key, value in row.items()
    }


class Rows:
    """The rows that are done, on disk, and the frames of those that are shown.

    Args:
        folder: of both.
        run: edits and judges: returns the row of a case, and its frames (f, 3, h, w) in 0 ... 1.
        published: file of rows that were measured before, elsewhere perhaps.
        shown: methods whose frames are kept of the first clip of each kind.
    """

    def __init__(self, folder: Path, run: Run, published: Path, shown: Collection[str]):
        self.path, self.run, self.shown = folder / "edit.jsonl", run, shown
        self.pictures = folder / "edit"
        self.done = {**load_rows(published, Case), **load_rows(self.path, Case)}

    def picture(self, case: Case) -> Path:
        """Return the file of a case's frames."""
        return self.pictures / (sha256(repr(case).encode()).hexdigest()[:16] + ".safetensors")

    def get(self, case: Case, task: Task) -> Row:
        """Return the row of a case, measured if it is not done."""
        keeps = case.held_out and case.seed == 0 and case.clip.endswith("_0") and case.method in self.shown
        if case not in self.done or (keeps and not self.picture(case).is_file()):
            with torch.inference_mode():
                row, frames = self.run(case, task)
            if keeps:
                self.pictures.mkdir(parents=True, exist_ok=True)
                save_file({"frames": (frames * 255).round().byte().contiguous()}, self.picture(case))
            if case not in self.done:
                self.done[case] = row
                add_row(self.path, row)
        return self.done[case]

    def publish(self, path: Path) -> None:
        """Write every row of today's world to a file, from which another checkout goes on."""
        own = (row for case, row in self.done.items() if case.world == world_stamp())
        path.write_text("".join(to_json(round_floats(row)) + "\n" for row in own), encoding="utf-8")

    def frames(self, case: Case) -> Tensor:
        """Return the kept frames of a case, (f, 3, h, w) in 0 ... 1."""
        return load_file(self.picture(case))["frames"].float() / 255
