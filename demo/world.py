"""The drawn world: one object on a ground, in a style, whole batches at once."""

import math
from dataclasses import dataclass, fields, replace

import torch
from einops import rearrange

from .palette import BACKGROUNDS, COLOURS, DETAIL, GROUND, RGB, SHAPES, STYLES, TEXTURES
from .shapes import DISTANCES, EXTENT, choose
from .surfaces import PATTERNS, cover, get_shade, mosaic, outline, pencil

SIDE = 128  # pixels along a picture
SIZES = (18.0, 31.0)  # the smallest and largest object, pixels
LEAN = math.radians(20)  # the largest rotation either way
DARK = 0.55  # the second shade of a texture, relative to the fill colour


@dataclass(frozen=True)
class Scene:
    """A batch of pictures to draw.

    Args:
        shape, colour, texture, background, style: (b) indices into the tuples of palette.py.
        centre: (b, 2) the object's origin as x, y in pixels, y downwards.
        size: (b) pixels; a circle's radius.
        angle: (b) rotation in radians, clockwise on the screen.
        pan: (b, 2) how far the view has moved over the ground, x, y in pixels.
    """

    shape: torch.Tensor
    colour: torch.Tensor
    texture: torch.Tensor
    background: torch.Tensor
    style: torch.Tensor
    centre: torch.Tensor
    size: torch.Tensor
    angle: torch.Tensor
    pan: torch.Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: slice | torch.Tensor) -> "Scene":
        return Scene(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Clip:
    """A drawn clip and the truth about it.

    Args:
        frames: (f, 3, 128, 128) in [0, 1].
        mask: (f, 128, 128) the object's coverage in [0, 1], before any style.
        path: (f, 2) the centroid of the mask as x, y in pixels.
        flow: (f - 1, 2, 128, 128) where each pixel moves to in the next frame, as x, y offsets
            in pixels; the object's motion inside it, the ground's elsewhere.
        flow_back: the same of each frame but the first to the one before.
    """

    frames: torch.Tensor
    mask: torch.Tensor
    path: torch.Tensor
    flow: torch.Tensor
    flow_back: torch.Tensor


def is_held_out(colour: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Tell which (colour, shape) pairs are kept out of training: one colour of each shape.

    They are the purple circle, red triangle, green square, blue star, yellow heart, pink ring
    and cyan cross.
    """
    return (colour + 3 * shape) % len(COLOURS) == 6


def pick(names: tuple[str, ...], common: float, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw indices of which the first has probability `common` and the others share the rest."""
    device = generator.device
    rare = torch.randint(1, len(names), (count,), generator=generator, device=device)
    return torch.where(torch.rand(count, generator=generator, device=device) < common, 0, rare)


def sample_pairs(count: int, generator: torch.Generator, held_out: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw (colour, shape) indices uniformly among the pairs that are, or are not, held out."""
    device = generator.device
    colour, shape = torch.meshgrid(
        torch.arange(len(COLOURS), device=device), torch.arange(len(SHAPES), device=device), indexing="ij"
    )
    keep = is_held_out(colour, shape) == held_out
    index = torch.randint(0, int(keep.sum()), (count,), generator=generator, device=device)
    return colour[keep][index], shape[keep][index]


def sample_scene(count: int, generator: torch.Generator, held_out: bool = False) -> Scene:
    """Draw random scenes whose object lies wholly inside the picture.

    Args:
        count: number of pictures.
        generator: its device is where the scene is made.
        held_out: whether to take the (colour, shape) pairs that training never sees.
    """
    device = generator.device

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    colour, shape = sample_pairs(count, generator, held_out)
    size = SIZES[0] + (SIZES[1] - SIZES[0]) * uniform(count)
    margin = (EXTENT * size).unsqueeze(1)
    return Scene(
        shape=shape,
        colour=colour,
        texture=pick(TEXTURES, 0.5, count, generator),
        background=torch.randint(0, len(BACKGROUNDS), (count,), generator=generator, device=device),
        style=pick(STYLES, 0.5, count, generator),
        centre=margin + (SIDE - 2 * margin) * uniform(count, 2),
        size=size,
        angle=LEAN * (2 * uniform(count) - 1),
        pan=SIDE * uniform(count, 2),
    )


def draw(scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a batch of scenes, anti-aliased.

    Returns:
        Pictures (b, 3, 128, 128) in [0, 1], and the object's coverage (b, 128, 128) in [0, 1].
    """
    device = scene.size.device
    line = torch.arange(SIDE, device=device) + 0.5
    x, y = (line.view(1, 1, -1).expand(len(scene), SIDE, SIDE), line.view(1, -1, 1).expand(len(scene), SIDE, SIDE))
    own_x, own_y = to_object(scene, x, y)
    size = scene.size.view(-1, 1, 1)
    distance = size * choose([DISTANCES[name](own_x / size, own_y / size) for name in SHAPES], scene.shape)
    mask = cover(-distance)

    ground_x, ground_y = x + scene.pan[:, :1, None], y + scene.pan[:, 1:, None]
    detail = choose([PATTERNS[name](ground_x, ground_y) for name in BACKGROUNDS], scene.background)
    ground = blend(GROUND.to(device)[scene.background], DETAIL.to(device)[scene.background], detail)
    fill = RGB.to(device)[scene.colour]
    surface = blend(fill, DARK * fill, get_shade(scene.texture, own_x, own_y))
    picture = torch.lerp(ground, surface, mask.unsqueeze(1))
    return apply_style(picture, distance, scene.style), mask


def to_object(scene: Scene, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return picture coordinates (b, h, w) as seen from the moved and turned object, pixels."""
    dx, dy = x - scene.centre[:, :1, None], y - scene.centre[:, 1:, None]
    cos, sin = scene.angle.cos().view(-1, 1, 1), scene.angle.sin().view(-1, 1, 1)
    return cos * dx + sin * dy, cos * dy - sin * dx


def blend(first: torch.Tensor, second: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mix two colours (b, 3) by a weight (b, h, w) into a picture (b, 3, h, w)."""
    first, second = rearrange(first, "b c -> b c 1 1"), rearrange(second, "b c -> b c 1 1")
    return first + weight.unsqueeze(1) * (second - first)


def apply_style(picture: torch.Tensor, distance: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Redraw each picture in its own style.

    Args:
        picture: (b, 3, h, w) in [0, 1].
        distance: (b, h, w) signed distance to the object's edge, pixels.
        style: (b) index into STYLES.
    """
    redrawn = {
        "flat": picture,
        "outlined": outline(picture, distance, 1.6, 0.05),
        "pencil": pencil(picture, distance),
        "mosaic": mosaic(picture),
    }
    index = style.view(-1, 1, 1, 1)
    for number, name in enumerate(STYLES):
        picture = torch.where(index == number, redrawn[name], picture)
    return picture


def get_centroid(mask: torch.Tensor) -> torch.Tensor:
    """Return the centre of mass of masks.

    Args:
        mask: (f, h, w), not negative, not all zero.

    Returns:
        (f, 2) x, y in pixels; the middle of the first pixel is 0.5.
    """
    y = torch.arange(mask.shape[-2], device=mask.device) + 0.5
    x = torch.arange(mask.shape[-1], device=mask.device) + 0.5
    total = mask.sum((-2, -1))
    return torch.stack([(mask * x).sum((-2, -1)) / total, (mask * y.view(-1, 1)).sum((-2, -1)) / total], -1)


def get_flow(scene: Scene, mask: torch.Tensor) -> torch.Tensor:
    """Return the exact forward flow between the frames of one object, (f - 1, 2, h, w) pixels.

    Args:
        scene: f frames of one clip.
        mask: (f, h, w) the object's coverage; half covered counts as object.
    """
    now, then = scene[:-1], scene[1:]
    line = torch.arange(SIDE, device=mask.device) + 0.5
    x, y = line.view(1, 1, -1).expand_as(mask[1:]), line.view(1, -1, 1).expand_as(mask[1:])
    own_x, own_y = to_object(now, x, y)
    growth = (then.size / now.size).view(-1, 1, 1)
    cos, sin = then.angle.cos().view(-1, 1, 1), then.angle.sin().view(-1, 1, 1)
    to_x = then.centre[:, :1, None] + growth * (cos * own_x - sin * own_y)
    to_y = then.centre[:, 1:, None] + growth * (sin * own_x + cos * own_y)
    shift = rearrange(now.pan - then.pan, "f c -> f c 1 1")
    return torch.where(mask[:-1].unsqueeze(1) > 0.5, torch.stack([to_x - x, to_y - y], 1), shift)


def draw_clip(
    scene: Scene,
    path: torch.Tensor,
    size: torch.Tensor | None = None,
    angle: torch.Tensor | None = None,
    pan: torch.Tensor | None = None,
) -> Clip:
    """Draw one object moving over its ground.

    A mosaic's tiles stay where they are, so in that style the flow is that of the object beneath.

    Args:
        scene: one picture, b = 1.
        path: (f, 2) the object's origin in every frame, x, y in pixels.
        size: (f) pixels; the scene's own when left out.
        angle: (f) radians; the scene's own when left out.
        pan: (f, 2) pixels; the scene's own when left out.

    Raises:
        ValueError: the scene holds more than one picture.
    """
    if len(scene) != 1:
        raise ValueError(f"a clip is drawn from one scene, got {len(scene)}")
    moving = replace(scene[torch.zeros(len(path), dtype=torch.long)], centre=path)
    given = {"size": size, "angle": angle, "pan": pan}
    moving = replace(moving, **{name: value for name, value in given.items() if value is not None})
    frames, mask = draw(moving)
    flow_back = get_flow(moving[torch.arange(len(path)).flip(0)], mask.flip(0)).flip(0)
    return Clip(frames, mask, get_centroid(mask), get_flow(moving, mask), flow_back)
