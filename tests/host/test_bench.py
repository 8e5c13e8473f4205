"""The measurements run, keep their rows and write their documents, at the smallest size."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from consistent_video.bench import inr, norms, world
from consistent_video.scripts.clips import read_clip


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        clips=["red_circle"], seeds=1, steps=2, ddim_steps=2, document=tmp_path / "norms.md",
        json=tmp_path / "norms.json", state=tmp_path / "state",
    )  # fmt: skip


def test_the_norms_are_measured_kept_and_written(options, monkeypatch) -> None:
    monkeypatch.setattr(norms, "NORMS", ("layer norm without affine", "instance centering"))
    norms.measure_norms(options)
    rows = json.loads(options.json.read_text())
    assert [(row["norm"], row["spectral"]) for row in rows] == [
        (norm, spectral) for norm in norms.NORMS for spectral in ("off", "on")
    ]
    assert rows[0]["mean_shift"] > 10 * rows[2]["mean_shift"]  # EI²'s claim, here before much tuning
    written = options.document.read_text(encoding="utf-8")
    assert all(f"| {row['norm']} | {row['spectral']} | {row['obeyed']:.3g}" in written for row in rows)
    monkeypatch.setattr(norms, "run_case", lambda *_: pytest.fail("what is done is not done again"))
    norms.measure_norms(options)
    assert options.document.read_text(encoding="utf-8") == written


def test_the_source_as_its_own_edit_is_judged_as_itself() -> None:
    source = read_clip(world.CLIPS / "red_circle.mp4")[0]
    reader = world.ShapeReader.load(world.READER)
    read = world.judge(source, source, "a red circle on a white background", reader)
    assert read["obeyed"] == 1 and read["motion_error"] == 0 and read["flicker"] == 0
    assert world.judge(source, source, "a blue square on a white background", reader)["obeyed"] == 0


def test_an_object_that_jumps_and_grows_is_told() -> None:
    source = read_clip(world.CLIPS / "red_circle.mp4")[0]
    edit = torch.roll(source, 6, dims=3)
    edit[::2] = source[::2]
    edit[3, :, :64] = 1.0
    read = world.judge(edit, source, "a red circle on a white background", world.ShapeReader.load(world.READER))
    assert 2 < read["motion_error"] < 20 and read["flicker"] > 0


def test_the_noise_relation_is_measured_and_written(options, monkeypatch) -> None:
    chosen = {
        ("training-free", "plain", "none"),
        ("training-free", "plain", "motion, 0.5"),
        ("EI² + INR", "plain", "none"),
    }
    everything = inr.list_cases
    monkeypatch.setattr(inr, "list_cases", lambda given: (case for case in everything(given) if case.name in chosen))
    inr.measure_inr(options)
    rows = json.loads(options.json.read_text())
    assert len(rows) == 3 and all(row["warp_error"] > 0 and row["texture"] > 0 for row in rows)
    written = options.document.read_text(encoding="utf-8")
    assert all(f"| {' | '.join(name)} | " in written for name in chosen)
    monkeypatch.setattr(inr, "run_case", lambda *_: pytest.fail("what is done is not done again"))
    inr.measure_inr(options)
    assert options.document.read_text(encoding="utf-8") == written


def test_what_nothing_is_drawn_for_is_measured_once(options) -> None:
    options.seeds, options.clips = 3, ["red_circle", "yellow_star"]
    cases = list(inr.list_cases(options))
    seeds = {tuned: {case.seed for case in cases if case.tuned == tuned} for tuned in inr.TUNED}
    assert seeds == {"training-free": {0}, "EI²": {0, 1, 2}, "EI² + INR": {0, 1, 2}}
    assert len(set(cases)) == len(cases)
