"""Files of tunes: what is written is read again, and nothing else is."""

import errno
import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from consistent_video.modules.files import tensor_file
from consistent_video.modules.tuning.weights import Tune, hash_tensors, load_tune, save_tune

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
        f"{block}.attn_temp.to_v.weight": torch.tensor([-0.0, 1e-40, 3e38, 3.1]),
    }
    info = {
        "frames": 8,
        "temporal": {"norm": "layer norm"},
        "prompt": "EI²",
        "loss": [0.1, 1 / 3, 2e-17],
        "seed": 2**53,
    }
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


@pytest.mark.parametrize("value", [torch.full((2,), torch.nan), torch.ones(2).to(torch.float8_e4m3fn)])
def test_a_tune_of_damaged_or_too_coarse_numbers_is_refused(value: torch.Tensor, tmp_path: Path) -> None:
    save_tune(Tune({"a.diff": value}, MADE), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"^clip.safetensors (stores a.diff in float8|holds .*not finite.* in a.diff)"):
        load_tune(tmp_path / "clip.safetensors")


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
    assert metadata["format"] == "consistent_video_tune" and metadata["format_version"] == "2"
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


@pytest.mark.parametrize("version", ["3", "10"])
def test_a_file_of_a_newer_version_is_refused(version: str, tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    metadata = {"format": "consistent_video_tune", "format_version": version, "info": "{}"}
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(ValueError, match=rf"new\.safetensors has tune format {version}, .*up to 2\. Update the node"):
        load_tune(path)


def test_a_file_from_before_the_first_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"format": "consistent_video_tune", "format_version": "1", "info": "{}"})
    with pytest.raises(ValueError, match=r"old\.safetensors has tune format 1, from before the first release"):
        load_tune(path)


def test_a_missing_file_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        load_tune(tmp_path / "gone.safetensors")


FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    PermissionError(errno.EACCES, "Permission denied"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older one"])
def test_a_failed_save_leaves_no_half_and_keeps_the_older_file(
    failure: Exception, older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.safetensors"
    if older:
        save_tune(make_tune(), path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def write_half(_tensors: dict, unfinished: Path, _metadata: dict) -> None:
        Path(unfinished).write_bytes(b"half of it")
        raise failure

    monkeypatch.setattr(tensor_file, "save_file", write_half)
    with pytest.raises(OSError) as caught:
        save_tune(Tune({}, {}), path)
    said = str(caught.value)
    assert said.startswith("clip.safetensors could not be written (") and f"Free up space in {tmp_path}, and" in said
    assert str(getattr(failure, "strerror", None) or failure) in said and caught.value.__cause__ is failure
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_save_over_what_cannot_be_replaced_leaves_no_half(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    path.mkdir()
    with pytest.raises(OSError, match="clip.safetensors could not be written"):
        save_tune(make_tune(), path)
    assert list(tmp_path.iterdir()) == [path]


def test_an_info_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_tune(Tune({"a": torch.zeros(1)}, {"path": tmp_path}), tmp_path / "clip.safetensors")
    assert list(tmp_path.iterdir()) == []


QUERY, VALUE = "diffusion_model.middle_block.1.attn1.to_q.diff", "diffusion_model.middle_block.1.attn_temp.to_v.weight"


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_long_tune() -> Tune:
    """A tune of 10 steps with snapshots before them and after 2 and 5, and a state of all that states have."""
    snapshots = {step: {QUERY: draw(3, 4, seed=step).half(), VALUE: draw(2, 5, seed=-step).half()} for step in (2, 5)}
    before = {VALUE: draw(2, 5, seed=7).half()}
    state = {
        "learned.queries.0.weight": draw(3, 4, seed=8),
        "optimizer.0.step": torch.tensor(10.0),
        "optimizer.1.count:number": torch.tensor(2**40),
        "generator": torch.Generator().manual_seed(5).get_state(),
        "losses": torch.linspace(1, 0.1, 10, dtype=torch.float64),
        "rises": torch.zeros(0, dtype=torch.int64),
    }
    info = MADE | {"loss": [1 - i / 11 for i in range(10)]}
    tensors = {QUERY: draw(3, 4, seed=9), VALUE: draw(2, 5, seed=10)}
    return Tune(tensors, info, {0: before, **snapshots}, state)


def assert_same(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype and torch.equal(tensors[key], value), key


@pytest.mark.parametrize("with_state", [False, True])
def test_snapshots_are_saved_and_the_state_where_it_is_wanted(with_state: bool, tmp_path: Path) -> None:
    tune, path = make_long_tune(), tmp_path / "clip.safetensors"
    save_tune(tune, path, with_state)
    read = load_tune(path)
    assert_same(read.tensors, tune.tensors)
    assert_same(read.state, tune.state if with_state else {})
    assert read.snapshots.keys() == {0, 2, 5}
    for step, snapshot in tune.snapshots.items():
        assert_same(read.snapshots[step], snapshot)


@pytest.mark.parametrize(
    ("snapshots", "words"),
    [
        ({11: {QUERY: draw(3, 4, seed=1)}}, "it has a snapshot after 11 steps, and 10 steps"),
        ({2: {"x": draw(3, 4, seed=1)}}, "its snapshot after 2 steps has x of the shape"),
        ({2: {QUERY: draw(4, 3, seed=1)}}, "its snapshot after 2 steps has .*to_q.diff of the shape .4, 3."),
    ],
)
def test_snapshots_that_are_not_of_the_tune_are_refused(snapshots: dict, words: str, tmp_path: Path) -> None:
    save_tune(replace(make_long_tune(), snapshots=snapshots), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=rf"^clip\.safetensors is damaged: {words}.* Save the tune again\."):
        load_tune(tmp_path / "clip.safetensors")


def test_the_end_of_a_tune_is_itself() -> None:
    tune = make_long_tune()
    assert tune.at(1) is tune and tune.at(1.0) is tune


@pytest.mark.parametrize("step", [2, 5])
def test_a_snapshot_is_met_exactly(step: int) -> None:
    tune = make_long_tune()
    met = tune.at(step / 10)
    assert_same(met.tensors, {key: value.float() for key, value in tune.snapshots[step].items()})
    assert met.info == tune.info and met.snapshots == met.state == {}


@pytest.mark.parametrize(
    ("progress", "before", "after", "weight"),
    [(0.1, 0, 2, 0.5), (0.05, 0, 2, 0.25), (0.3, 2, 5, 1 / 3), (0.49, 2, 5, 2.9 / 3), (0.8, 5, 10, 0.6)],
)
def test_between_snapshots_weights_are_interpolated(progress: float, before: int, after: int, weight: float) -> None:
    tune = make_long_tune()
    known = {**tune.snapshots, 10: tune.tensors}
    known[0] = {QUERY: torch.zeros(3, 4), **known[0]}
    expected = {
        key: (1 - weight) * known[before][key].double() + weight * known[after][key].double() for key in known[5]
    }
    found = tune.at(progress).tensors
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == torch.float32
        torch.testing.assert_close(found[key].double(), value, rtol=1e-5, atol=1e-6)


def test_the_beginning_of_a_tune_is_the_untuned_model() -> None:
    tune = make_long_tune()
    assert_same(tune.at(0).tensors, {QUERY: torch.zeros(3, 4), VALUE: tune.snapshots[0][VALUE].float()})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("progress", [0, 0.1, 0.8])
def test_a_tune_stored_in_another_type_is_dialled_as_in_float32(dtype: torch.dtype, progress: float) -> None:
    tune = make_long_tune()
    tensors = {key: value.to(dtype) for key, value in tune.tensors.items()}
    snapshots = {step: {key: value.to(dtype) for key, value in kept.items()} for step, kept in tune.snapshots.items()}

    def in_float32(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: value.float() for key, value in tensors.items()}

    same = {step: in_float32(kept) for step, kept in snapshots.items()}
    found = replace(tune, tensors=tensors, snapshots=snapshots).at(progress)
    assert_same(found.tensors, replace(tune, tensors=in_float32(tensors), snapshots=same).at(progress).tensors)


def test_a_tune_without_snapshots_is_known_at_its_end_alone() -> None:
    tune = replace(make_long_tune(), snapshots={})
    assert tune.at(1) is tune
    with pytest.raises(ValueError, match="no snapshots, .* not at 0.3 of its steps. Set snapshots in One-Shot Tune"):
        tune.at(0.3)


@pytest.mark.parametrize("progress", [-0.1, 1.5, float("nan")])
def test_a_progress_outside_the_steps_is_refused(progress: float) -> None:
    with pytest.raises(ValueError, match=f"progress is {progress:g}. Set it from 0"):
        make_long_tune().at(progress)


def test_a_hash_is_of_the_values_in_float32() -> None:
    tensors = [torch.tensor([[0.5, -3.0], [2.0**-8, 96.0]]), torch.tensor([1.5, 0.0])]
    packed = struct.pack("<6f", 0.5, -3.0, 2.0**-8, 96.0, 1.5, 0.0)
    assert hash_tensors(tensors) == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_hash_is_the_same_in_every_type_that_holds_the_values(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0.5, -3.0, 8.0], [2.0**-8, 96.0, 1.0]])
    assert hash_tensors([tensor.to(dtype)]) == hash_tensors([tensor])


def test_a_hash_does_not_see_how_a_tensor_lies_in_memory() -> None:
    tensor = draw(3, 4, seed=0)
    expected = hash_tensors([tensor])
    assert hash_tensors([tensor.T.contiguous().T]) == hash_tensors(iter([tensor.clone().requires_grad_()])) == expected
    assert hash_tensors([draw(6, 4, seed=0)[::2]]) != expected
    with torch.inference_mode():
        assert hash_tensors([tensor + 0]) == expected


def test_a_hash_changes_with_a_value() -> None:
    tensor = draw(3, 4, seed=0)
    changed = tensor.clone()
    changed[2, 3] = torch.nextafter(changed[2, 3], torch.tensor(9.0))
    assert len({hash_tensors(given) for given in ([tensor], [changed], [tensor.T], [tensor, changed])}) == 4


def test_a_tune_is_told_by_its_info(tmp_path: Path) -> None:
    tune = make_long_tune()
    save_tune(tune, tmp_path / "clip.safetensors")
    turned = replace(tune, info=dict(reversed(tune.info.items())))
    assert load_tune(tmp_path / "clip.safetensors").digest() == turned.digest() == tune.digest()
    others = [{"seed": 1}, {"loss": tune.info["loss"][:-1]}, {"spatial_strength": 0.5}]
    assert len({tune.digest(), *(replace(tune, info=tune.info | other).digest() for other in others)}) == 4
