"""The papers' tables on drawn clips: systems run as graphs, judged by the world, with the settings that ran."""

import argparse
from pathlib import Path

import pytest

from consistent_video.bench import papers, tasks
from consistent_video.bench.clip_case import Case
from consistent_video.bench.table import load_rows
from consistent_video.scripts.host import Host
from consistent_video.scripts.systems import COMPARED


@pytest.fixture
def options(tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    for module in (papers, tasks):
        monkeypatch.setattr(module, "FRAMES", 3)
    return argparse.Namespace(
        folder=None, checkpoint=None, prompts=None, clips_of_kind=1, kinds=("colour",), tables=["EI², Table 1"],
        frames=0, size=128, steps=2, learning_rate=1e-4, ddim_steps=2, clip_folder=None, flow="variational", lpips="",
        servers=[host.address], output=tmp_path / "videos", document=tmp_path / "papers.md", state=tmp_path / "state",
    )  # fmt: skip


def test_our_figures_stand_beside_the_published_ones(options: argparse.Namespace, monkeypatch) -> None:
    table = papers.TABLES[0]
    monkeypatch.setattr(papers, "TABLES", (papers.Table(table.title, ("FateZero", "EI²"), table.published),))
    assert papers.measure_papers(options) == 0
    document = options.document.read_text(encoding="utf-8")
    lines = {line.split(" | ")[0]: line for line in document.splitlines() if line.startswith("| ")}
    assert lines["| FateZero"].endswith("|  |  |") and lines["| EI²"].endswith("| 29.84 | 95.94 |")
    assert "obeyed" in lines["| system"] and "warp error, 10⁻³" in lines["| system"]
    assert "- **FateZero** (Qi et al., ICCV 2023): " in document and COMPARED["FateZero"].differs in document
    assert "spatial middle-frame" in document and "recipe FateZero" in document and "steps 2" in document
    rows = load_rows(options.state / "clips.jsonl", Case).values()
    assert {row["method"]: "Tune" in row["settings"] for row in rows} == {"FateZero": False, "EI²": True}
