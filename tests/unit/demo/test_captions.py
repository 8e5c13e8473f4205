"""Captions say what is drawn, in words that fit the text encoder."""

from itertools import product

import pytest
import torch

from consistent_video.demo.captions import PHRASINGS, PLACES, caption, get_kind, list_captions, name_object, phrase
from consistent_video.demo.palette import BACKGROUNDS, COLOURS, SHAPES, STYLES, TEXTURES
from consistent_video.demo.world import sample_scene

KINDS = list(product(SHAPES, COLOURS, TEXTURES, BACKGROUNDS, STYLES))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (("circle", "red", "plain", "white", "flat"), "a red circle on a white background"),
        (("square", "blue", "striped", "meadow", "pencil"), "a striped blue square on a meadow, pencil style"),
        (("star", "orange", "plain", "night", "mosaic"), "an orange star in the night sky, mosaic style"),
    ],
)
def test_the_canonical_captions(kind: tuple[str, ...], text: str) -> None:
    assert phrase(*kind)[0] == text


def test_captions_mention_what_is_drawn() -> None:
    for shape, colour, texture, background, style in KINDS:
        texts = phrase(shape, colour, texture, background, style)
        full, no_ground, no_colour = texts[:-2], texts[-2], texts[-1]
        assert all(shape in text.split() or f"{shape}," in text.split() for text in texts)
        assert all(colour in text for text in [*full, no_ground])
        assert all(any(place in text for place in PLACES[background]) for text in [*full, no_colour])
        assert texture == "plain" or all(texture in text for text in [*full, no_ground])
        assert colour not in no_colour.split() and background not in no_ground


def test_different_scenes_have_different_canonical_captions() -> None:
    assert len({phrase(*kind)[0] for kind in KINDS}) == len(KINDS)


def test_the_article_fits_the_next_word() -> None:
    assert name_object("", "orange", "ring") == "an orange ring"
    assert name_object("dotted", "orange", "ring") == "a dotted orange ring"


def test_every_caption_fits_the_text_encoder() -> None:
    """A byte pair encoder makes at most one token of a character; 77 hold two special ones."""
    texts = {text for row in list_captions() for text in row}
    assert max(len(text.replace(" ", "")) for text in texts) <= 75


def test_the_number_of_a_kind_is_its_row() -> None:
    scene = sample_scene(30, torch.Generator().manual_seed(2))
    rows = list_captions()
    assert len(rows) == len(KINDS) and all(len(row) == PHRASINGS for row in rows)
    for phrasing in (0, 5):
        assert [rows[i][phrasing] for i in get_kind(scene).tolist()] == caption(scene, phrasing)
