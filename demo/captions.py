"""Plain English captions of scenes, in several phrasings."""

from itertools import product

import torch

from .palette import WORDS
from .world import Scene

PLACES = {
    "white": ("on a white background", "on white"),
    "grey": ("on a grey background", "on grey"),
    "night": ("in the night sky", "in a night sky with stars"),
    "meadow": ("on a meadow", "on green grass"),
    "sand": ("on sand", "on a sandy beach"),
    "brick": ("on a brick wall", "in front of a brick wall"),
    "sea": ("on the sea", "on sea waves"),
}
ENDINGS = {
    "flat": ("", ""),
    "outlined": (", outlined", " with a black outline"),
    "pencil": (", pencil style", ", drawn with a pencil"),
    "mosaic": (", mosaic style", ", as a mosaic"),
}
OPENINGS = {
    "flat": "a picture of",
    "outlined": "an outlined drawing of",
    "pencil": "a pencil drawing of",
    "mosaic": "a mosaic of",
}


def name_object(*words: str) -> str:
    """Return the words behind the right article, e.g. "an orange star"; empty words are left out."""
    text = " ".join(word for word in words if word)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def phrase(shape: str, colour: str, texture: str, background: str, style: str) -> list[str]:
    """Return the captions of one kind of scene, the canonical one first.

    A plain texture and a flat style are left unsaid. The last two captions leave out the ground
    and the object's colour and texture.
    """
    texture = "" if texture == "plain" else texture
    thing, place = name_object(texture, colour, shape), PLACES[background]
    ending, opening = ENDINGS[style], OPENINGS[style]
    return [
        f"{thing} {place[0]}{ending[0]}",
        f"{thing} {place[0]}{ending[1]}",
        f"{thing} {place[1]}{ending[0]}",
        f"{opening} {name_object(colour, texture, shape)} {place[0]}",
        f"{opening} {thing} {place[1]}",
        f"{place[0]}, {thing}{ending[1]}",
        f"{thing}{ending[0]}",
        f"{name_object(shape)} {place[0]}{ending[0]}",
    ]


PHRASINGS = len(phrase("circle", "red", "plain", "white", "flat"))


def get_kind(scene: Scene) -> torch.Tensor:
    """Return the number of each picture's kind, (b), the row of it in `list_captions`."""
    kind = torch.zeros_like(scene.shape)
    for name, words in WORDS.items():
        kind = kind * len(words) + getattr(scene, name)
    return kind


def list_captions() -> list[list[str]]:
    """Return the PHRASINGS captions of every kind of scene, in the order of `get_kind`."""
    return [phrase(*names) for names in product(*WORDS.values())]


def caption(scene: Scene, phrasing: int = 0) -> list[str]:
    """Return one caption for each picture.

    Args:
        scene: b pictures.
        phrasing: which of the PHRASINGS; 0 is the canonical one.
    """
    columns = [[words[i] for i in getattr(scene, name).tolist()] for name, words in WORDS.items()]
    return [phrase(*names)[phrasing] for names in zip(*columns, strict=True)]
