"""The page of a blind vote, in a browser: names are not shown, and votes become CSV under the methods' names."""

import argparse
import csv
import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from consistent_video.bench.clip_case import Case
from consistent_video.bench.vote import QUESTIONS, measure_vote
from consistent_video.scripts.browser import find_browser
from consistent_video.scripts.environment import ROOT

METHODS = ("per frame", "EI²")


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    edits = tmp_path / "edits"
    edits.mkdir()
    (tmp_path / "clips.jsonl").touch()
    for number, method in enumerate((*METHODS, "another")):
        case = Case("red_circle", "object", method, "a circle", "a </script> square", "demo", 8, 128, 0, 0.0, 2, "")
        shutil.copy(ROOT / "demo" / "clips" / "orange_triangle.mp4", edits / f"{case.name}.mp4")
        with (tmp_path / "clips.jsonl").open("a") as file:
            file.write(json.dumps({**asdict(case), "number": number}) + "\n")
    return argparse.Namespace(
        folder=ROOT / "demo" / "clips", methods=METHODS, output=edits, page=tmp_path / "vote", state=tmp_path
    )


def test_votes_are_blind_and_become_a_table(options: argparse.Namespace) -> None:
    assert measure_vote(options) == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        page = browser.new_page()
        page.goto((options.page / "vote.html").as_uri())
        lefts = set()
        for _ in range(20):  # sides are drawn each time: that 20 fall alike is one in 500,000
            page.reload(wait_until="domcontentloaded")
            lefts.add(page.get_attribute("#left", "src"))
            if len(lefts) == 2:
                break
        assert lefts == {"edit_0_0_0.mp4", "edit_0_0_1.mp4"}
        assert page.inner_text("#prompt") == "a </script> square"
        assert not any(name in page.inner_text("body") for name in METHODS)
        first = METHODS[["edit_0_0_0.mp4", "edit_0_0_1.mp4"].index(page.get_attribute("#left", "src") or "")]
        for choice in ("left", "equal", "right", "left"):
            page.click(f"[data-choice={choice}]")
        assert page.is_disabled("[data-choice=left]")
        with page.expect_download() as download:
            page.click("#save")
        rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
        browser.close()
    other = METHODS[1 - METHODS.index(first)]
    assert [row["question"] for row in rows] == list(QUESTIONS)
    assert [row["choice"] for row in rows] == [first, "equal", other, first]
    assert {(row["left"], row["right"]) for row in rows} == {(first, other)}


def test_a_vote_needs_edits_by_two_methods(options: argparse.Namespace) -> None:
    options.methods = ("per frame", "none such")
    with pytest.raises(SystemExit, match=r"per frame, none such: no clip in .* was edited by two"):
        measure_vote(options)
