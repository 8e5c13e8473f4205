"""Signed distances of the seven shapes, in units of the object's size; negative inside."""

import math

import torch


def circle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the distance to a circle of radius 1."""
    return torch.hypot(x, y) - 1.0


def box(x: torch.Tensor, y: torch.Tensor, width: float, height: float) -> torch.Tensor:
    """Return the distance to a rectangle with the given half sides."""
    dx, dy = x.abs() - width, y.abs() - height
    outside = torch.hypot(dx.clamp(min=0), dy.clamp(min=0))
    return outside + torch.maximum(dx, dy).clamp(max=0)


def square(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the distance to a square of half side 0.9."""
    return box(x, y, 0.9, 0.9)


def triangle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the depth behind the nearest side of a triangle that points up."""
    slanted = math.cos(math.pi / 6) * x.abs() - 0.5 * y
    return torch.maximum(y, slanted) - 0.72


def star(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the depth behind the nearest side of a five-pointed star."""
    tip, notch, sector = 1.4, 0.62, math.pi / 5
    angle = torch.atan2(x, -y)
    angle = angle - 2 * sector * torch.round(angle / (2 * sector))
    radius = torch.hypot(x, y)
    along, across = radius * angle.cos(), radius * angle.sin().abs()
    edge_x, edge_y = notch * math.cos(sector) - tip, notch * math.sin(sector)
    length = math.hypot(edge_x, edge_y)
    return ((along - tip) * edge_y - across * edge_x) / length


def heart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the distance to a heart: two half discs on a square that stands on a corner."""
    side = 0.68
    x, y = x, y - 0.25
    turned = box((x + y) * math.sqrt(0.5), (x - y) * math.sqrt(0.5), side, side)
    offset = side * math.sqrt(0.5)
    lobes = torch.hypot(x.abs() - offset, y + offset) - side
    return torch.minimum(turned, lobes)


def ring(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the distance to a ring between the radii 0.55 and 1.15."""
    return (torch.hypot(x, y) - 0.85).abs() - 0.30


def cross(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the distance to an upright cross with equal arms."""
    return torch.minimum(box(x, y, 1.15, 0.4), box(x, y, 0.4, 1.15))


DISTANCES = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "ring": ring,
    "cross": cross,
}
EXTENT = 1.45  # no shape reaches further from its origin than this many sizes


def choose(maps: list[torch.Tensor], index: torch.Tensor) -> torch.Tensor:
    """Return each picture's own of several maps (b, h, w), given its number (b)."""
    every = torch.stack(maps, dim=1)
    return every[torch.arange(len(index), device=index.device), index]
