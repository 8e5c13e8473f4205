"""A tuning on disk while it runs, from which the same tuning goes on after ComfyUI has ended in its middle."""

import copy
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...clip_model.host.identity import flatten
from ...files.host import AUTOSAVES, FOLDER
from ..tuner import Tuner
from ..weights import Tune, hash_tensors, load_tune, save_tune
from .attached import foreign_patches
from .control_nets import ControlNets

log = logging.getLogger(__name__)


class Running(Protocol):
    """A tuning that runs; see Tuning."""

    copy: ModelPatcher
    given: dict[str, Any]
    info: dict[str, Any]
    tuner: Tuner

    def go_on(self, kept: Tune) -> None:
        """Continue this very tuning."""

    def later(self) -> Callable[[], Tune]:
        """Return what makes the tune as it is now, also while the tuning goes on."""


class Autosave:
    """Writes a tuning to a file of its own every few minutes, and lets the same tuning go on from it.

    The file is gone when the tuning ends in any way that Python sees, except where what was learned could not be saved.

    Args:
        minutes: between two times that it is written, above 0.

    Attributes:
        resumed: number of steps after which the tuning went on from the file; 0 = it began at its first step.
        is_needed: whether the file is to stay.
    """

    def __init__(self, minutes: float):
        self.seconds, self.resumed, self.is_needed = 60 * minutes, 0, False
        self.writing: Future | None = None

    @contextmanager
    def of(self, tuning: Any) -> Iterator[None]:
        """Let a tuning go on from its file if there is one, and write it for as long as the context lasts."""
        root = Path(folder_paths.get_folder_paths(FOLDER)[0])
        self.path = root / AUTOSAVES / f"{fingerprint(tuning)[:16]}.safetensors"
        self.take_up(tuning)
        self.due = time.monotonic() + self.seconds
        try:
            with ThreadPoolExecutor(1) as self.writer:  # which waits for what is being written
                yield
        finally:
            self.tidy()

    def tidy(self) -> None:
        """Remove the file, unless it is needed, and what a killed ComfyUI had half written; what stays is told."""
        for left in self.path.parent.glob(f"{self.path.name}*"):
            try:
                if left.is_dir():
                    shutil.rmtree(left)
                elif not self.is_needed:
                    left.unlink(missing_ok=True)
            except OSError as error:  # no reason to lose what was learned
                log.warning("%s stays among the autosaves: %s", left.name, error)

    def take_up(self, tuning: Running) -> None:
        """Let a tuning go on from its file; where that is damaged, it begins at its first step, which is told."""
        if not self.path.is_file():
            return
        try:
            kept = copy.deepcopy(load_tune(self.path))  # a file that is mapped can on some systems not be replaced
        except ValueError as error:
            log.warning("The tuning begins at its first step, for its autosave cannot be read: %s", error)
            return
        tuning.go_on(kept)
        self.resumed = tuning.tuner.done
        log.warning("The tuning goes on after step %d, from its autosave %s.", self.resumed, self.path.name)

    def look(self, tuning: Running) -> None:
        """Write the tuning after a step if it is time, unless it was the last or the file is still being written."""
        is_last = tuning.tuner.done >= tuning.tuner.settings.steps
        is_busy = self.writing is not None and not self.writing.done()
        if time.monotonic() >= self.due and not is_last and not is_busy:
            self.due = time.monotonic() + self.seconds
            self.writing = self.writer.submit(self.write, tuning.later())

    def write(self, make: Callable[[], Tune]) -> None:
        """Write a tune; where that fails, the tuning goes on and the file is what it was, which is told."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_tune(make(), self.path, with_state=True)
        except Exception as error:  # in a thread, where nobody would see it
            log.warning("The tuning goes on without a new autosave: %s", error)


def fingerprint(tuning: Running) -> str:
    """Return what identifies all that a tuning is made of as it begins; where that is not known, what never recurs."""
    clip = tuning.tuner.objective.clip
    tensors = [value for value in (*tuning.given.values(), clip.mask) if isinstance(value, Tensor)]
    nets = [value for value in tuning.given.values() if isinstance(value, ControlNets)]
    unet = [*tuning.copy.model.diffusion_model.state_dict().items()]
    loaded = [model.model.state_dict().items() for net in nets for model in net.last.get_models()]
    digest = hashlib.sha256(json.dumps(tuning.info, sort_keys=True).encode())
    digest.update(hash_tensors([clip.x_0, *tensors, *tuning.tuner.state_dict().values()]).encode())
    for found in flatten([unet, *map(list, loaded)]):
        digest.update(found)
    if foreign_patches(tuning.copy):  # functions of other nodes, whose settings nobody knows
        digest.update(uuid.uuid4().bytes)
    return digest.hexdigest()
