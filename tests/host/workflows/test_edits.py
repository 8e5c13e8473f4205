"""The workflows that edit the demo clip."""

import json
from pathlib import Path

import pytest
from PIL import Image

from consistent_video.scripts.clips import read_clip
from consistent_video.scripts.host import Host
from consistent_video.scripts.server import GraphError
from consistent_video.scripts.workflow import find_node, set_values

from .graphs import DEMO_FRAMES, PATIENCE, load_workflow, saved_frames


@pytest.fixture(scope="module")
def edited(host: Host, demo_clip: Path):
    """The main workflow, run."""
    prompt = load_workflow(host, "demo_edit")
    return prompt, host.run(prompt, patience=PATIENCE)


def test_the_main_workflow_runs(host: Host, edited, demo_clip: Path) -> None:
    prompt, run = edited
    source, rate = read_clip(demo_clip)
    for title in ("Save edit", "Save reconstruction", "Save autoencoder round trip"):
        (file,) = host.files(run, find_node(prompt, title))
        frames, saved_rate = read_clip(file)
        assert frames.shape == source.shape and saved_rate == rate
    inversion = json.loads(run.text(find_node(prompt, "Inversion report")))
    assert inversion["steps"] == 3 and inversion["frames"] == len(source)
    assert inversion["denoise"] < 1 and "8 x 8" in inversion["starts_there_because"]


def test_the_main_workflow_as_one_node_gives_the_same_edit(host: Host, edited, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_edit_clip", **{"Scale.width": 64, "Scale.height": 64})
    run = host.run(prompt, patience=PATIENCE)
    packed, plain = saved_frames(host, prompt, run, "Save edit"), saved_frames(host, *edited, "Save edit")
    assert (packed - plain).abs().mean() < 0.02, "apart from Scale, which rounds to 8 bits"


WHAT_A_PROMPT_RUNS = {"Edited prompt", "Edit", "Decode edit", "Video of edit", "Save edit"}


@pytest.mark.parametrize("ran", ["edited", "tuned"])
def test_another_edited_prompt_runs_the_sampling_alone(host: Host, request, ran: str) -> None:
    prompt, first = request.getfixturevalue(ran)
    titles = {key: node["_meta"]["title"] for key, node in prompt.items()}
    assert {"Invert", "Edit"} <= {titles[node] for node in first.seconds}
    host.run(prompt, patience=PATIENCE)  # the cache holds one graph
    changed = set_values(prompt, {("Edited prompt", "text"): f"a green star, {ran}"})
    again = host.run(changed, patience=PATIENCE)
    assert {titles[node] for node in again.seconds} == WHAT_A_PROMPT_RUNS


def test_ei2s_workflow_runs(host: Host, tuned, demo_clip: Path) -> None:
    prompt, run = tuned
    source, rate = read_clip(demo_clip)
    for title in ("Save edit", "Save reconstruction", "Save autoencoder round trip"):
        (file,) = host.files(run, find_node(prompt, title))
        frames, saved_rate = read_clip(file)
        assert frames.shape == source.shape and saved_rate == rate
    report = json.loads(run.text(find_node(prompt, "Tune report")))
    assert len(report["loss"]) == report["steps"] == 3 and report["frames"] == len(source)
    inversion = json.loads(run.text(find_node(prompt, "Inversion report")))
    assert inversion["steps"] == 3 and inversion["frames"] == len(source)
    assert host.files(run, find_node(prompt, "Loss plot"))
    assert (host.base / "models" / "consistent_video" / "red_circle_00001_.safetensors").is_file()


def test_inr_smooths_workflow_runs(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_inr_smooth")
    run = host.run(prompt, patience=PATIENCE)
    report = json.loads(run.text(find_node(prompt, "Tune report")))
    assert report["smoothing_weight"] == 2 and len(report["smoothing"]) == 3, report.keys()
    assert saved_frames(host, prompt, run, "Save edit").shape == read_clip(demo_clip)[0].shape


def test_an_edit_through_comfyuis_own_sampler_runs(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_custom_sampler")
    run = host.run(prompt, patience=PATIENCE)
    assert saved_frames(host, prompt, run, "Save edit").shape == read_clip(demo_clip)[0].shape


def test_a_clip_is_edited_in_windows(host: Host, long_clip: Path) -> None:
    prompt = load_workflow(host, "demo_long_clip")
    run = host.run(prompt, patience=PATIENCE)
    edited = saved_frames(host, prompt, run, "Save edit")
    assert edited.shape == read_clip(long_clip)[0].shape and len(edited) == 18
    assert "Context window 2/2: frames 2-17 of 18" in host.log_text()


def test_an_edit_per_frame_is_steadied(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_steady_frames", **{"Edit.steps": 3, "Invert steadied.steps": 2})
    run = host.run(prompt, patience=PATIENCE)
    report = json.loads(run.text(find_node(prompt, "Steady report")))
    assert report["unsteadiness_after"] < 0.5 * report["unsteadiness_before"]
    titles = ("Save edit", "Save edit steadied", "Save edit per frame")
    sharpened, steadied, edited = (saved_frames(host, prompt, run, title) for title in titles)
    assert sharpened.shape == steadied.shape == edited.shape == read_clip(demo_clip)[0].shape
    assert not steadied.equal(edited) and not sharpened.equal(steadied)


def test_edges_steer_an_edit(host: Host, demo_clip: Path) -> None:
    edits = []
    for strength in (0.6, 0.0):
        prompt = load_workflow(host, "demo_controlnet", **{"Steer.strength": strength})
        edits.append(saved_frames(host, prompt, host.run(prompt, patience=PATIENCE), "Save edit"))
    assert edits[0].shape == read_clip(demo_clip)[0].shape and not edits[0].equal(edits[1])


def test_an_edit_follows_a_motion_that_is_given(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_edit")
    plane = {"width": 64, "height": 64, "batch_size": DEMO_FRAMES - 1}
    for title, colour in (("forward", 0xB49600), ("backward", 0x4B6900)):  # red to the right, green down
        prompt[title] = {"class_type": "EmptyImage", "inputs": {**plane, "color": colour}, "_meta": {"title": title}}
    motion = prompt[find_node(prompt, "Motion")]["inputs"]
    del motion["images"]
    motion |= {"forward": ["forward", 0], "backward": ["backward", 0], "largest": 16.0}
    run = host.run(prompt, patience=PATIENCE)
    assert saved_frames(host, prompt, run, "Save edit").shape == read_clip(demo_clip)[0].shape


def test_an_edit_follows_the_attention_of_the_source(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_attention_control")
    run = host.run(prompt, patience=PATIENCE)
    assert saved_frames(host, prompt, run, "Save edit").shape == read_clip(demo_clip)[0].shape


def test_a_reconstruction_is_judged_and_its_inversion_serves_an_edit(host: Host, tuned, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_reconstruction", **{"Stability.iterations": 1})
    run = host.run(prompt, patience=PATIENCE)
    assert "dB in the worst frame" in run.text(find_node(prompt, "Findings")).replace("\n", " ")
    assert "| step | sigma |" in run.text(find_node(prompt, "Stability table"))
    assert "| worst" in run.text(find_node(prompt, "Shift table"))
    assert all(host.files(run, find_node(prompt, f"{title} plot")) for title in ("Stability", "Shift"))
    prompt = load_workflow(host, "demo_saved_tune")
    prompt[find_node(prompt, "Invert")] |= {
        "class_type": "ConsistentVideo_LoadInversion",
        "inputs": {"inversion_name": "red_circle_00001_.safetensors"},
    }
    run = host.run(prompt, patience=PATIENCE)
    assert saved_frames(host, prompt, run, "Save edit tied").shape == read_clip(demo_clip)[0].shape


def test_prompt_tokens_are_learned_saved_and_serve_an_edit(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_prompt_tokens", **{"Tokens.advise_learning_rate": False})
    run = host.run(prompt, patience=PATIENCE)
    assert run.text(find_node(prompt, "Advice")) == "advise_learning_rate is off."
    edited, tokens = saved_frames(host, prompt, run, "Save edit"), find_node(prompt, "Tokens")
    prompt = {key: node for key, node in prompt.items() if [tokens, 1] not in node["inputs"].values()}
    prompt = {key: node for key, node in prompt.items() if node["_meta"]["title"] not in SAYS_OF_TOKENS}
    prompt[tokens] |= {
        "class_type": "ConsistentVideo_LoadPromptTokens",
        "inputs": {"prompt_tokens_name": "red_circle_00001_.safetensors"},
    }
    again = saved_frames(host, prompt, host.run(prompt, patience=PATIENCE), "Save edit")
    assert edited.shape == read_clip(demo_clip)[0].shape and again.equal(edited)


SAYS_OF_TOKENS = ("Advice", "Loss plot", "Save tokens")


def test_edits_are_judged_and_stand_side_by_side(host: Host, judged, demo_clip: Path) -> None:
    prompt, run = judged
    report = run.text(find_node(prompt, "Findings"))
    assert "| edit |" in report and "| do nothing |" in report and "variational optical flow" in report
    assert "Left out: CLIP-T, no CLIP model is connected or chosen" in report
    assert host.files(run, find_node(prompt, "Plot"))
    frames, source = saved_frames(host, prompt, run, "Save grid"), read_clip(demo_clip)[0]
    assert len(frames) == len(source) and frames.shape[-1] > 3 * source.shape[-1]
    assert frames.shape[-2] > 3 * source.shape[-2], "clips, differences and flows"
    (strip,) = host.files(run, find_node(prompt, "Strip"))
    assert Image.open(strip).width > DEMO_FRAMES * 160


@pytest.mark.parametrize(("steps", "words"), [(0, "smaller than min"), (1000, "bigger than max")])
def test_values_out_of_range_are_refused_before_anything_runs(host: Host, demo_clip: Path, steps, words) -> None:
    with pytest.raises(GraphError, match=words):
        host.run(load_workflow(host, "demo_edit", **{"Invert.steps": steps}), patience=PATIENCE)


def test_a_wrong_frame_count_is_told_with_both_numbers(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_custom_sampler", **{"Inflate.num_frames": 3})
    with pytest.raises(GraphError, match=f"{DEMO_FRAMES} frames.*num_frames = 3"):
        host.run(prompt, patience=PATIENCE)
