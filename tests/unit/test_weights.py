"""Files of tunes: what is written is read again, and nothing else is."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from consistent_video.modules import weights
from consistent_video.modules.weights import Tune, load_tune, save_tune

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


MADE = {"spatial": None, "spatial_strength": 1.0, "temporal": None, "temporal_strength": 0.5}


def make_tune() -> Tune:
    """Tensors of several types, one of them not contiguous, and an info with all kinds of JSON."""
    generator = torch.Generator().manual_seed(0)
    block = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
    tensors = {
        f"{block}.attn1.to_q.diff": torch.randn(3, 5, generator=generator).T,
        f"{block}.attn2.to_q.diff": torch.randn(2, 4, generator=generator).half(),
        f"{block}.attn_temp.to_out.bias": torch.randn(7, generator=generator).bfloat16(),
        f"{block}.attn_temp.to_v.weight": torch.tensor([-0.0, 1e-40, float("inf"), 3.1]),
    }
    info = {"frames": 8, "temporal": {"norm": "EI² layer"}, "loss": [0.1, 1 / 3, 2e-17], "seed": 2**53}
    return Tune(tensors, MADE | info)


def test_a_tune_is_read_as_it_was_written(tmp_path: Path) -> None:
    tune, path = make_tune(), tmp_path / "clip.safetensors"
    save_tune(tune, path)
    read = load_tune(path)
    assert read.info == tune.info and read.tensors.keys() == tune.tensors.keys()
    for key, value in tune.tensors.items():
        assert read.tensors[key].dtype == value.dtype and read.tensors[key].shape == value.shape
        bits = torch.int32 if value.dtype == torch.float32 else torch.int16
        assert torch.equal(read.tensors[key].view(bits), value.contiguous().view(bits))
    assert [file.name for file in tmp_path.iterdir()] == ["clip.safetensors"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(info=st.dictionaries(st.text(max_size=6), values, max_size=4))
def test_any_info_is_read_as_it_was_written(info: dict, tmp_path: Path) -> None:
    save_tune(Tune({"a": torch.zeros(1)}, MADE | info), tmp_path / "clip.safetensors")
    assert load_tune(tmp_path / "clip.safetensors").info == MADE | info


@pytest.mark.parametrize("missing", list(MADE))
def test_a_file_that_does_not_say_how_it_was_made_is_refused(missing: str, tmp_path: Path) -> None:
    info = {key: value for key, value in MADE.items() if key != missing}
    save_tune(Tune({"a": torch.zeros(1)}, info), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="clip.safetensors does not say how it was made"):
        load_tune(tmp_path / "clip.safetensors")


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    save_tune(make_tune(), tmp_path / "clip.safetensors")
    with safe_open(tmp_path / "clip.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "consistent_video_tune" and metadata["format_version"] == "1"
    assert json.loads(metadata["info"])["frames"] == 8


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_tune(make_tune(), path)
    save_tune(Tune({"other": torch.ones(2)}, MADE | {"frames": 3}), path)
    assert list(load_tune(path).tensors) == ["other"] and load_tune(path).info == MADE | {"frames": 3}


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_tune(make_tune(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"clip\.safetensors is damaged .*Save the tune again"):
        load_tune(path)


@pytest.mark.parametrize("content", [b"a text, not tensors, and long enough for a header", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.safetensors is damaged or no safetensors file .*Save the tune again"):
        load_tune(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"ss_network_module": "lora"}])
def test_another_safetensors_file_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_up.weight": torch.zeros(2, 3)}, path, metadata)
    with pytest.raises(ValueError, match=r"lora\.safetensors is not a tune .*Save Tune wrote.*Load LoRA") as caught:
        load_tune(path)
    assert repr((metadata or {}).get("format")) in str(caught.value)


@pytest.mark.parametrize("version", ["2", "10"])
def test_a_file_of_a_newer_version_is_refused(version: str, tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    metadata = {"format": "consistent_video_tune", "format_version": version, "info": "{}"}
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(ValueError, match=rf"new\.safetensors has tune format {version}, .*up to 1\. Update the node"):
        load_tune(path)


def test_a_missing_file_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        load_tune(tmp_path / "gone.safetensors")


def write_half(_tensors: dict, path: Path, _metadata: dict) -> None:
    Path(path).write_bytes(b"half of it")
    raise OSError("No space left on device")


def test_a_failed_save_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "save_file", write_half)
    with pytest.raises(OSError, match="No space left"):
        save_tune(make_tune(), tmp_path / "clip.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.safetensors"
    save_tune(make_tune(), path)
    before = path.read_bytes()
    monkeypatch.setattr(weights, "save_file", write_half)
    with pytest.raises(OSError, match="No space left"):
        save_tune(Tune({}, {}), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_an_info_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_tune(Tune({"a": torch.zeros(1)}, {"path": tmp_path}), tmp_path / "clip.safetensors")
    assert list(tmp_path.iterdir()) == []
