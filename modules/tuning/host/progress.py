"""Progress of long work, shown in the node."""

import time

import psutil
import torch
from comfy.model_management import get_torch_device, throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from PIL.Image import Image
from server import PromptServer

PREVIEW_SIDE, PREVIEW_RATE = 512, 8
GIB = 2**30


def show_text(text: str, node_id: str) -> None:
    """Show a line of text in a node."""
    if getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, node_id)


class PeakMemory:
    """The most memory used since it was made: the GPU's by torch, elsewhere the process's as seen at each look."""

    def __init__(self) -> None:
        self.device, self.seen = get_torch_device(), 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def look(self) -> float:
        """Return it in GiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / GIB
        self.seen = max(self.seen, psutil.Process().memory_info().rss)
        return self.seen / GIB


class TuningProgress:
    """Progress bar with loss, time left, peak memory and, once there is one, a clip; raises the host's interrupt.

    Attributes:
        clip: frames of the preview; they play a frame a step, PREVIEW_RATE frames a second at most.
    """

    def __init__(self, node_id: str):
        self.node_id, self.memory = node_id, PeakMemory()
        self.clip: list[Image] = []
        self.begin(1, 0)

    def begin(self, steps: int, done: int) -> None:
        """Begin to show, after some steps."""
        self.bar, self.steps, self.began = ProgressBar(steps, node_id=self.node_id), steps, done
        self.start, self.turn, self.frame = time.monotonic(), 0, 0

    def __call__(self, done: int, loss: float) -> None:
        """Show how many steps are done."""
        elapsed = time.monotonic() - self.start
        left = elapsed / (done - self.began) * (self.steps - done)
        turn = int(elapsed * PREVIEW_RATE)
        self.frame, self.turn = self.frame + (turn != self.turn), turn
        frame = ("JPEG", self.clip[self.frame % len(self.clip)], PREVIEW_SIDE) if self.clip else None
        self.bar.update_absolute(done, self.steps, frame)
        text = f"step {done} of {self.steps}, loss {loss:.4f}, {left:.0f} s left, peak {self.memory.look():.1f} GiB"
        show_text(text, self.node_id)
        throw_exception_if_processing_interrupted()
