"""Tunes as files: what they hold, who reads them, and the nodes that write them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, method
from consistent_video.modules.files import host as files
from consistent_video.modules.tuning.host import progress
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.host.private_copy import choose_precision
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.modules.tuning.weights import Tune, load_tune, save_tune
from consistent_video.nodes.shelves import TUNES
from consistent_video.nodes.tune import OneShotTune
from consistent_video.nodes.tune_files import LoadTune, SaveTune
from consistent_video.nodes.tuning_options import TuningOptionsNode, TuningPreviewNode

from ..small import EDIT, EMPTY, FRAMES, SOURCE, clip_latent, random_model, sample
from .tuned import SETTINGS, assert_same, assert_same_tuning, interrupt_after, lively_model, patched, run


def test_the_attention_part_loads_as_a_lora_file(latent, long, tmp_path) -> None:
    """Snapshots and state in the file are passed over."""
    tune, base = long, lively_model()
    save_tune(tune, tmp_path / "tune.safetensors", with_state=True)
    weights = comfy.utils.load_torch_file(str(tmp_path / "tune.safetensors"), safe_load=True)
    clip_model = attach(inflate(base), *method(EI2, 2, "area"), temporal_strength=0.0)
    by_lora = comfy.sd.load_lora_for_models(clip_model, None, weights, 1.0, 0.0)[0]
    assert torch.equal(sample(by_lora, latent), sample(apply_tune(base, tune, 1.0, 0.0), latent))


def test_a_saved_tune_is_the_same_tune(latent, tune, tmp_path) -> None:
    save_tune(tune, tmp_path / "tune.safetensors")
    loaded = apply_tune(random_model(), load_tune(tmp_path / "tune.safetensors"))
    assert torch.equal(sample(loaded, latent), sample(apply_tune(random_model(), tune), latent))


@pytest.mark.parametrize(
    ("part", "words"),
    [({"kind": "later"}, "kind is 'later', not one of"), ({"later": 1}, "has 'later'"), ({"r": 2.5}, "r is 2.5")],
)
def test_a_tune_with_an_unknown_part_is_refused_in_memory_and_as_a_file(tune, part, words, tmp_path) -> None:
    unknown = Tune(tune.tensors, {**tune.info, "spatial": part})
    with pytest.raises(ValueError, match=f"^The tune does not say how it was made: info.spatial.*{words}"):
        apply_tune(random_model(), unknown)
    save_tune(unknown, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"^a.safetensors does not say how it was made: info.spatial.*{words}"):
        load_tune(tmp_path / "a.safetensors")


def test_no_tune_is_overwritten(tune, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files.folder_paths, "get_folder_paths", lambda _: [str(tmp_path)])
    paths = [TUNES.write(tune, prefix) for prefix in ("swan", "swan", "clips/swan", "clips/swan", "a b")]
    assert len(set(paths)) == 5 and all(path.is_file() for path in paths)
    for prefix in ("", " ", "clips/", "clips\\", "./", "."):
        with pytest.raises(ValueError, match="names no file"):
            TUNES.write(tune, prefix)
    with pytest.raises(ValueError, match="leads outside"):
        TUNES.write(tune, "../swan")


def test_a_tune_says_how_it_was_made(long, tune) -> None:
    info = long.info
    assert json.loads(json.dumps(info)) == info
    assert {key: info[key] for key in ("preset", "steps", "learning_rate", "seed", "frames", "precision")} == {
        "preset": EI2, "steps": 6, "learning_rate": 1e-3, "seed": 11, "frames": FRAMES,
        "precision": choose_precision("auto", lively_model(), comfy.model_management.get_torch_device()),
    }  # fmt: skip
    assert (info["spatial"], info["spatial_strength"]) == (
        {"kind": "fine-coarse", "r": 2, "downsample": "area"}, 1.0
    )  # fmt: skip
    assert info["temporal"] == {"norm": "instance centering", "spectral": True, "zero_init": False}
    assert len(info["loss"]) == 6 and info["snapshots"] == [1, 2, 4] and "prompt" not in info
    assert info["clip_hash"] == tune.info["clip_hash"] and info["model_hash"] != tune.info["model_hash"]
    told = run(patched(PER_FRAME), SETTINGS.changed(steps=1), latent=clip_latent(seed=3), prompt="a swan").info
    assert (told["prompt"], told["preset"], told["spatial"], told["temporal"]) == ("a swan", PER_FRAME, None, None)
    assert told["clip_hash"] != info["clip_hash"] and told["model_hash"] == tune.info["model_hash"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of tunes, empty; One-Shot Tune is node 1."""
    monkeypatch.setattr(files.folder_paths, "get_folder_paths", lambda _: [str(tmp_path)])
    monkeypatch.setattr(files.folder_paths, "get_full_path_or_raise", lambda _, name: str(tmp_path / name))
    monkeypatch.setattr(OneShotTune, "hidden", SimpleNamespace(unique_id="1"))
    return tmp_path


@pytest.mark.parametrize("with_state", [False, True])
def test_the_nodes_save_and_load_the_state_where_it_is_wanted(folder, long, with_state: bool) -> None:
    (path,) = SaveTune.execute(long, "clips/swan", with_state).args
    assert path == str(folder / "clips" / "swan_00001_.safetensors")
    (loaded,) = LoadTune.execute("clips/swan_00001_.safetensors").args
    assert_same_tuning(loaded, long if with_state else replace(long, state={}))


def tune_by_node(**changes) -> list:
    """Run One-Shot Tune with the settings of LONG as a user gives them."""
    given = {"steps": 6, "learning_rate": 1e-3, "seed": 11, "snapshots": "1, 2, 4", "options": None, **changes}
    with torch.inference_mode():
        return OneShotTune.execute(patched(EI2, lively_model()), SOURCE, clip_latent(), **given).args


def test_the_node_tunes_with_options_and_preview(folder, long, latent, shown) -> None:
    (preview_settings,) = TuningPreviewNode.execute(EDIT, EMPTY, 3, 2, 5.0).args
    clip_model, tune, plot, report, losses = tune_by_node(preview=preview_settings, prompt_to_note="a swan")
    assert_same(tune.tensors, long.tensors)
    assert [frame is not None for *_, frame in shown] == [False, False, True, True, True, True]
    assert json.loads(report).items() >= {**long.info, "prompt": "a swan"}.items()
    assert losses["loss"].tolist() == pytest.approx(long.info["loss"]) and plot.ndim == 4
    assert torch.equal(sample(clip_model, latent), sample(apply_tune(lively_model(), long), latent))
    defaults = {widget.id: widget.default for widget in TuningOptionsNode.define_schema().inputs}
    (options,) = TuningOptionsNode.execute(**{**defaults, "weight_decay": 0.5, "frames_per_step": 2}).args
    assert TuningOptionsNode.execute(**defaults).args == (TuneSettings(),)
    fast = tune_by_node(options=options, steps=2, snapshots="", recipe="fast")[1]
    by_hand = tune_by_node(options=options, steps=2, snapshots="", learning_rate=5e-3)[1]
    assert (fast.info["weight_decay"], fast.info["frames_per_step"], fast.info["recipe"]) == (0.5, 2, "fast")
    assert fast.info["learning_rate"] == 1e-3, "as it was set"
    assert_same(fast.tensors, by_hand.tensors)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("on_interrupt", ["keep", "discard"])
def test_the_node_keeps_an_interrupted_tuning_where_it_is_wanted(folder, long, monkeypatch, on_interrupt: str) -> None:
    interrupt_after(2, monkeypatch)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tune_by_node(on_interrupt=on_interrupt)
    found = [path.name for path in folder.iterdir()]
    assert found == (["unfinished_00001_.safetensors"] if on_interrupt == "keep" else [])
    monkeypatch.setattr(progress, "throw_exception_if_processing_interrupted", lambda: None)
    if found:
        with torch.inference_mode():
            (unfinished,) = LoadTune.execute(found[0]).args
        assert_same(tune_by_node(resume=unfinished)[1].tensors, long.tensors)
