"""Tune-A-Video's files imported as tunes."""

import os
import shutil
from pathlib import Path

import comfy.sd
import folder_paths
import pytest
import torch

from consistent_video.modules.clip_model.host.attach import inflate
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.demo_model.host import load_demo_unet
from consistent_video.modules.files import host as files
from consistent_video.modules.tuning import tune_a_video as convert
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.weights import load_tune, save_tune
from consistent_video.nodes.shelves import TUNES
from consistent_video.scripts.host import Host

from ...small import clip_latent, sample
from .exchange import (
    BLOCK,
    NAME,
    assert_close,
    draw_tune,
    export,
    lora_of,
    make_file,
    read,
    read_back,
    small_model,
    write,
)

# Where the blocks are, in the host's names and in diffusers'; not from the host's table.
PLACES = {
    "input_blocks.1.1": "down_blocks.0.attentions.0",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.2.1": "up_blocks.1.attentions.0",
    "output_blocks.3.1": "up_blocks.1.attentions.1",
}


@pytest.mark.parametrize("ending", [".bin", ".pt", ".pth", ".safetensors"])
def test_a_file_of_tune_a_video_becomes_a_tune(folder, ending) -> None:
    model = small_model()
    file = make_file(model)
    tune, report = read(inflate(model), write(file, folder, ending))
    assert "8 query projections, 4 temporal modules" in report and "WARNING" not in report
    for ours, theirs in PLACES.items():
        path, block = f"diffusion_model.{ours}.transformer_blocks.0", f"{theirs}.transformer_blocks.0"
        for name, change in (("attn1", 0.1), ("attn2", 0.2)):
            added = tune.tensors[f"{path}.{name}.to_q.diff"]
            torch.testing.assert_close(added, torch.full_like(added, change), rtol=0, atol=1e-6)
        for name in ("to_q", "to_k", "to_v"):
            assert torch.equal(
                tune.tensors[f"{path}.attn_temp.{name}.weight"], file[f"{block}.attn_temp.{name}.weight"]
            )
        for name in ("weight", "bias"):
            assert torch.equal(
                tune.tensors[f"{path}.attn_temp.to_out.{name}"], file[f"{block}.attn_temp.to_out.0.{name}"]
            )
    assert len(tune.tensors) == 4 * (2 + 5)
    assert tune.info["imported_from"] == NAME + ending and tune.info["prediction"] == "eps"


def test_an_imported_tune_is_applied_saved_and_loaded(folder) -> None:
    model, latent = small_model(), clip_latent()
    tune, _ = read(model, write(make_file(model), folder))
    tuned = apply_tune(model, tune)
    assert clip_settings(tuned).spatial.kind == "sparse-causal" and clip_settings(tuned).tuned_frames == 0
    saved = TUNES.write(tune, "imported")
    loaded = TUNES.read(saved.name)
    assert loaded.info == tune.info and loaded.digest() == tune.digest()
    drawn = sample(apply_tune(model, loaded), latent)
    assert torch.equal(drawn, sample(tuned, latent))
    without_modules = sample(apply_tune(model, tune, temporal_strength=0.0), latent)
    assert not torch.allclose(drawn, without_modules, rtol=1e-2) and drawn.isfinite().all()


def test_a_norm_that_was_trained_acts(folder) -> None:
    model, latent = small_model(), clip_latent()
    file = make_file(model)
    plain, _ = read(model, write(file, folder))
    for key in (key for key in file if ".norm_temp." in key):
        file[key] = file[key] + 0.3
    tune, report = read(model, write(file, folder))
    assert tune.info["temporal"]["norm"] == "layer norm" and "modules with layer norm." in report
    tuned = apply_tune(model, tune)
    assert not torch.allclose(sample(tuned, latent), sample(apply_tune(model, plain), latent), rtol=1e-2)
    again, _ = read_back(model, export(model, tune), folder)
    assert_close(again, tune, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loaded", [False, True])
def test_lora_do_not_count_for_the_import(folder, loaded) -> None:
    """Whether the host has put them into the weights or not."""
    model, latent = small_model(), clip_latent()
    name = write(make_file(model), folder)
    expected, report = read(model, name)
    with_lora = comfy.sd.load_lora_for_models(model, None, lora_of(model), 1.0, 0.0)[0]
    key = f"{BLOCK}.attn1.to_q.weight"
    before = model.model.state_dict()[key].cpu().clone()
    if loaded:
        sample(with_lora, latent)
        in_place = not torch.equal(model.model.state_dict()[key].cpu(), before)
        assert in_place or with_lora.is_dynamic()
    for model_given in (with_lora, model):
        tune, again = read(model_given, name)
        assert_close(tune, expected, rtol=0, atol=0)
        assert again == report


def test_the_folder_lists_each_kind_of_file_where_it_belongs(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    for name in (files.FOLDER, files.IMPORTS):
        monkeypatch.delitem(folder_paths.folder_names_and_paths, name)
    files.register_folder()
    unet = tmp_path / "consistent_video" / "clip" / "unet"
    unet.mkdir(parents=True)
    names = ["a.safetensors", "b.bin", "c.pt", "d.pth", "config.json"]
    for name in names:
        (unet / name).touch()
    assert files.list_files(files.FOLDER) == [os.path.join("clip", "unet", "a.safetensors")]
    assert files.list_files(files.IMPORTS) == [os.path.join("clip", "unet", name) for name in names[:-1]]
    assert folder_paths.folder_names_and_paths[files.FOLDER][1] == {".safetensors"}


def test_the_nodes(folder) -> None:
    from consistent_video.nodes.convert import ExportTuneAVideo, ImportTuneAVideo

    model = small_model()
    tune = draw_tune(model)
    exported = ExportTuneAVideo.execute(model, tune, "swan")
    assert exported.result == (str(folder / "swan_00001_"),) and exported.ui == {"text": exported.result}
    name = os.path.join("swan_00001_", "unet", convert.FILE)
    combo = ImportTuneAVideo.define_schema().inputs[1]
    assert combo.options == [name]
    again, report = ImportTuneAVideo.execute(model, name).result
    assert_close(again, tune, rtol=0, atol=1e-6)
    assert name in report
    before = ImportTuneAVideo.fingerprint_inputs(None, name)
    os.utime(folder / name, ns=(1, 1))
    assert ImportTuneAVideo.fingerprint_inputs(None, name) != before


def test_a_tune_goes_out_and_in_in_the_running_host(host: Host) -> None:
    """Two graphs with the demo model and a tune that was written here."""
    root = host.base / "models" / "consistent_video"
    folder = root / "convert"
    folder.mkdir(parents=True)
    tune = draw_tune(load_demo_unet())
    save_tune(tune, folder / "tune.safetensors")

    def node(name: str, **inputs) -> dict:
        return {"class_type": f"ConsistentVideo_{name}", "inputs": inputs}

    demo = node("LoadDemoModel")
    given = node("LoadTune", tune_name="convert/tune.safetensors")
    exports = node("ExportTuneAVideo", model=["demo", 0], tune=["tune", 0], filename_prefix="convert/tav")
    exported = Path(host.run({"demo": demo, "tune": given, "export": exports}).text("export"))
    assert exported == folder / "tav_00001_"
    name = str((exported / "unet" / convert.FILE).relative_to(root))
    imports = node("ImportTuneAVideo", model=["demo", 0], file=name)
    saves = node("SaveTune", tune=["import", 0], filename_prefix="convert/again", with_state=False)
    host.run({"demo": demo, "import": imports, "save": saves})
    assert_close(load_tune(folder / "again_00001_.safetensors"), tune, rtol=0, atol=1e-6)
    shutil.rmtree(folder)
