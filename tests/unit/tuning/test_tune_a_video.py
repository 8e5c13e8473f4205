"""Tune-A-Video's files: names, what is imported and exported, what is refused."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from consistent_video.modules.clip_model.attention.spatial import SpatialConfig
from consistent_video.modules.clip_model.methods import CUSTOM, TUNE_A_VIDEO_PRESET
from consistent_video.modules.clip_model.temporal import STAM, TUNE_A_VIDEO
from consistent_video.modules.tuning import tune_a_video as convert
from consistent_video.modules.tuning.weights import Tune

PATHS = {"input_blocks.1.1.transformer_blocks.0": 6, "middle_block.1.transformer_blocks.0": 10}
BLOCKS = ("down_blocks.0.attentions.0.transformer_blocks.0", "mid_block.attentions.0.transformer_blocks.0")
CONTEXT = 7
TABLE = {
    **{
        f"{theirs}.{name}": f"{ours}.{name}"
        for ours, theirs in zip(PATHS, BLOCKS, strict=True)
        for name in ("attn1.to_q.weight", "attn1.to_k.weight", "attn2.to_q.weight", "attn2.to_k.weight", "norm1.weight")
    },
    "conv_in.weight": "input_blocks.0.0.weight",
    "up_blocks.9.upsamplers.0.conv.weight": "output_blocks.99.1.conv.weight",  # as the host's, names more than there is
}
SD15 = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "num_head_channels": -1,
}
SD21 = {**SD15, "num_heads": -1, "num_head_channels": 64, "context_dim": 1024, "use_linear_in_transformer": True}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def make_unet() -> dict[str, Tensor]:
    unet = {"input_blocks.0.0.weight": draw(6, 4, 3, 3)}
    for path, dim in PATHS.items():
        for name in ("attn1.to_q", "attn1.to_k", "attn2.to_q"):
            unet[f"{path}.{name}.weight"] = draw(dim, dim)
        unet |= {f"{path}.attn2.to_k.weight": draw(dim, CONTEXT), f"{path}.norm1.weight": draw(dim)}
    return unet


def make_file(unet: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a file by Tune-A-Video's own names: self-attention's queries changed by 1, cross-attention's by 2."""
    file = {theirs: unet[ours].clone() for theirs, ours in TABLE.items() if ours in unet}
    for block, dim in zip(BLOCKS, PATHS.values(), strict=True):
        file[f"{block}.attn1.to_q.weight"] += 1
        file[f"{block}.attn2.to_q.weight"] += 2
        for number, name in enumerate(("to_q", "to_k", "to_v", "to_out.0")):
            file[f"{block}.attn_temp.{name}.weight"] = number + draw(dim, dim)
        file[f"{block}.attn_temp.to_out.0.bias"] = draw(dim)
        file |= {f"{block}.norm_temp.weight": torch.ones(dim), f"{block}.norm_temp.bias": torch.zeros(dim)}
    return file


@pytest.fixture
def unet() -> dict[str, Tensor]:
    return make_unet()


@pytest.fixture
def file(unet) -> dict[str, Tensor]:
    return make_file(unet)


def import_file(file: dict[str, Tensor], unet: dict[str, Tensor]) -> Tune:
    names = convert.file_names(TABLE, unet)
    convert.check_file(file, names, convert.file_shapes(unet), "clip.bin")
    return convert.to_tune(file, unet, names, "eps", "clip.bin")


def test_a_file_becomes_a_tune(unet, file) -> None:
    tune = import_file(file, unet)
    expected = {}
    for path, block in zip(PATHS, BLOCKS, strict=True):
        expected[f"diffusion_model.{path}.attn1.to_q.diff"] = torch.ones_like(unet[f"{path}.attn1.to_q.weight"])
        expected[f"diffusion_model.{path}.attn2.to_q.diff"] = torch.full_like(unet[f"{path}.attn2.to_q.weight"], 2)
        for name in ("to_q", "to_k", "to_v"):
            expected[f"diffusion_model.{path}.attn_temp.{name}.weight"] = file[f"{block}.attn_temp.{name}.weight"]
        for name in ("weight", "bias"):
            expected[f"diffusion_model.{path}.attn_temp.to_out.{name}"] = file[f"{block}.attn_temp.to_out.0.{name}"]
    assert tune.tensors.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(tune.tensors[key], value, rtol=0, atol=1e-6)
        assert tune.tensors[key].data_ptr() not in {value.data_ptr() for value in file.values()}, "the file may go"
    assert tune.info.pop("weights_hash")
    assert tune.info == {
        "preset": TUNE_A_VIDEO_PRESET,
        "frames": 0,
        "spatial": asdict(SpatialConfig("sparse-causal")),
        "spatial_strength": 1.0,
        "temporal": TUNE_A_VIDEO.noted(),
        "temporal_strength": 1.0,
        "prediction": "eps",
        "imported_from": "clip.bin",
    }


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_norm_that_was_trained_is_kept(unet, file, name) -> None:
    key = f"{BLOCKS[1]}.norm_temp.{name}"
    file[key][3] += 0.5
    tune = import_file(file, unet)
    path = "diffusion_model.middle_block.1.transformer_blocks.0"
    assert torch.equal(tune.tensors[f"{path}.attn_temp.norm.{name}"], file[key])
    assert len([key for key in tune.tensors if ".norm." in key]) == 4
    assert tune.info["temporal"]["norm"] == "layer norm" and tune.info["preset"] == CUSTOM


def test_files_of_one_name_with_other_weights_are_other_tunes(unet, file) -> None:
    first = import_file(file, unet)
    file[f"{BLOCKS[0]}.attn1.to_q.weight"] += 1
    second = import_file(file, unet)
    assert first.digest() != second.digest()
    assert import_file(file, unet).digest() == second.digest()


def test_differences_are_float32_whatever_the_types(unet, file) -> None:
    base = {key: value.half() for key, value in unet.items()}
    tune = import_file({key: value.bfloat16() for key, value in file.items()}, base)
    assert {value.dtype for value in tune.tensors.values()} == {torch.float32}
    theirs, ours = f"{BLOCKS[0]}.attn2.to_q.weight", f"{next(iter(PATHS))}.attn2.to_q"
    expected = file[theirs].bfloat16().double() - base[f"{ours}.weight"].double()
    assert torch.equal(tune.tensors[f"diffusion_model.{ours}.diff"].double(), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop(f"{BLOCKS[0]}.norm1.weight"), r"norm1.weight is absent in the file and \(6,\) in the"),
        (lambda file: file.pop(f"{BLOCKS[1]}.attn_temp.to_out.0.bias"), r"0.bias is absent in the file and \(10,\) in"),
        (lambda file: file.update({"conv_in.weight": draw(6, 9, 3, 3)}), r"conv_in.weight is \(6, 9, 3, 3\) in the file"
         r" and \(6, 4, 3, 3\) in the model. Load the checkpoint"),
        (lambda file: file.update({"class_embedding.weight": draw(5, 2)}), r"class_embedding.weight is \(5, 2\) in the"
         " file and absent in the model"),
    ],
)  # fmt: skip
def test_a_file_of_another_structure_is_refused(unet, file, change, message) -> None:
    change(file)
    with pytest.raises(ValueError, match=f"^clip.bin does not fit this model: .*{message}"):
        import_file(file, unet)


def test_the_first_key_that_differs_is_named(unet, file) -> None:
    for key in file:
        file[key] = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"conv_in.weight is \(1, 2\) in the file and \(6, 4, 3, 3\) in the model"):
        import_file(file, unet)


@pytest.mark.parametrize("kind", ["image model", "tune", "empty"])
def test_what_is_no_tune_a_video_is_refused(unet, file, kind) -> None:
    given = {
        "image model": {key: value for key, value in file.items() if "_temp." not in key},
        "tune": import_file(file, unet).tensors,
        "empty": {},
    }[kind]
    with pytest.raises(ValueError, match=r"^clip.bin is not a UNet of Tune-A-Video: .*attn_temp.*Load Tune"):
        import_file(given, unet)


def test_a_weight_without_a_name_is_refused(unet) -> None:
    with pytest.raises(ValueError, match=r"weight out.9.weight, for which diffusers has no name"):
        convert.file_names(TABLE, [*unet, "out.9.weight"])


def compare(file: dict[str, Tensor], unet: dict[str, Tensor]) -> convert.Apart:
    return convert.compare_frozen(file, unet, convert.file_names(TABLE, unet))


@pytest.mark.parametrize("ours", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("theirs", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_no_difference(unet, file, ours, theirs) -> None:
    unet["input_blocks.0.0.weight"] *= 1e-7  # where float16 holds next to nothing
    file["conv_in.weight"] = unet["input_blocks.0.0.weight"].to(theirs)
    rounded = {key: value.to(theirs) for key, value in file.items()}
    apart = compare(rounded, {key: value.to(ours) for key, value in unet.items()})
    assert apart.keys == () and apart.relative < 0.01


def test_rounding_before_the_model_was_loaded_is_no_difference(unet, file) -> None:
    """The host holds a 16-bit checkpoint in float32 where it computes in it."""
    assert compare(file, {key: value.half().float() for key, value in unet.items()}).keys == ()


def test_frozen_weights_that_differ_are_found(unet, file) -> None:
    wrong = "middle_block.1.transformer_blocks.0.attn1.to_k.weight"
    file[f"{BLOCKS[1]}.attn1.to_k.weight"] *= 1.01
    apart = compare(file, unet)
    assert apart.keys == (wrong,)
    frozen = [value for key, value in unet.items() if not key.endswith("to_q.weight")]
    whole = sum(float(value.double().square().sum()) for value in frozen)
    changed = float((0.01 * unet[wrong].double()).square().sum())
    assert apart.relative == pytest.approx((changed / whole) ** 0.5, rel=1e-4)
    report = convert.describe_import(import_file(file, unet), apart)
    assert "4 query projections, 2 temporal modules" in report and wrong in report
    assert f"{apart.relative:.2%}" in report and "another checkpoint" in report


def test_a_weight_that_is_no_number_differs(unet, file) -> None:
    file["conv_in.weight"][0] = float("nan")
    assert compare(file, unet).keys == ("input_blocks.0.0.weight",)


def test_the_report_of_the_right_checkpoint(unet, file) -> None:
    apart = compare(file, unet)
    assert apart == convert.Apart((), 0.0)
    report = convert.describe_import(import_file(file, unet), apart)
    assert "frozen weights are those of the model" in report and "WARNING" not in report


def test_what_is_imported_is_exported_as_it_was(unet, file) -> None:
    tune, names = import_file(file, unet), convert.file_names(TABLE, unet)
    for key in unet:
        if key.endswith("to_q.weight"):
            unet[key] = unet[key] + tune.tensors[f"diffusion_model.{key.removesuffix('.weight')}.diff"]
    written = convert.to_file(tune, unet, names, torch.float32)
    assert written.keys() == file.keys()
    for key, value in file.items():
        torch.testing.assert_close(written[key], value, rtol=0, atol=1e-6)
    halved = convert.to_file(tune, unet, names, torch.float16)
    assert {value.dtype for value in halved.values()} == {torch.float16}


def test_a_trained_norm_is_exported(unet, file) -> None:
    file[f"{BLOCKS[0]}.norm_temp.bias"] += 0.5
    written = convert.to_file(import_file(file, unet), unet, convert.file_names(TABLE, unet), torch.float32)
    for key in (key for key in file if ".norm_temp." in key):
        assert torch.equal(written[key], file[key])


def test_what_float16_cannot_hold_is_refused(unet, file) -> None:
    tune, names = import_file(file, unet), convert.file_names(TABLE, unet)
    unet["input_blocks.0.0.weight"][0, 0, 0, 0] = 1e5
    convert.to_file(tune, unet, names, torch.float32)
    with pytest.raises(ValueError, match="conv_in.weight has values that float16 cannot hold"):
        convert.to_file(tune, unet, names, torch.float16)


MADE = {
    "spatial": asdict(SpatialConfig("sparse-causal")),
    "spatial_strength": 1.0,
    "temporal": asdict(TUNE_A_VIDEO),
    "temporal_strength": 1.0,
}


@pytest.mark.parametrize(
    "info",
    [MADE, {**MADE, "percents": [0.0, 1.0]}, {**MADE, "temporal": {**asdict(TUNE_A_VIDEO), "norm": "layer norm"}}],
)
def test_a_tune_of_tune_a_video_is_exportable(info) -> None:
    convert.check_exportable(info)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial": asdict(SpatialConfig())}, r"self-attention fine-coarse \(it has sparse-causal\)"),
        ({"spatial": None}, "self-attention per frame"),
        ({"temporal": None}, "without a temporal module"),
        ({"temporal": asdict(STAM)}, r"instance centering in a temporal module \(it has layer norm\), spectral norm"),
        ({"temporal": {**asdict(TUNE_A_VIDEO), "spectral": True}}, "does not know spectral norm. Tune"),
        ({"temporal": {**asdict(TUNE_A_VIDEO), "norm": "none"}}, r"none in a temporal module"),
        ({"spatial_strength": 0.5}, "strengths other than 1"),
        ({"temporal_strength": 0.5}, "strengths other than 1"),
        ({"percents": [0.0, 0.5]}, "parts of sampling"),
    ],
)
def test_another_tune_is_not_exportable(change, message) -> None:
    with pytest.raises(ValueError, match=rf"^The tune cannot be exported: .*{message}.*preset Tune-A-Video"):
        convert.check_exportable(MADE | change)


def test_the_configuration_is_that_of_stable_diffusion() -> None:
    """What differs from one checkpoint to another, as in the files of Stable Diffusion 1.4 and 2.1."""
    config = convert.file_config(SD15)
    assert config["block_out_channels"] == [320, 640, 1280, 1280] and config["layers_per_block"] == 2
    assert config["down_block_types"] == ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"]
    assert config["up_block_types"] == ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3
    assert config["attention_head_dim"] == 8 and config["cross_attention_dim"] == 768
    assert config["use_linear_projection"] is False and config["upcast_attention"] is False
    config = convert.file_config({**SD21, "attn_precision": torch.float32})
    assert config["attention_head_dim"] == [5, 10, 20, 20] and config["cross_attention_dim"] == 1024
    assert config["use_linear_projection"] is True and config["upcast_attention"] is True
    json.dumps(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 1]}, r"\[2, 2, 1\] residual blocks"),
        ({"num_res_blocks": [2, 2, 2, 1]}, r"\[2, 2, 2, 1\] residual blocks"),
        ({"transformer_depth_middle": 2}, "a transformer of depth 2 in the middle"),
        ({"transformer_depth": [1, 1, 1, 1, 1, 0, 0, 0]}, "transformers of depths"),
        ({"transformer_depth": [1, 1, 2, 2, 1, 1, 0, 0]}, "transformers of depths"),
        ({"transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1]}, "transformers of depths"),
        ({"num_classes": "sequential"}, "num_classes = sequential"),
        ({"disable_self_attentions": [True, False, False, False]}, "disable_self_attentions"),
    ],
)
def test_a_structure_that_tune_a_video_cannot_have_is_refused(change, message) -> None:
    with pytest.raises(ValueError, match=rf"^model cannot be exported: it has .*{message}.*Stable Diffusion 1.x"):
        convert.file_config(SD15 | change)


def test_a_unet_is_written_as_diffusers_lays_it_out(tmp_path: Path) -> None:
    weights = {"conv_in.weight": draw(2, 3), "conv_in.bias": draw(3)}
    convert.save_unet(weights, {"sample_size": 64}, tmp_path / "clip_00001_")
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"clip_00001_/unet/diffusion_pytorch_model.safetensors", "clip_00001_/unet/config.json"}
    assert json.loads((tmp_path / "clip_00001_" / "unet" / "config.json").read_text()) == {"sample_size": 64}
    with safe_open(tmp_path / "clip_00001_" / "unet" / convert.FILE, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # without which diffusers' and transformers' loaders refuse it
        assert torch.equal(file.get_tensor("conv_in.weight"), weights["conv_in.weight"])


def write_half(_weights: dict, path: Path, _metadata: dict) -> None:
    Path(path).write_bytes(b"half of it")
    raise OSError("No space left on device")


@pytest.mark.parametrize("where", ["save_file", "json", "os"])
def test_a_failed_export_leaves_nothing(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "save_file":
        monkeypatch.setattr(convert, "save_file", write_half)
    elif where == "os":
        monkeypatch.setattr(os, "replace", lambda held, _: write_half({}, held / "x", {}))
    config = {"sample_size": draw(2)} if where == "json" else {}
    with pytest.raises(TypeError if where == "json" else OSError, match="JSON|clip could not be written .*No space"):
        convert.save_unet({"a": draw(2)}, config, tmp_path / "clip")
    assert list(tmp_path.iterdir()) == []
