"""Draw the demonstration's clips from their JSON files, and write the truth about each into them: python -m demo.clips

A further clip is a further JSON file with a "scene".
"""

import json
import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from ..modules.files.strict_json import to_json
from .captions import caption
from .palette import WORDS
from .world import SIDE, Clip, Scene, draw_clip

CLIPS = Path(__file__).parent / "clips"
RATE = Fraction(8)  # frames per second
CRF = 10  # libx264's quality; 0 is lossless


@dataclass(frozen=True)
class Recipe:
    """How one clip is drawn.

    Args:
        name: of the files.
        shape, colour, texture, background, style: words of palette.py.
        edit: the caption of the edit that the clip is meant for.
        frames: how many.
        start, end: the object's origin in the first and last frame, x, y in pixels.
        bow: how far the path is bent away from the straight line, x, y in pixels.
        size: first and last, pixels.
        angle: first and last, degrees.
        pan: how far the view moves over the ground in all, x, y in pixels.
        seed: for where on the ground the view begins.
    """

    name: str
    shape: str
    colour: str
    edit: str
    frames: int
    start: tuple[float, float]
    end: tuple[float, float]
    texture: str = "plain"
    background: str = "white"
    style: str = "flat"
    bow: tuple[float, float] = (0.0, 0.0)
    size: tuple[float, float] = (24.0, 24.0)
    angle: tuple[float, float] = (0.0, 0.0)
    pan: tuple[float, float] = (0.0, 0.0)
    seed: int = 0


def build_scene(recipe: Recipe) -> Scene:
    """Return the scene of a recipe's first frame."""

    generator = torch.Generator().manual_seed(recipe.seed)
    return Scene(
        **{name: torch.tensor([known.index(getattr(recipe, name))]) for name, known in WORDS.items()},
        centre=torch.tensor([recipe.start]),
        size=torch.tensor([recipe.size[0]]),
        angle=torch.tensor([math.radians(recipe.angle[0])]),
        pan=SIDE * torch.rand(1, 2, generator=generator),
    )


def draw_recipe(recipe: Recipe, shake: torch.Tensor | None = None, growth: torch.Tensor | None = None) -> Clip:
    """Draw a recipe's clip; everything moves at an even pace.

    Args:
        recipe: of the clip.
        shake: how far off its path the object is in each frame, (f, 2) as x, y in pixels.
        growth: factor of its size in each frame, (f).
    """
    scene, pace = build_scene(recipe), torch.linspace(0, 1, recipe.frames)
    line = pace.unsqueeze(1)
    start, end, bow = (torch.tensor(point) for point in (recipe.start, recipe.end, recipe.bow))
    turn = math.radians(recipe.angle[1] - recipe.angle[0])
    return draw_clip(
        scene,
        path=torch.lerp(start, end, line) + bow * (math.pi * line).sin() + (0 if shake is None else shake),
        size=(recipe.size[0] + (recipe.size[1] - recipe.size[0]) * pace) * (1 if growth is None else growth),
        angle=scene.angle + turn * pace,
        pan=scene.pan + line * torch.tensor(recipe.pan),
    )


def save_video(path: Path, frames: torch.Tensor, rate: Fraction = RATE) -> None:
    """Write frames (f, 3, h, w) in [0, 1], h and w even, as H.264, nearly lossless; the rate is in 1/s."""
    import av

    pixels = rearrange((frames.clamp(0, 1) * 255).round().byte(), "f c h w -> f h w c").contiguous().numpy()
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": str(CRF), "preset": "veryslow"})
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for picture in pixels:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def describe(recipe: Recipe, clip: Clip) -> dict:
    """Return what the JSON file says about a clip."""
    return {
        "prompt": caption(build_scene(recipe))[0],
        "edit": recipe.edit,
        "frames": recipe.frames,
        "frames_per_second": int(RATE),
        "path": [[round(value, 3) for value in point] for point in clip.path.tolist()],
        "scene": asdict(recipe),
    }


def read_recipes() -> list[Recipe]:
    """Return the recipes of the demo's clips, each the "scene" of a JSON file."""
    recipes = []
    for path in sorted(CLIPS.glob("*.json")):
        scene: dict[str, Any] = json.loads(path.read_text())["scene"]
        scene |= {key: tuple(value) for key, value in scene.items() if isinstance(value, list)}
        recipes.append(Recipe(**scene))
    return recipes


def main() -> None:
    """Draw every clip."""
    for recipe in read_recipes():
        clip = draw_recipe(recipe)
        save_video(CLIPS / f"{recipe.name}.mp4", clip.frames)
        (CLIPS / f"{recipe.name}.json").write_text(to_json(describe(recipe, clip), indent=2) + "\n")


if __name__ == "__main__":
    main()
