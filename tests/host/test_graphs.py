"""Whole graphs in the running ComfyUI: every workflow of the pack, and a real clip through core nodes and ours."""

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from consistent_video.demo.clips import save_video
from consistent_video.modules.tuning.weights import load_tune
from consistent_video.scripts.clips import fit_square, read_clip
from consistent_video.scripts.descriptions import CONTROL_NET, MAKE, describe_demo, workflows
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.graph import build
from consistent_video.scripts.host import GraphError, Host
from consistent_video.scripts.judge import get_psnr
from consistent_video.scripts.workflow import find_node, set_values, to_prompt

from .small import write_sd15_checkpoint, write_sd15_controlnet

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
PATIENCE = 900  # seconds; a loaded machine is many times slower
QUICK = {
    **{(title, "steps"): 3 for title in ("Tune", "Tokens", "Invert", "Invert to reconstruct")},
    ("Preview", "every"): 2,
    ("Preview", "preview_steps"): 2,
}


def load_workflow(host: Host, name: str, **values) -> dict:
    """Return the prompt of a workflow, of its demo twin for "demo_", with few steps and values by "Title.input"."""
    path, info = ROOT / "workflows" / f"{name}.json", host.object_info()
    if path.is_file():
        workflow = json.loads(path.read_text(encoding="utf-8"))
    else:
        workflow = build(describe_demo(name.removeprefix("demo_")), info)
    prompt = to_prompt(workflow, info)
    titles = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}
    quick = {(title, key): value for (title, key), value in QUICK.items() if key in titles.get(title, {})}
    return set_values(prompt, {**quick, **{tuple(key.split(".")): value for key, value in values.items()}})


def saved_frames(host: Host, prompt: dict, run, title: str):
    (file,) = host.files(run, find_node(prompt, title))
    return read_clip(file)[0]


@pytest.fixture(scope="module")
def demo_clip(host: Host) -> Path:
    return Path(shutil.copy(ROOT / "demo" / "clips" / "red_circle.mp4", host.base / "input"))


@pytest.fixture(scope="module")
def tuned(host: Host, demo_clip: Path):
    """EI²'s workflow, run; it saves the tune that another workflow loads."""
    prompt = load_workflow(host, "demo_ei2")
    return prompt, host.run(prompt, patience=PATIENCE)


@pytest.fixture(scope="module")
def checkpoint(host: Host, test_data: Path) -> str:
    folder = host.base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    write_sd15_checkpoint(folder / CHECKPOINT)
    nets = host.base / "models" / "controlnet"
    nets.mkdir(exist_ok=True)
    write_sd15_controlnet(nets / CONTROL_NET)
    return CHECKPOINT


@pytest.fixture(scope="module")
def real_clip(host: Host, test_data: Path):
    frames, rate = read_clip(test_data / "clips" / "car-turn.mp4", 6)
    save_video(host.base / "input" / "clip.mp4", fit_square(frames, 256), rate)
    return read_clip(host.base / "input" / "clip.mp4")[0]


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
    assert inversion["denoise"] < 1 and "16 x 16" in inversion["starts_there_because"]


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
    assert json.loads(run.text(find_node(prompt, "Inversion report")))["gamma"] == 0.5
    assert "smoothing" in json.loads(run.text(find_node(prompt, "Tune report")))
    assert saved_frames(host, prompt, run, "Save edit").shape == read_clip(demo_clip)[0].shape


def test_an_edit_through_comfyuis_own_sampler_runs(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_custom_sampler")
    run = host.run(prompt, patience=PATIENCE)
    assert saved_frames(host, prompt, run, "Save edit").shape == read_clip(demo_clip)[0].shape


@pytest.fixture(scope="module")
def judged(host: Host, tuned, demo_clip: Path):
    """Two edits with the saved tune, run."""
    prompt = load_workflow(host, "demo_saved_tune")
    return prompt, host.run(prompt, patience=PATIENCE)


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


def test_a_tune_cannot_be_saved_elsewhere(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_ei2", **{"Tune.steps": 1, "Save tune.filename_prefix": "../../outside"})
    keep = {find_node(prompt, title) for title in ("Invert", "Edit", "Reconstruction")}
    with pytest.raises(GraphError, match="leads outside"):
        host.run({key: node for key, node in prompt.items() if key not in keep and "Save" not in node["_meta"]["title"]
                  and not any(isinstance(v, list) and v[0] in keep for v in node["inputs"].values())
                  or node["_meta"]["title"] == "Save tune"}, patience=PATIENCE)  # fmt: skip


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


def test_a_clip_is_edited_in_windows(host: Host) -> None:
    clip = Path(shutil.copy(ROOT / "demo" / "clips" / "striped_cross.mp4", host.base / "input"))
    prompt = load_workflow(host, "demo_long_clip")
    run = host.run(prompt, patience=PATIENCE)
    edited = saved_frames(host, prompt, run, "Save edit")
    assert edited.shape == read_clip(clip)[0].shape and len(edited) == 24
    assert "Context window 2/2: frames 8-23 of 24" in host.log_text()


def test_edges_steer_an_edit(host: Host, demo_clip: Path) -> None:
    edits = []
    for strength in (0.6, 0.0):
        prompt = load_workflow(host, "demo_controlnet", **{"Steer.strength": strength})
        edits.append(saved_frames(host, prompt, host.run(prompt, patience=PATIENCE), "Save edit"))
    assert edits[0].shape == read_clip(demo_clip)[0].shape and not edits[0].equal(edits[1])


def test_an_edit_follows_a_motion_that_is_given(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_edit")
    plane = {"width": 128, "height": 128, "batch_size": 7}
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
    assert Image.open(strip).width > 8 * 160


SD15 = {  # in this order: the first save what the others load
    "edit": {},
    "ei2": {},
    "saved_tune": {},
    "attention_control": {},
    "reconstruction": {"Stability.iterations": 1},
    "tuning_settings": {"Tune.steps": 2, "Tune.snapshots": "", "Options.warmup_steps": 1, "Save tune.with_state": True}
    | {"Region.x": 8, "Region.y": 8}
    | {f"{title}.{side}": 64 for title in ("Nothing", "Rectangle") for side in ("width", "height")},
    "resume_tune": {"Load tune.tune_name": "clip_00002_.safetensors", "Tune.snapshots": ""},
    "tune_a_video": {},
    "import_tune_a_video": {},
    "prompt_tokens": {"Tokens.advise_learning_rate": False},
    "controlnet": {},
    "custom_sampler": {},
    "inr_smooth": {},
    "long_clip": {"Windows.context_length": 2, "Windows.context_overlap": 1},
}


@pytest.mark.parametrize("name", SD15)
def test_the_sd15_workflows_run(host: Host, checkpoint: str, real_clip, name: str) -> None:
    small = {"Scale.width": 64, "Scale.height": 64, "First frames.length": 4}
    prompt = load_workflow(host, name, **small, **SD15[name])
    model = find_node(prompt, "Model")
    prompt["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}, "_meta": {"title": "VAE"}}
    for node in prompt.values():  # the random checkpoint has no autoencoder
        node["inputs"] = {key: ["vae", 0] if value == [model, 2] else value for key, value in node["inputs"].items()}
    run = host.run(prompt, patience=PATIENCE)
    if any(node["_meta"]["title"] == "Save edit" for node in prompt.values()):
        assert saved_frames(host, prompt, run, "Save edit").shape == (4, 3, 64, 64)


def test_every_workflow_is_run_by_a_test() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert not {name for name in names if f'"{name}"' not in text} - SD15.keys()
    assert len(names) <= 16 and SD15.keys() == MAKE.keys()


def test_the_workflows_are_what_their_descriptions_say(host: Host) -> None:
    written = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "workflows").glob("*.json")}
    info = host.object_info()
    assert written == {name: build(groups, info) for name, groups in workflows().items()}, "run build_workflows.py"


def real_graph(checkpoint: str, side: int, frames: int, steps: int) -> dict:
    """Invert a clip and sample it back by core nodes and ours, in API form."""

    def node(kind: str, **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}

    def save(images: list, name: str) -> dict[str, dict]:
        video = node("CreateVideo", images=images, fps=10.0)
        h264 = {"codec": "h264", "codec.encoding": "re-encode", "codec.encoding.crf": 1, "format": "mp4"}
        saved = {**node("SaveVideo", video=[name, 0], filename_prefix=name, **h264), "_meta": {"title": f"Save {name}"}}
        return {name: video, f"save {name}": saved}

    ours = "ConsistentVideo_"
    return {
        "model": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "vae": node("VAELoader", vae_name="taesd"),
        "clip": node("LoadVideo", file="clip.mp4"),
        "frames": node("GetVideoComponents", video=["clip", 0]),
        "first": node("ImageFromBatch", image=["frames", 0], batch_index=0, length=frames),
        "scale": node("ImageScale", image=["first", 0], upscale_method="area", width=side, height=side, crop="center"),
        "latent": node("VAEEncode", pixels=["scale", 0], vae=["vae", 0]),
        "prompt": node("CLIPTextEncode", text="a jeep car is moving on the road", clip=["model", 1]),
        "inflate": node(ours + "InflateUNet", model=["model", 0], num_frames=frames),
        "patch": node(
            ours + "STAMFFAMPatch", model=["inflate", 0], preset="EI²", r=4, downsample="area",
            attention_strength=1.0, temporal_strength=1.0,
        ),
        "invert": node(
            ours + "INRBidirectionalDDIMInversion", model=["patch", 0], positive=["prompt", 0], latent=["latent", 0],
            steps=steps, denoise=0.0, gamma=0.0, direction="none", label="next",
        ),
        "sample": node(
            ours + "SmoothSample", model=["patch", 0], positive=["prompt", 0], negative=["prompt", 0],
            inversion=["invert", 0], cfg=1.0,
        ),
        "back": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "round trip": node("VAEDecode", samples=["latent", 0], vae=["vae", 0]),
        **save(["back", 0], "reconstruction"),
        **save(["round trip", 0], "autoencoder"),
        **save(["scale", 0], "source"),
    }  # fmt: skip


def test_a_real_clip_comes_back_through_a_checkpoint_and_taesd(host: Host, checkpoint: str, real_clip) -> None:
    prompt = real_graph(checkpoint, side=128, frames=4, steps=10)
    run = host.run(prompt, patience=PATIENCE)
    clips = {
        name: saved_frames(host, prompt, run, f"Save {name}") for name in ("source", "reconstruction", "autoencoder")
    }
    assert {frames.shape for frames in clips.values()} == {(4, 3, 128, 128)}
    assert all(frames.isfinite().all() for frames in clips.values())
    psnr = {name: get_psnr(clips[name], clips["source"]) for name in ("reconstruction", "autoencoder")}
    assert psnr["autoencoder"] > 22
    assert psnr["reconstruction"] > psnr["autoencoder"] - 1


@pytest.mark.parametrize(("steps", "words"), [(0, "smaller than min"), (1000, "bigger than max")])
def test_values_out_of_range_are_refused_before_anything_runs(host: Host, demo_clip: Path, steps, words) -> None:
    with pytest.raises(GraphError, match=words):
        host.run(load_workflow(host, "demo_edit", **{"Invert.steps": steps}), patience=PATIENCE)


def test_a_wrong_frame_count_is_told_with_both_numbers(host: Host, demo_clip: Path) -> None:
    prompt = load_workflow(host, "demo_custom_sampler", **{"Inflate.num_frames": 3})
    with pytest.raises(GraphError, match="8 frames.*num_frames = 3"):
        host.run(prompt, patience=PATIENCE)
