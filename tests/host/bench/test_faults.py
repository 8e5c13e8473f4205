"""A few faults of each kind that happens in this process or in the server, and the document of them."""

import argparse
from pathlib import Path
from unittest import mock

import pytest

from consistent_video.bench import fault_runs, faults
from consistent_video.bench.fault_graphs import try_graphs
from consistent_video.bench.fault_row import Row
from consistent_video.bench.fault_server import kill_writers
from consistent_video.scripts.host import Host


def test_runs_that_are_interrupted_leave_nothing(monkeypatch) -> None:
    rows = list(fault_runs.try_interrupts(6, seed=1))
    assert [row.tried for row in rows] == [1] * 6 + [6] and not [row for row in rows if row.failed]
    monkeypatch.setattr(fault_runs, "leftovers", lambda _: ["hooks"])
    assert fault_runs.interrupt(mock.Mock(), "save", 1) == ["it was not interrupted", "hooks"]


def test_hostile_graphs_are_answered_in_words(host: Host) -> None:
    rows = list(try_graphs(40, seed=2, host=host))
    assert sum(row.tried for row in rows[1:-1]) == 40
    assert not [(row.fault, row.failed) for row in rows if row.failed]


def test_what_is_killed_while_it_writes_leaves_a_whole_file(tmp_path: Path) -> None:
    assert not kill_writers(tmp_path, 5, seed=3).failed


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        quick=True,
        sections=("numbers",),
        soak=0,
        again=False,
        state=tmp_path / "state",
        document=tmp_path / "reliability.md",
    )


def test_the_document_counts_what_failed_and_nothing_is_made_twice(options, monkeypatch) -> None:
    made = [Row("a | b", 3, "x" * 300), Row("c", 2, "d", ("it is\nleft",))]
    monkeypatch.setattr(faults.Section, "make", lambda *_: iter(made))
    assert faults.measure_faults(options) == 1
    written = options.document.read_text(encoding="utf-8")
    assert "5 faults, 1 failures." in written and "- c: it is left" in written and "a \\| b" in written
    monkeypatch.setattr(faults.Section, "make", lambda *_: pytest.fail("it is done"))
    faults.measure_faults(options)
    assert options.document.read_text(encoding="utf-8") == written
