"""Steady Frames is measured on flicker of the size that is said, and its document says what is met."""

import argparse
from pathlib import Path

import pytest

from consistent_video.bench import steady
from consistent_video.bench.tasks import Truth, draw_task
from consistent_video.demo.reader import find_object


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth(draw_task("colour", 0, True))


def test_flicker_is_planted_in_the_size_that_is_said(truth: Truth) -> None:
    frames, mask = truth.wanted.frames, truth.wanted.mask[:, None]
    assert steady.plant(truth, steady.NOTHING) is frames
    found = {kind: steady.plant(truth, kind) for kind in ("colour", "position", "size", "texture")}
    assert all(clip.shape == frames.shape and 0 <= clip.min() and clip.max() <= 1 for clip in found.values())
    for kind in ("colour", "texture"):
        assert found[kind][mask.expand_as(frames) == 0].equal(frames[mask.expand_as(frames) == 0])
    away = find_object(found["position"])[1] - find_object(frames)[1]
    assert away.square().mean().sqrt() == pytest.approx(steady.SHAKE, rel=0.4)
    areas = find_object(found["size"])[0].sum(dim=(1, 2)) / find_object(frames)[0].sum(dim=(1, 2))
    assert areas.sqrt().std() == pytest.approx(steady.SWELL, rel=0.4)


def test_the_document_says_what_is_met(tmp_path: Path) -> None:
    options = argparse.Namespace(document=tmp_path / "steady.md", ddim_steps=8)
    left = {steady.PIXELS: 0.2, steady.LATENTS: 0.3}
    rows = [
        {"clip": "one", "edit": edit, "way": way, **dict.fromkeys(steady.FIGURES, left.get(way, 1.0))}
        | {"texture": 0.95, "warp_error": 4 * left.get(way, 1.0) if edit != steady.NOTHING else 0.4}
        for edit in steady.EDITS
        for way in steady.ways_of(edit)
    ]
    steady.write_document(options, rows)
    lines = options.document.read_text(encoding="utf-8").splitlines()
    assert "| colour | pixels | 0.20, met | 0.20, met | 0.11 | 0.95, met |  |" in lines
    assert "| per frame | latents | 0.30, not met | 0.30, not met |  | 0.95, met |  |" in lines
    assert "| none | pixels |  |  |  |  | 0.20, met |" in lines
