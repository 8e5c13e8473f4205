"""Progress of long work, shown in the node."""

import time

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from server import PromptServer


def show_text(text: str, node_id: str) -> None:
    """Show a line of text in a node."""
    if getattr(PromptServer, "instance", None) is not None:
        PromptServer.instance.send_progress_text(text, node_id)


class TuningProgress:
    """Progress bar with loss and time left; calling it raises the host's interrupt.

    Args:
        steps: how many there are.
        node_id: where to show.
    """

    def __init__(self, steps: int, node_id: str):
        self.bar, self.steps, self.node_id = ProgressBar(steps, node_id=node_id), steps, node_id
        self.start = time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        """Show that a step (from 0) is done."""
        done = step + 1
        left = (time.monotonic() - self.start) / done * (self.steps - done)
        self.bar.update_absolute(done, self.steps)
        show_text(f"step {done} of {self.steps}, loss {loss:.4f}, {left:.0f} s left", self.node_id)
        throw_exception_if_processing_interrupted()
