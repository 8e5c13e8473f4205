"""Files of inversions: what is written is read again, and nothing else is."""

import errno
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from consistent_video.modules.files import tensor_file
from consistent_video.modules.inversion.file import FILE, load_inversion, save_inversion
from consistent_video.modules.inversion.inversion import Inversion, InversionSettings

TENSORS = tuple(FILE.tensors)
SETTINGS = InversionSettings(4, direction="forward", seed=2**53)
INFO = {"num_frames": 3, "model": "ab", "made": asdict(SETTINGS), "kind": "noise", "has_time": False}


def draw_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Tensors of their types, one of them not contiguous, and one that is asked for nowhere."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "samples": 80 * torch.randn(3, 4, 6, 5, generator=generator).transpose(2, 3),
        "sigmas": torch.tensor([14.6, 3.0, 0.7, 0.1, 0.0]),
        "noises": torch.randn(4, 3, 4, 5, 6, generator=generator).half(),
        "source": torch.randn(3, 4, 5, 6, generator=generator),
        "more": torch.zeros(2),
    }


def draw_inversion(seed: int = 0) -> Inversion:
    tensors = draw_tensors(seed)
    return Inversion(tensors["sigmas"], tensors["noises"], tensors["source"], tensors["samples"], SETTINGS, "ab")


def assert_same(found: Inversion, expected: Inversion) -> None:
    for key in ("sigmas", "noises", "source", "start"):
        one, other = getattr(found, key), getattr(expected, key)
        assert one.dtype == other.dtype and torch.equal(one, other), key
    assert (found.settings, found.model) == (expected.settings, expected.model)


def test_an_inversion_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "swan.safetensors"
    save_inversion(draw_inversion(), path)
    assert_same(load_inversion(path), draw_inversion())
    assert [file.name for file in tmp_path.iterdir()] == ["swan.safetensors"]


def test_what_was_made_in_inference_mode_is_written_too(tmp_path: Path) -> None:
    with torch.inference_mode():
        made = draw_inversion()
        save_inversion(replace(made, noises=made.noises + 0, source=made.source + 0), tmp_path / "a.safetensors")
    assert_same(load_inversion(tmp_path / "a.safetensors"), draw_inversion())


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    save_inversion(draw_inversion(), tmp_path / "swan.safetensors")
    with safe_open(tmp_path / "swan.safetensors", framework="pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
    assert (metadata["format"], metadata["format_version"]) == ("consistent_video_inversion", "1")
    assert json.loads(metadata["info"]) == INFO and keys == set(TENSORS)


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "swan.safetensors"
    for seed in (0, 1):
        save_inversion(draw_inversion(seed), path)
    assert_same(load_inversion(path), draw_inversion(1))


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "swan.safetensors"
    save_inversion(draw_inversion(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"swan\.safetensors is damaged .*Invert again"):
        load_inversion(path)


def write(path: Path, changes: dict[str, Tensor] | None = None, without: str = "", **metadata: str | None) -> None:
    """Write a file that differs from an inversion."""
    tensors = {
        key: value.contiguous() for key, value in {**draw_tensors(), **(changes or {})}.items() if key != without
    }
    whole = {"format": "consistent_video_inversion", "format_version": "1", "info": json.dumps(INFO), **metadata}
    save_file(tensors, path, {key: value for key, value in whole.items() if value is not None})


@pytest.mark.parametrize("kind", [None, "consistent_video_tune", "pt"])
def test_a_file_of_another_format_is_refused(kind: str | None, tmp_path: Path) -> None:
    write(tmp_path / "tune.safetensors", format=kind)
    with pytest.raises(ValueError, match=r"tune\.safetensors is not an inversion .*Save Inversion wrote"):
        load_inversion(tmp_path / "tune.safetensors")


@pytest.mark.parametrize("missing", TENSORS)
def test_a_file_without_one_of_the_tensors_is_refused(missing: str, tmp_path: Path) -> None:
    write(tmp_path / "half.safetensors", without=missing)
    with pytest.raises(ValueError, match=r"half\.safetensors is not an inversion"):
        load_inversion(tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    "metadata",
    [
        {"info": None},
        {"info": "{"},
        {"info": json.dumps({**INFO, "made": {"strides": 4}})},
        {"info": json.dumps({"made": INFO["made"]})},
        {"format_version": None},
        {"format_version": "one"},
    ],
)
def test_a_file_that_does_not_say_how_it_was_made_is_refused(metadata: dict, tmp_path: Path) -> None:
    write(tmp_path / "swan.safetensors", **metadata)
    with pytest.raises(ValueError, match=r"^swan\.safetensors does not say how it was made: .*Invert again"):
        load_inversion(tmp_path / "swan.safetensors")


@pytest.mark.parametrize("version", ["2", "10"])
def test_a_file_of_a_newer_version_is_refused(version: str, tmp_path: Path) -> None:
    write(tmp_path / "new.safetensors", format_version=version)
    with pytest.raises(ValueError, match=rf"new\.safetensors has inversion format {version}, .*up to 1\. Update"):
        load_inversion(tmp_path / "new.safetensors")


@pytest.mark.parametrize("key", TENSORS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_refused(key: str, value: float, tmp_path: Path) -> None:
    spoilt = draw_tensors()[key].contiguous()
    spoilt.view(-1)[2] = value
    write(tmp_path / "swan.safetensors", {key: spoilt})
    with pytest.raises(ValueError, match=r"swan\.safetensors holds values that are not finite"):
        load_inversion(tmp_path / "swan.safetensors")


def test_a_missing_file_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        load_inversion(tmp_path / "gone.safetensors")


FAILURES = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older one"])
def test_a_failed_save_leaves_no_half_and_keeps_the_older_file(
    failure: Exception, older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swan.safetensors"
    if older:
        save_inversion(draw_inversion(), path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def write_half(_tensors: dict, unfinished: Path, _metadata: dict) -> None:
        Path(unfinished).write_bytes(b"half of it")
        raise failure

    monkeypatch.setattr(tensor_file, "save_file", write_half)
    with pytest.raises(OSError) as caught:
        save_inversion(draw_inversion(1), path)
    said = str(caught.value)
    assert said.startswith("swan.safetensors could not be written") and f"Free up space in {tmp_path}" in said
    assert "No space left on device" in said and caught.value.__cause__ is failure
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("key", ["samples", "sigmas", "noises", "source"])
def test_tensors_that_do_not_fit_each_other_are_refused(key: str, tmp_path: Path) -> None:
    write(tmp_path / "swan.safetensors", {key: draw_tensors()[key][:2]})
    with pytest.raises(ValueError, match=r"^swan\.safetensors is (not|damaged).*(Save Inversion wrote|Invert again)\."):
        load_inversion(tmp_path / "swan.safetensors")


@pytest.mark.parametrize("sigmas", [[0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 2.0, 1.0, 0.0, -1.0]])
def test_noise_levels_that_do_not_fall_are_refused(sigmas: list[float], tmp_path: Path) -> None:
    write(tmp_path / "swan.safetensors", {"sigmas": torch.tensor(sigmas)})
    with pytest.raises(ValueError, match=r"^swan\.safetensors is damaged: .* do not fall\. Invert again"):
        load_inversion(tmp_path / "swan.safetensors")


@pytest.mark.parametrize(
    ("made", "words"),
    [({"steps": 2.5}, "steps is 2.5"), ({"gamma": 1e308}, "gamma is"), ({"method": "later"}, "method is"),
     ({"method": "edit-friendly DDPM", "refinements": 3}, "info.made is refused: refinements 3")],
)  # fmt: skip
def test_settings_outside_their_limits_are_refused(made: dict, words: str, tmp_path: Path) -> None:
    write(tmp_path / "swan.safetensors", info=json.dumps({**INFO, "made": {**INFO["made"], **made}}))
    with pytest.raises(ValueError, match=rf"^swan\.safetensors does not say how it was made: .*{words}.*Invert again"):
        load_inversion(tmp_path / "swan.safetensors")
