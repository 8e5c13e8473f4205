"""The study of prompt adapters measures each way to learn, keeps its rows and writes its tables."""

import argparse
from pathlib import Path

import pytest

from consistent_video.bench import adapters, tasks
from consistent_video.modules.prompt_tokens.host import tokens
from consistent_video.modules.tuning.learning_rate import Curvature


def test_the_study_is_measured_kept_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "FRAMES", 4)
    monkeypatch.setattr(tokens, "measure_curvatures", lambda _: [Curvature(0, 1.0, 40.0), Curvature(0, 2.0, 50.0)])
    for name, fewer in (("WEIGHTS", (0.0, 1e6)), ("OF_LIMIT", (1.0,)), ("RATES", {adapters.TOKENS: 1e-2})):
        monkeypatch.setattr(adapters, name, fewer)
    options = argparse.Namespace(
        clips_of_kind=1, kinds=("colour",), steps=4, ddim_steps=2, state=tmp_path, document=tmp_path / "adapters.md"
    )
    adapters.measure_adapters(options)
    written = options.document.read_text(encoding="utf-8")
    assert "| tokens | 1e+06 |" in written and "| gradient descent, 1 / L |" in written
    plain, steady, descent = adapters.load_rows(tmp_path / "adapters.jsonl", adapters.Case).values()
    assert steady["consistency_loss"] < plain["consistency_loss"], "what has a weight is lowered"
    assert plain["smoothness"]["found"] <= plain["smoothness"]["bound"]
    assert descent["rate"] == 1 / 50 and isinstance(descent["rises"], list)
    monkeypatch.setattr(adapters.Study, "run", lambda *_: pytest.fail("what is done is not done again"))
    adapters.measure_adapters(options)
    assert options.document.read_text(encoding="utf-8") == written
