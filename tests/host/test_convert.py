"""Tune-A-Video's files in the host: exported, read by diffusers, imported again, refused."""

import json
import logging
import os
import shutil
from functools import partial
from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from safetensors.torch import load_file, save_file
from torch import Tensor

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import EI2, TUNE_A_VIDEO_PRESET, method
from consistent_video.modules.demo_model.host import load_demo_unet
from consistent_video.modules.files import host as files
from consistent_video.modules.tuning import tune_a_video as convert
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.host.tune_a_video import export_tune_a_video, import_tune_a_video, unet_weights
from consistent_video.modules.tuning.weights import Tune, load_tune, save_tune
from consistent_video.scripts.host import Host

from .small import (
    FRAMES,
    SD2_UNET,
    UNET,
    Small,
    SmallSD2,
    clip_latent,
    draw_noise,
    lively_weights,
    make_model,
    prompt,
    random_model,
    sample,
)

NAME = "clip/unet/diffusion_pytorch_model"
# As SD1.5's: depth 1, and none in the deepest level.
TAV_UNET = {**UNET, "transformer_depth": [1, 0], "transformer_depth_output": [1, 1, 0, 0]}
# Where the blocks are, in the host's names and in diffusers'; not from the host's table.
PLACES = {
    "input_blocks.1.1": "down_blocks.0.attentions.0",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.2.1": "up_blocks.1.attentions.0",
    "output_blocks.3.1": "up_blocks.1.attentions.1",
}
BLOCK = "diffusion_model.input_blocks.1.1.transformer_blocks.0"


def small_model(kind: type = Small, unet: dict = TAV_UNET, dtype: torch.dtype = torch.float32) -> ModelPatcher:
    return make_model(kind, unet, lively_weights, dtype)


def draw_tune(model: ModelPatcher, preset: str = TUNE_A_VIDEO_PRESET) -> Tune:
    """Return a tune with random weights that matter."""
    spatial, temporal = method(preset, 2, "area")
    bank = clip_settings(attach(inflate(model), spatial, temporal)).temporal
    shapes = {key: value.shape for key, value in bank.tensors().items()}
    for key, value in model.model.state_dict().items():
        if key.endswith("to_q.weight"):
            shapes[key.replace(".weight", ".diff")] = value.shape
    tensors = {key: 0.3 * value for key, value in lively_weights(shapes, torch.float32).items()}
    info = {"spatial": vars(spatial), "spatial_strength": 1.0, "temporal": vars(temporal), "temporal_strength": 1.0}
    return Tune(tensors, info)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tunes, empty and this test's own."""
    for name in (files.FOLDER, files.IMPORTS):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path)], files.EXTENSIONS[name]))
    return tmp_path


def write(weights: dict, folder: Path, ending: str = ".safetensors") -> str:
    """Write a file as Tune-A-Video does; returns its name in the folder."""
    path = folder / (NAME + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return NAME + ending


def export(model: ModelPatcher, tune: Tune, prefix: str = "swan") -> Path:
    with torch.inference_mode():
        return Path(export_tune_a_video(model, tune, prefix))


def read(model: ModelPatcher, name: str) -> tuple[Tune, str]:
    with torch.inference_mode():
        return import_tune_a_video(model, name)


def read_back(model: ModelPatcher, exported: Path, folder: Path) -> tuple[Tune, str]:
    return read(model, str((exported / "unet" / convert.FILE).relative_to(folder)))


def assert_close(tune: Tune, expected: Tune, **tolerance: float) -> None:
    assert tune.tensors.keys() == expected.tensors.keys()
    for key, value in expected.tensors.items():
        torch.testing.assert_close(tune.tensors[key], value, **tolerance)


@pytest.mark.parametrize(("kind", "unet"), [(Small, TAV_UNET), (SmallSD2, SD2_UNET)])
def test_what_is_exported_is_imported_again(folder, kind, unet) -> None:
    model = small_model(kind, unet)
    tune = draw_tune(model)
    again, report = read_back(model, export(model, tune), folder)
    assert_close(again, tune, rtol=0, atol=1e-6)
    for key in ("spatial", "spatial_strength", "temporal", "temporal_strength"):
        assert again.info[key] == tune.info[key]
    assert "frozen weights are those of the model" in report


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_exported_as_float16(folder, dtype) -> None:
    model = small_model(dtype=dtype)
    tune, held = draw_tune(model), model.model.state_dict()
    exported = export(model, tune)
    weights = load_file(exported / "unet" / convert.FILE)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    again, report = read_back(model, exported, folder)
    assert "frozen weights are those of the model" in report
    for key, value in tune.tensors.items():
        base = held[key.replace(".diff", ".weight")].float() if key.endswith(".diff") else 0.0
        torch.testing.assert_close(again.tensors[key], (base + value).half().float() - base, rtol=0, atol=0)


def test_the_demo_model_can_be_exported(folder) -> None:
    model = load_demo_unet()
    tune = draw_tune(model)
    assert_close(read_back(model, export(model, tune), folder)[0], tune, rtol=0, atol=1e-6)


def as_2d(config: dict) -> dict:
    """Return the configuration of the image UNet that Tune-A-Video inflates."""
    return json.loads(json.dumps(config).replace("Block3D", "Block2D").replace("UNet3D", "UNet2D"))


def is_temporal(key: str) -> bool:
    return ".attn_temp." in key or ".norm_temp." in key


@pytest.mark.parametrize(("kind", "unet"), [(Small, TAV_UNET), (SmallSD2, SD2_UNET)])
def test_diffusers_reads_what_is_exported(kind, unet) -> None:
    """Its UNet, made from the exported configuration, is frame by frame the host's with the query projections."""
    model = small_model(kind, unet)
    tune = draw_tune(model)
    folder = export(model, tune) / "unet"
    theirs = UNet2DConditionModel.from_config(as_2d(json.loads((folder / "config.json").read_text()))).eval()
    weights = load_file(folder / convert.FILE)
    theirs.load_state_dict({key: value for key, value in weights.items() if not is_temporal(key)}, strict=True)
    queries = {key.replace(".diff", ".weight"): ("diff", (value,)) for key, value in tune.tensors.items()}
    tuned = model.clone()
    assert len(tuned.add_patches(queries)) == 2 * len(transformer_blocks(model.model.diffusion_model))
    ours = [call_host(patcher, prompt(5, unet["context_dim"])) for patcher in (tuned, model)]
    x, context = draw_noise(clip_latent()), prompt(5, unet["context_dim"])[0][0].expand(FRAMES, -1, -1)
    with torch.no_grad():
        expected = theirs(x, 600, context).sample
    torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-3)
    assert (ours[1] - expected).std() > 0.05 * expected.std()


@torch.no_grad()
def call_host(patcher: ModelPatcher, given: list) -> Tensor:
    """Call the UNet of a model, each frame for itself, at timestep 600."""
    patcher.patch_model()
    try:
        x = draw_noise(clip_latent())
        unet, options = patcher.model.diffusion_model, patcher.model_options["transformer_options"]
        context = given[0][0].expand(FRAMES, -1, -1).to(patcher.load_device)
        timesteps = torch.full((FRAMES,), 600, device=patcher.load_device)
        return unet(x.to(patcher.load_device), timesteps, context, transformer_options=dict(options)).cpu()
    finally:
        patcher.unpatch_model()


def make_file(model: ModelPatcher) -> dict[str, Tensor]:
    """Return a UNet of Tune-A-Video by diffusers' own names: the model's, its queries changed and modules added."""
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=TAV_UNET["context_dim"],
    )
    table, weights = comfy.utils.unet_to_diffusers(TAV_UNET), unet_weights(model)
    unet.load_state_dict({theirs: weights[ours] for theirs, ours in table.items() if ours in weights}, strict=True)
    file, shapes = {key: value.clone() for key, value in unet.state_dict().items()}, {}
    for path, block in unet.named_modules():
        if isinstance(block, BasicTransformerBlock):
            dim = block.norm1.normalized_shape[0]
            shapes |= {f"{path}.attn_temp.{name}.weight": (dim, dim) for name in ("to_q", "to_k", "to_v", "to_out.0")}
            shapes[f"{path}.attn_temp.to_out.0.bias"] = (dim,)
            file |= {f"{path}.norm_temp.weight": torch.ones(dim), f"{path}.norm_temp.bias": torch.zeros(dim)}
            for number, name in enumerate(("attn1", "attn2")):
                file[f"{path}.{name}.to_q.weight"] += 0.1 * (number + 1)
    return file | lively_weights({key: torch.Size(shape) for key, shape in shapes.items()}, torch.float32)


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
    saved = files.write_tune(tune, "imported")
    loaded = files.read_tune(saved.name)
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


def lora_of(model: ModelPatcher) -> dict[str, Tensor]:
    key, generator = f"{BLOCK}.attn1.to_q", torch.Generator().manual_seed(10)
    return {
        f"{key}.lora_up.weight": torch.randn(32, 2, generator=generator),
        f"{key}.lora_down.weight": torch.randn(2, 32, generator=generator),
        f"{BLOCK}.attn2.to_k.diff": torch.randn(32, TAV_UNET["context_dim"], generator=generator),
    }


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


def test_lora_go_into_the_export() -> None:
    model, latent = small_model(), clip_latent()
    tune = draw_tune(model)
    with_lora = comfy.sd.load_lora_for_models(model, None, lora_of(model), 1.0, 0.0)[0]
    weights = load_file(export(with_lora, tune) / "unet" / convert.FILE)
    lora, held = lora_of(model), model.model.state_dict()
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    key = f"{BLOCK}.attn1.to_q"
    added = lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"]
    expected = held[f"{key}.weight"] + added + tune.tensors[f"{key}.diff"]
    torch.testing.assert_close(weights[f"{block}.attn1.to_q.weight"], expected, rtol=0, atol=1e-5)
    expected = held[f"{BLOCK}.attn2.to_k.weight"] + lora[f"{BLOCK}.attn2.to_k.diff"]
    torch.testing.assert_close(weights[f"{block}.attn2.to_k.weight"], expected, rtol=0, atol=1e-6)
    assert torch.equal(model.model.state_dict()[f"{key}.weight"], held[f"{key}.weight"])
    assert not torch.equal(sample(with_lora, latent), sample(model, latent))


def test_the_wrong_checkpoint_is_reported(folder, caplog) -> None:
    model = small_model()
    file = make_file(model)
    other = make_model(Small, TAV_UNET, another_checkpoint, torch.float32)
    with caplog.at_level(logging.WARNING):
        tune, report = read(other, write(file, folder))
    assert "another checkpoint" in report and "the first is" in report
    assert any("another checkpoint" in record.message for record in caplog.records)
    relative = float(report.split(" is ")[-1].split("%")[0].split()[-1])
    assert 4 < relative < 6
    apply_tune(other, tune)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read(model, NAME + ".safetensors")
    assert not caplog.records


def another_checkpoint(shapes: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights that are 5 % away from the usual ones."""
    weights, generator = lively_weights(shapes, dtype), torch.Generator().manual_seed(12)
    sizes = {key: value.square().mean().sqrt() for key, value in weights.items()}
    noise = {key: torch.randn(value.shape, generator=generator) for key, value in weights.items()}
    return {key: value + 0.05 * sizes[key] * noise[key] for key, value in weights.items()}


def test_a_file_for_another_structure_is_refused(folder) -> None:
    name = write(make_file(small_model()), folder)
    wide = small_model(unet={**TAV_UNET, "context_dim": 40})
    key = r"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    with pytest.raises(ValueError, match=rf"{name} does not fit .*{key} is \(32, 24\) .*and \(32, 40\) in the model"):
        read(wide, name)
    with pytest.raises(ValueError, match="is absent in the file and .* in the model. Load the checkpoint"):
        read(random_model(), name)


def test_a_model_that_cannot_be_inflated_is_refused(folder) -> None:
    name = write(make_file(small_model()), folder)
    inpainting = small_model(unet={**TAV_UNET, "in_channels": 9})
    with pytest.raises(ValueError, match="model takes 9 input channels"):
        read(inpainting, name)
    with pytest.raises(ValueError, match="model takes 9 input channels"):
        export(inpainting, draw_tune(small_model()))


def test_what_is_no_tune_a_video_is_refused(folder) -> None:
    model = small_model()
    image = {key: value for key, value in make_file(model).items() if not is_temporal(key)}
    with pytest.raises(ValueError, match=f"{NAME}.bin is no UNet of Tune-A-Video"):
        read(model, write(image, folder, ".bin"))
    saved = files.write_tune(draw_tune(model), "tune")
    with pytest.raises(ValueError, match="is no UNet of Tune-A-Video.*belongs into Load Tune"):
        read(model, saved.name)


class Malicious:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(folder, tmp_path_factory) -> None:
    mark = tmp_path_factory.mktemp("elsewhere") / "it ran"
    name = write({**make_file(small_model()), "extra": Malicious(mark)}, folder, ".bin")
    with pytest.raises(
        ValueError, match=f"{name} is damaged or holds more than weights, which could be code"
    ) as caught:
        read(small_model(), name)
    assert not mark.exists() and "weights_only" not in str(caught.value), "no advice to read it all the same"
    torch.load(folder / name, weights_only=False)
    assert mark.exists(), "it was malicious"


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"a text", bytes(200)])
def test_a_damaged_file_is_refused(folder, ending, content) -> None:
    path = folder / f"clip{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^clip{ending} is damaged"):
        read(small_model(), path.name)


def test_a_truncated_pickle_is_refused(folder) -> None:
    path = folder / write(make_file(small_model()), folder, ".bin")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=f"^{NAME}.bin is damaged"):
        read(small_model(), NAME + ".bin")


@pytest.mark.parametrize("content", [[1, 2], {"step": 5, "unet": {}}, {"unet": 3}, {"step": torch.tensor(5)}])
def test_a_file_that_holds_more_than_weights_is_refused(folder, content) -> None:
    torch.save(content, folder / "state.pt")
    with pytest.raises(ValueError, match=r"^state.pt (holds more than weights|is damaged or no file of weights)"):
        read(small_model(), "state.pt")


def test_only_tunes_of_tune_a_video_are_exported(folder) -> None:
    model = small_model()
    with pytest.raises(ValueError, match="fine-coarse .*instance centering .*spectral norm.*preset Tune-A-Video"):
        export(model, draw_tune(model, EI2))
    assert list(folder.iterdir()) == []


def test_models_that_do_not_fit_are_refused(folder) -> None:
    model, deep = small_model(), random_model()
    tune = draw_tune(model)
    with pytest.raises(ValueError, match=r"model cannot be exported: it has transformers of depths \[1, 2\] and"):
        export(deep, draw_tune(deep))
    with pytest.raises(ValueError, match="The tune does not fit this model"):
        export(deep, tune)
    with pytest.raises(ValueError, match="has this tune already"):
        export(apply_tune(model, tune), tune)
    quantised = small_model()
    quantised.model.diffusion_model.to(torch.float8_e4m3fn)
    for use in (partial(export, tune=tune), partial(read, name=write(make_file(model), folder))):
        with pytest.raises(ValueError, match="quantised weights"):
            use(quantised)
    assert not list(folder.glob("swan*"))


def test_exports_are_numbered_and_stay_in_the_folder(folder) -> None:
    model = small_model()
    tune = draw_tune(model)
    paths = [export(model, tune, prefix).relative_to(folder) for prefix in ("swan", "swan", "clips/swan")]
    assert [str(path) for path in paths] == ["swan_00001_", "swan_00002_", "clips/swan_00001_"]
    for prefix, message in (("../swan", "leads outside"), ("clips/", "names no file"), (str(folder.parent), "outside")):
        with pytest.raises(ValueError, match=message):
            export(model, tune, prefix)
    assert sorted(path.name for path in folder.iterdir()) == ["clips", "swan_00001_", "swan_00002_"]


def test_a_failed_export_leaves_nothing(folder, monkeypatch) -> None:
    def write_half(_weights, path, _metadata):
        Path(path).write_bytes(b"half of it")
        raise OSError("No space left on device")

    model = small_model()
    monkeypatch.setattr(convert, "save_file", write_half)
    with pytest.raises(OSError, match="swan_00001_ could not be written .*No space left"):
        export(model, draw_tune(model))
    assert list(folder.iterdir()) == []


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
    assert files.tune_files() == [os.path.join("clip", "unet", "a.safetensors")]
    assert files.import_files() == [os.path.join("clip", "unet", name) for name in names[:-1]]
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
