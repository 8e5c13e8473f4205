"""A real clip through a checkpoint: the SD1.5 workflows, and core nodes with ours."""

from pathlib import Path

import pytest

from consistent_video.demo.clips import save_video
from consistent_video.scripts.clips import fit_square, read_clip
from consistent_video.scripts.descriptions import CONTROL_NET
from consistent_video.scripts.host import Host
from consistent_video.scripts.judge import get_psnr
from consistent_video.scripts.workflow import find_node

from ..small import write_sd15_checkpoint, write_sd15_controlnet
from .graphs import PATIENCE, SD15, load_workflow, saved_frames

CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"


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


@pytest.mark.parametrize("name", SD15)
def test_the_sd15_workflows_run(host: Host, checkpoint: str, real_clip, name: str) -> None:
    small = {"Scale.width": 64, "Scale.height": 64, "First frames.length": 4}
    prompt = load_workflow(host, name, steps=2, **small, **SD15[name])
    model = find_node(prompt, "Model")
    prompt["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}, "_meta": {"title": "VAE"}}
    for node in prompt.values():  # the random checkpoint has no autoencoder
        node["inputs"] = {key: ["vae", 0] if value == [model, 2] else value for key, value in node["inputs"].items()}
    run = host.run(prompt, patience=PATIENCE)
    if any(node["_meta"]["title"] == "Save edit" for node in prompt.values()):
        assert saved_frames(host, prompt, run, "Save edit").shape == (4, 3, 64, 64)


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
    prompt = real_graph(checkpoint, side=96, frames=3, steps=8)
    run = host.run(prompt, patience=PATIENCE)
    clips = {
        name: saved_frames(host, prompt, run, f"Save {name}") for name in ("source", "reconstruction", "autoencoder")
    }
    assert {frames.shape for frames in clips.values()} == {(3, 3, 96, 96)}
    assert all(frames.isfinite().all() for frames in clips.values())
    psnr = {name: get_psnr(clips[name], clips["source"]) for name in ("reconstruction", "autoencoder")}
    assert psnr["autoencoder"] > 22
    assert psnr["reconstruction"] > psnr["autoencoder"] - 1
