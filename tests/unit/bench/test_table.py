"""Rows on disk and tables in documents."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import pytest

from consistent_video.bench.table import add_row, load_rows, mean_and_error, write_table


@dataclass(frozen=True)
class Case:
    clip: str
    seed: int


def test_rows_are_found_by_their_case(tmp_path: Path) -> None:
    rows = [{"clip": "a", "seed": 0, "loss": 0.5}, {"clip": "b", "seed": 1, "loss": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_rows(tmp_path / "rows.jsonl", Case) == {Case("a", 0): rows[0], Case("b", 1): rows[1]}


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"clip": "a", "seed": 0}\n{"clip": "b", "se')
    assert list(load_rows(tmp_path / "rows.jsonl", Case)) == [Case("a", 0)]


def test_a_line_of_an_older_case_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"clip": "a"}\n{"clip": "b", "seed": 1}\n')
    assert list(load_rows(tmp_path / "rows.jsonl", Case)) == [Case("b", 1)]


def test_without_a_file_nothing_is_done_and_its_folder_is_made(tmp_path: Path) -> None:
    assert load_rows(tmp_path / "new" / "rows.jsonl", Case) == {}
    assert (tmp_path / "new").is_dir()


def test_mean_and_standard_error_are_those_of_statistics() -> None:
    values = [0.5, 2.0, 3.25, 1.0, 8.0]
    error = statistics.stdev(values) / len(values) ** 0.5
    assert mean_and_error([*values, None, float("nan")]) == f"{statistics.mean(values):.3g} ± {error:.1g}"


@pytest.mark.parametrize(("values", "text"), [([], "none"), ([None], "none"), ([0.12345], "0.123")])
def test_few_values(values: list, text: str) -> None:
    assert mean_and_error(values) == text


def test_a_table_is_markdown() -> None:
    assert write_table(["a", "b"], [["1", "2"], ["3", "4"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"


def test_a_row_after_one_that_was_cut_off_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    add_row(path, {"clip": "a", "seed": 0})
    path.write_text(path.read_text() + '{"clip": "b", "se')
    add_row(path, {"clip": "c", "seed": 2})
    add_row(path, {"clip": "d", "seed": 3})
    assert list(load_rows(path, Case)) == [Case("a", 0), Case("c", 2), Case("d", 3)]
