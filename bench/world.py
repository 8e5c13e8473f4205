"""The demo model and its drawn world, to make edits in this process and judge them from their pixels."""

from typing import Any

from torch import Tensor

from ..demo.reader import ShapeReader
from ..demo.world import SIDE
from ..modules.demo_model.host import load_demo_model, load_demo_unet
from ..scripts.environment import ROOT

SIZE = SIDE // 8  # sides of the demo model's latents
READER = ROOT / "demo" / "weights" / "reader.safetensors"
Row = dict[str, Any]


class World:
    """The demo model and what is read from its clips."""

    def __init__(self) -> None:
        self.model, self.text, self.vae = load_demo_model()
        self.flow = load_demo_unet("flow")  # the same model, by another path to noise
        self.reader = ShapeReader.load(READER)

    def prompt(self, words: str) -> list:
        """Encode a prompt."""
        return self.text.encode_from_tokens_scheduled(self.text.tokenize(words))

    def encode(self, frames: Tensor) -> dict[str, Tensor]:
        """Encode frames (f, 3, h, w) in 0 ... 1."""
        return {"samples": self.vae.encode(frames.movedim(1, -1))}

    def decode(self, latent: dict[str, Any]) -> Tensor:
        """Decode to frames (f, 3, h, w) in 0 ... 1."""
        return self.vae.decode(latent["samples"]).movedim(-1, 1).cpu()
