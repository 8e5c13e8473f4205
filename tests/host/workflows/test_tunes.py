"""The workflows that tune, and what becomes of their tunes."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from consistent_video.modules.tuning.weights import load_tune
from consistent_video.scripts.clips import read_clip
from consistent_video.scripts.host import Host
from consistent_video.scripts.server import GraphError
from consistent_video.scripts.workflow import find_node

from .graphs import PATIENCE, load_workflow, saved_frames


def test_a_saved_tune_serves_another_run(host: Host, judged, demo_clip: Path) -> None:
    plain, tied = (saved_frames(host, *judged, f"Save edit {name}") for name in ("plain", "tied"))
    assert plain.shape == tied.shape == read_clip(demo_clip)[0].shape and not plain.equal(tied)
    assert json.loads(judged[1].text(find_node(judged[0], "Sample report")))["relation"] == [0.5] * 3


def test_apply_tune_takes_a_saved_tune_back(host: Host, judged, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_saved_tune", **{"Tune.progress": 0.5})
    half = saved_frames(host, prompt, host.run(prompt, patience=PATIENCE), "Save edit plain")
    assert not half.equal(saved_frames(host, *judged, "Save edit plain"))


def test_a_damaged_tune_is_refused_in_words(host: Host, tuned) -> None:
    folder = host.base / "models" / "consistent_video"
    whole = (folder / "red_circle_00001_.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    prompt = load_workflow(host, "demo_saved_tune", **{"Load tune.tune_name": "cut.safetensors"})
    with pytest.raises(GraphError, match="cut.safetensors is damaged"):
        host.run(prompt, patience=PATIENCE)


def test_that_a_tune_cannot_be_saved_elsewhere_is_known_before_it_is_tuned(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_ei2", **{"Tune.steps": 5000, "Save tune.filename_prefix": "../../outside"})
    with pytest.raises(GraphError, match="Save tune.*Custom validation failed.*leads outside"):
        host.run(prompt, patience=PATIENCE)


@pytest.fixture(scope="module")
def unfinished(host: Host, demo_clip: Path) -> Path:
    """A tuning that was interrupted, and what it left."""
    prompt = load_workflow(host, "demo_ei2", **{"Tune.steps": 5000, "Tune.seed": 1})
    node = find_node(prompt, "Tune")

    def interrupt(progress) -> None:
        if progress.node == node and 3 <= progress.value < progress.total:
            host.interrupt()

    with pytest.raises(GraphError, match="[Ii]nterrupt"):
        host.run(prompt, interrupt, patience=PATIENCE)
    return host.base / "models" / "consistent_video" / "unfinished_00001_.safetensors"


def test_after_an_interrupt_the_next_run_is_well(host: Host, unfinished: Path) -> None:
    prompt = load_workflow(host, "demo_ei2", **{"Tune.steps": 2, "Tune.seed": 1, "Tune.snapshots": ""})
    assert len(json.loads(host.run(prompt, patience=PATIENCE).text(find_node(prompt, "Tune report")))["loss"]) == 2


def test_an_interrupted_tuning_goes_on(host: Host, unfinished: Path) -> None:
    before = load_tune(unfinished).info["loss"]
    steps = len(before) + 2
    prompt = load_workflow(host, "demo_resume_tune", **{"Tune.steps": steps, "Tune.seed": 1})
    report = json.loads(host.run(prompt, patience=PATIENCE).text(find_node(prompt, "Tune report")))
    assert report["loss"][:-2] == before and len(report["loss"]) == steps


def test_a_preview_plays_while_it_is_tuned(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_tune_a_video", **{"Tune.steps": 6, "Tune.seed": 5})
    run = host.run(prompt, patience=PATIENCE)
    assert len(run.previews) == 5  # from the second step on a frame each
    pictures = [Image.open(io.BytesIO(picture)) for picture in run.previews]
    assert {picture.format for picture in pictures} == {"JPEG"}
    assert len({picture.size for picture in pictures}) == 1 and len({picture.tobytes() for picture in pictures}) > 1


def test_everything_that_can_be_set_is_heeded(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_tuning_settings", **{"Tune.steps": 4, "Options.warmup_steps": 1})
    run = host.run(prompt, patience=PATIENCE)
    assert "| tuning | 4 | 4 | off | on |" in run.text(find_node(prompt, "Findings"))
    report = json.loads(run.text(find_node(prompt, "Tune report")))
    heeded = {
        "schedule": "cosine",
        "warmup_steps": 1,
        "min_snr_gamma": 5.0,
        "frames_per_step": 4,
        "masked": True,
        "smoothing": "INR",
    }
    assert heeded.items() <= report.items() and report["gradient_checkpointing"] and report["snapshots"] == [1, 2]


def test_tune_a_video_goes_out_and_comes_back(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_tune_a_video")
    assert saved_frames(host, prompt, host.run(prompt, patience=PATIENCE), "Save edit").isfinite().all()
    prompt = load_workflow(host, "demo_import_tune_a_video")
    run = host.run(prompt, patience=PATIENCE)
    assert saved_frames(host, prompt, run, "Save edit").shape == read_clip(demo_clip)[0].shape
