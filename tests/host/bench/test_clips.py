"""Edits of clips through a running server, with LOVEU-TGVE's prompts; one that fails does not stop the others."""

import argparse
import csv
import json
import shutil
from pathlib import Path

import pytest

from consistent_video.bench import clips
from consistent_video.bench.clip_case import CAPTION, DEMO_MODEL, KINDS, VIDEO
from consistent_video.scripts.clips import read_clip
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.host import Host
from consistent_video.scripts.server import HostError, Server

ROW = {
    VIDEO: "red_circle",
    CAPTION: "a red circle on a white background",
    KINDS["object"]: "a blue square on a white background",
    KINDS["style"]: "a red circle on a white background, mosaic style",
}


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    (tmp_path / "clips" / "DAVIS_480p").mkdir(parents=True)
    shutil.copy(ROOT / "demo" / "clips" / "red_circle.mp4", tmp_path / "clips" / "DAVIS_480p")
    table = [{VIDEO: "DAVIS Videos:", CAPTION: None}, ROW, {**ROW, VIDEO: "missing", KINDS["style"]: ""}]
    (tmp_path / "prompts.json").write_text(json.dumps(table))
    return argparse.Namespace(
        folder=tmp_path / "clips", checkpoint=Path(DEMO_MODEL), prompts=tmp_path / "prompts.json",
        methods=["FFAM", "EI² + INR"], frames=3, size=128, steps=2, learning_rate=1e-4, ddim_steps=2, clip_folder=None,
        flow="variational", lpips="", servers=[], output=tmp_path / "videos", document=tmp_path / "clips.md",
        state=tmp_path / "state",
    )  # fmt: skip


def test_clips_are_edited_judged_and_kept_and_a_failure_is_listed(
    host: Host, options: argparse.Namespace, capsys, monkeypatch
) -> None:
    options.servers = [f"http://{host.address}/"]
    table = [{**ROW, VIDEO: name, KINDS["style"]: ""} for name in (ROW[VIDEO], "missing")]
    options.prompts.write_text(json.dumps(table))
    assert clips.measure_clips(options) == 1
    done = options.state / "clips.jsonl"
    rows = [json.loads(line) for line in done.read_text().splitlines()]
    assert sorted((row["video"], row["kind"], row["method"]) for row in rows) == [
        ("red_circle", "object", method) for method in ("EI² + INR", "FFAM")
    ]
    for row in rows:
        assert row["rows"]["do nothing"]["motion alignment"] == pytest.approx(1)
        assert row["rows"]["edit"] != row["rows"]["do nothing"] and "CLIP-T" in row["left_out"]
        assert row["seconds"]["Edit"] > 0 and (row["seconds"]["Tune"] is None) == (row["method"] == "FFAM")
    videos = sorted(path.name for path in options.output.iterdir())
    assert videos == sorted(f"red_circle_{row['kind']}_{row['method'].replace(' ', '_')}.mp4" for row in rows)
    assert read_clip(options.output / videos[0])[0].shape == (3, 3, 128, 128)
    document, told = options.document.read_text(encoding="utf-8"), capsys.readouterr().out
    for text in (document, told):
        assert "Failed: missing, object, FFAM: FileNotFoundError: there is no video missing" in text
    assert "| do nothing | 1 |" in document and "| EI² + INR | 1 |" in document
    tried = []

    def fail(_, case, *rest) -> dict:
        tried.append(case.video)
        raise FileNotFoundError("still missing")

    monkeypatch.setattr(clips, "run_case", fail)
    assert clips.measure_clips(options) == 1
    assert tried == ["missing", "missing"], "what is done is not done again"
    assert [json.loads(line) for line in done.read_text().splitlines()] == rows


def test_loveus_own_table_gives_the_same_edits(options: argparse.Namespace, tmp_path: Path) -> None:
    expected = list(clips.list_cases(options))
    assert len(expected) == 6 and {case.after for case in expected} == {ROW[KINDS["object"]], ROW[KINDS["style"]]}
    options.prompts = tmp_path / "LOVEU-TGVE-2023_Dataset.csv"
    with options.prompts.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, [VIDEO, CAPTION, *KINDS.values()])
        writer.writeheader()
        writer.writerows([{VIDEO: "DAVIS Videos:"}, {}, ROW, {**ROW, VIDEO: "missing", KINDS["style"]: ""}])
    assert list(clips.list_cases(options)) == expected


@pytest.mark.parametrize(
    ("text", "told"), [("[1]", "not a list of objects"), ('[{"video": "x"}]', "has no column"), ("[]", VIDEO)]
)
def test_other_prompts_are_refused_in_words(options, tmp_path: Path, text: str, told: str) -> None:
    options.prompts.write_text(text)
    with pytest.raises(SystemExit, match=told):
        clips.measure_clips(options)


def test_a_method_and_a_server_that_are_not_there_are_told(options) -> None:
    options.servers = ["127.0.0.1:9"]
    with pytest.raises(SystemExit, match="no ComfyUI answers at 127.0.0.1:9"):
        clips.measure_clips(options)
    options.servers, options.checkpoint = [], Path("missing.safetensors")
    with pytest.raises(SystemExit, match="--checkpoint: there is no file missing.safetensors"):
        clips.measure_clips(options)
    options.methods = ["EI3"]
    with pytest.raises(SystemExit, match="--methods EI3: there are per frame"):
        clips.measure_clips(options)


def test_every_server_gets_work_and_none_two_at_once(options, monkeypatch) -> None:
    import threading
    import time

    busy, used, lock = set(), {}, threading.Lock()

    def run_case(server: Server, case, *_) -> dict:
        with lock:
            assert server.address not in busy
            busy.add(server.address)
            used[server.address] = used.get(server.address, 0) + 1
        time.sleep(0.02)
        with lock:
            busy.remove(server.address)
        return {"case": case.name}

    monkeypatch.setattr(clips, "run_case", run_case)
    cases = list(clips.list_cases(options)) * 3
    done = list(clips.run_on_servers([Server("a"), Server("b")], cases, options))
    assert sum(used.values()) == len(cases) == len(done)
    assert min(used.values()) >= 4 and all(row for _, row, _ in done)


def test_what_a_dead_server_had_goes_to_another(options, monkeypatch, capsys) -> None:
    def run_case(server: Server, case, *_) -> dict:
        if server.address == "dead":
            raise HostError("does not answer")
        return {"case": case.name}

    monkeypatch.setattr(clips, "run_case", run_case)
    monkeypatch.setattr(Server, "answers", lambda self: self.address != "dead")
    cases = list(clips.list_cases(options)) * 3
    done = list(clips.run_on_servers([Server("dead"), Server("a")], cases, options))
    assert len(done) == len(cases) and all(row for _, row, _ in done)
    assert "dead answers no more; 1 of 2 servers go on with its edit." in capsys.readouterr().out
    failed = list(clips.run_on_servers([Server("dead")], cases, options))
    assert {case for case, *_ in failed} == set(cases) and not any(row for _, row, _ in failed)
