"""The demo model in the host: it obeys its prompts, can be tuned, and stays as it is."""

import json
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
import numpy as np
import pytest
import torch
from comfy_extras.nodes_canny import Canny

from consistent_video.demo.clips import CLIPS
from consistent_video.demo.reader import ShapeReader, find_object, read_colour
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, method
from consistent_video.modules.demo_model.host import WEIGHTS, load_demo_controlnet, load_demo_model
from consistent_video.modules.inversion.host.invert import invert_clip
from consistent_video.modules.inversion.inversion import InversionSettings
from consistent_video.modules.sampling.host import SampleSettings, sample_clip
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.host.preview import find_previewer
from consistent_video.modules.tuning.host.progress import TuningProgress
from consistent_video.modules.tuning.host.training import tune_model
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.nodes.demo import LoadDemoClip
from consistent_video.scripts.clips import read_clip
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.judge import get_psnr

WANTED = [("blue", "square"), ("red", "circle"), ("green", "star"), ("yellow", "triangle")]


@pytest.fixture(scope="module")
def demo():
    return load_demo_model()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_preview_looks_like_the_clip(demo, monkeypatch, dtype: torch.dtype) -> None:
    model, _, vae = demo
    monkeypatch.setattr(comfy.model_management, "vae_dtype", lambda *_, **__: dtype)  # what GPUs choose is bfloat16
    frames = read_clip(CLIPS / "yellow_star.mp4")[0][:1]
    with torch.no_grad():
        latent = model.model.process_latent_in(vae.encode(frames.movedim(1, -1)))
        picture = find_previewer(model).decode_latent_to_preview(latent.to(model.load_device))
    shown = torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0)[None] / 255
    assert get_psnr(shown, frames) > 28


def encode(clip, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def draw(model, clip, text: str, seed: int, cfg: float = 7.5, **steered) -> torch.Tensor:
    """Sample one picture by the host's own DDIM; returns its latent.

    Args:
        steered: what the prompts hold beside their texts, such as a ControlNet.
    """
    empty = torch.zeros(1, 4, 16, 16)
    noise = comfy.sample.prepare_noise(empty, seed)
    return comfy.sample.sample(
        model,
        noise,
        20,
        cfg,
        "ddim",
        "ddim_uniform",
        *([[states, {**rest, **steered}] for states, rest in encode(clip, words)] for words in (text, "")),
        empty,
        disable_pbar=True,
        seed=seed,
    )


@torch.inference_mode()
def test_it_draws_what_the_prompt_says(demo) -> None:
    model, clip, vae = demo
    prompts = [f"a {colour} {shape} on a white background" for colour, shape in WANTED]
    pictures = torch.cat([vae.decode(draw(model, clip, text, 3)) for text in prompts]).movedim(-1, 1)
    assert read_colour(pictures) == [colour for colour, _ in WANTED]
    assert ShapeReader.load(WEIGHTS / "reader.safetensors").read(pictures) == [shape for _, shape in WANTED]


@torch.inference_mode()
def test_its_controlnet_puts_the_object_where_the_edges_are(demo) -> None:
    model, clip, vae = demo
    net = load_demo_controlnet()
    frames = read_clip(CLIPS / "yellow_star.mp4")[0][[0, -1]]
    edges = Canny.execute(frames.movedim(1, -1), 0.4, 0.8).args[0].movedim(-1, 1)
    wanted = find_object(frames)[0] > 0.5
    assert overlap(*wanted) < 0.5, "the star moves"
    for place, hint in zip(wanted, edges, strict=True):
        control = net.copy().set_cond_hint(hint[None], 1.0, (0.0, 1.0))
        latent = draw(model, clip, "a green star on a white background", 3, 3.0, control=control)
        picture = vae.decode(latent).movedim(-1, 1)
        assert read_colour(picture) == ["green"]
        assert overlap(find_object(picture)[0][0] > 0.5, place) > 0.7


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the intersection of two masks over their union."""
    return ((one & other).sum() / (one | other).sum()).item()


@torch.inference_mode()
def test_the_whole_edit_leaves_the_model_bit_for_bit(demo) -> None:
    model, clip, vae = demo
    before = draw(model, clip, "a pink heart on sand", 4)
    frames = read_clip(CLIPS / "red_circle.mp4", 4)[0]
    latent = {"samples": vae.encode(frames.movedim(1, -1))}
    source, empty = encode(clip, "a red circle on a white background"), encode(clip, "")
    clip_model = attach(inflate(model), *method(EI2, 4, "area"))
    tuned = apply_tune(
        clip_model,
        tune_model(
            clip_model, TuneInputs(source, latent), TuneSettings(4).changed(learning_rate=1e-4), TuningProgress("1")
        ),
    )
    smoothed = invert_clip(tuned, empty, empty, latent, InversionSettings(4))
    sample_clip(tuned, encode(clip, "a blue square on a white background"), empty, smoothed, SampleSettings())
    inversion = invert_clip(tuned, source, source, latent, InversionSettings(12, 0.0, "none"))
    back = vae.decode(sample_clip(tuned, source, empty, inversion, SampleSettings(1.0))[0]["samples"]).movedim(-1, 1)
    round_trip = vae.decode(latent["samples"]).movedim(-1, 1)
    assert get_psnr(back.clamp(0, 1), frames) > get_psnr(round_trip.clamp(0, 1), frames) - 2
    assert torch.equal(draw(model, clip, "a pink heart on sand", 4), before)


@pytest.mark.parametrize("path", sorted(CLIPS.glob("*.mp4")), ids=lambda path: path.stem)
def test_its_clips_are_loaded_shown_and_described(path: Path) -> None:
    loaded = LoadDemoClip.execute(path.name)
    expected, rate = read_clip(path)
    video = loaded.args[0].get_components()
    assert video.frame_rate == rate and video.images.shape[0] == len(expected)
    assert (video.images.movedim(-1, 1) - expected).abs().mean() < 0.01, "ComfyUI does not round to 8 bits"
    (shown,) = loaded.ui.as_dict()["images"]
    assert (Path(folder_paths.get_temp_directory()) / shown["filename"]).read_bytes() == path.read_bytes()
    told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    row = f"| `{path.name}` | {told['frames']} | {told['prompt']} | {told['edit']} |"
    for page in ("ConsistentVideo_LoadDemoClip.md", "ConsistentVideo_LoadDemoClip/zh.md"):
        assert row in (ROOT / "web" / "docs" / page).read_text(encoding="utf-8")
