"""Loss and edit along tunings by several recipes are measured, kept and written, at the smallest size."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from consistent_video.bench import convergence
from consistent_video.bench.convergence import FIGURES, Case
from consistent_video.bench.convergence_recipes import OURS, PAPERS, RECIPES, UNTUNED
from consistent_video.bench.tasks import VALIDATION, Task
from consistent_video.bench.world import World

STEPS, TEN = 3, "10 × rate"


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        clips=1, seeds=1, recipes=(UNTUNED, PAPERS, OURS), frames=3, steps=STEPS, rate=1e-4, parts=(0.4, 1.0), pairs=1,
        ddim_steps=2, state=tmp_path / "state", document=tmp_path / "convergence.md",
    )  # fmt: skip


def test_loss_and_edit_are_measured_along_a_tuning_kept_and_written(options, monkeypatch) -> None:
    run = convergence.run

    def run_ours(world: World, task: Task, cases: dict[int, Case]) -> list[dict]:
        """Measure our recipe, and make up the others' rows."""
        if next(iter(cases.values())).recipe == OURS:
            return run(world, task, cases)
        made_up = dict.fromkeys(FIGURES, 1.0)
        return [{**asdict(case), "loss": 0.1 / (1 + done), **made_up} for done, case in cases.items()]

    monkeypatch.setattr(convergence, "run", run_ours)
    convergence.measure_convergence(options)
    rows = (options.state / "convergence.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 2 + 1, "untuned, the paper's at both points, ours at the end of its shorter way"
    ours = json.loads(rows[-1])
    assert (ours["recipe"], ours["done"]) == (OURS, 1) and 1e-4 < ours["loss"] < 1 and 0 <= ours["obeyed"] <= 1
    document = options.document.read_text(encoding="utf-8")
    assert "colour_0" in document and str(VALIDATION) in document and "--steps 3 --rate 0.0001" in document
    table = [line for line in document.splitlines() if line.startswith(("| loss", "| obeyed", "| fast | 1 | 1 |"))]
    assert len(table) == 3 and "undecided" in table[0], "one clip decides nothing"
    assert options.document.with_suffix(".png").is_file()
    monkeypatch.setattr(convergence, "run", lambda *_: pytest.fail("what is on disk is measured again"))
    convergence.measure_convergence(options)
    assert options.document.read_text(encoding="utf-8") == document


def test_what_is_compared_comes_first_and_ends_with_its_own_steps(options) -> None:
    options.seeds, options.clips = 2, 2
    tunings = list(convergence.list_tunings(options))
    assert [name for name, *_ in tunings[:10]].count(UNTUNED) == 2, "untuned, every seed is alike"
    assert {name for name, *_ in tunings[:10]} == {UNTUNED, PAPERS, OURS}
    assert {name for name, *_ in tunings[10:]} == RECIPES.keys() - {PAPERS, OURS}
    assert list(convergence.list_cases(PAPERS, "colour_0", 0, options)) == [1, 3]
    assert list(convergence.list_cases(TEN, "colour_0", 0, options)) == [1]
    settings = RECIPES[TEN].settings(STEPS, 1e-4, 1)
    assert (settings.steps, settings.seed, settings.optimization.learning_rate) == (1, 1, pytest.approx(1e-3))
