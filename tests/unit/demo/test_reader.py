"""The judges name and find what was drawn."""

from functools import cache

import pytest
import torch

from consistent_video.demo.evaluate import get_names
from consistent_video.demo.model import WEIGHTS
from consistent_video.demo.palette import COLOURS, GROUND, RGB, STYLES, get_chroma, get_hues
from consistent_video.demo.reader import NOTHING, ShapeReader, find_object, get_vividness, read_colour
from consistent_video.demo.world import Scene, draw, get_centroid, sample_scene

READER = WEIGHTS / "reader.safetensors"


@cache
def draw_many(held_out: bool = False) -> tuple[Scene, torch.Tensor, torch.Tensor]:
    """Random scenes with their pictures and masks."""
    scene = sample_scene(120, torch.Generator().manual_seed(7), held_out)
    return scene, *draw(scene)


def share(first: list[str], second: list[str]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def spoil(pictures: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    return (pictures + 0.03 * noise).clamp(0, 1)


@pytest.mark.parametrize("style", range(len(STYLES)), ids=STYLES)
def test_colours_are_read_in_every_style(style: int) -> None:
    scene, pictures, _ = draw_many()
    chosen = scene.style == style
    assert share(read_colour(pictures[chosen]), get_names(scene[chosen])["colour"]) >= 0.97


def test_colours_are_read_through_noise() -> None:
    scene, pictures, _ = draw_many()
    assert share(read_colour(spoil(pictures)), get_names(scene)["colour"]) >= 0.97


def test_an_empty_frame_holds_nothing() -> None:
    empty = GROUND.view(-1, 3, 1, 1).expand(-1, 3, 16, 16)
    assert read_colour(empty) == [NOTHING] * len(empty)
    mask, centroid = find_object(empty)
    assert mask.sum() == 0 and centroid.isnan().all()


@pytest.mark.parametrize("style", range(len(STYLES)), ids=STYLES)
def test_objects_are_found_in_every_style(style: int) -> None:
    scene, pictures, mask = draw_many()
    chosen = scene.style == style
    found, centroid = find_object(pictures[chosen])
    assert (centroid - get_centroid(mask[chosen])).norm(dim=-1).max() < 1.5
    overlap = torch.minimum(found, mask[chosen]).sum((1, 2)) / torch.maximum(found, mask[chosen]).sum((1, 2))
    assert overlap.min() > 0.6


def test_hues_of_greys_and_colours() -> None:
    degrees = get_hues(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]])).rad2deg()
    torch.testing.assert_close(degrees, torch.tensor([0.0, 120, -120, 0]))
    torch.testing.assert_close(get_chroma(torch.tensor([0.2, 0.9, 0.4])), torch.tensor(0.7))


def test_the_eight_hues_are_well_apart() -> None:
    hues = get_hues(RGB).rad2deg().remainder(360).sort().values
    apart = torch.cat([hues[1:] - hues[:-1], hues[:1] + 360 - hues[-1:]])
    assert len(apart) == len(COLOURS) and apart.min() > 20


def test_grounds_are_pale_and_objects_vivid() -> None:
    assert get_vividness(GROUND.view(-1, 3, 1, 1)).max() < 0.15
    assert get_vividness(RGB.view(-1, 3, 1, 1)).min() > 0.45


def test_probabilities_sum_to_one_and_reading_takes_the_largest() -> None:
    torch.manual_seed(0)
    reader, pictures = ShapeReader(), draw_many()[1][:5]
    probabilities = reader.get_probabilities(pictures)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5))
    assert probabilities.shape == (5, 7) and len(reader.read(pictures, "style")) == 5


@pytest.mark.parametrize("held_out", [False, True])
def test_the_trained_reader_names_what_is_drawn(held_out: bool) -> None:
    scene, pictures, _ = draw_many(held_out)
    reader, names = ShapeReader.load(READER), get_names(scene)
    assert share(reader.read(spoil(pictures)), names["shape"]) >= 0.95
    for attribute in ("background", "style"):
        assert share(reader.read(pictures, attribute), names[attribute]) >= 0.9
