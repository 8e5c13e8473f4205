"""Inversions on disk."""

import os
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from torch import Tensor

from consistent_video.modules.files.host import INVERSIONS, list_files
from consistent_video.modules.inversion.host.invert import INVERSION, inversion_of
from consistent_video.nodes.inversion import LoadInversion, SaveInversion

from ..edits import edit, invert, left_half, relation


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of inversions, empty."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, INVERSIONS, ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert torch.equal(found["samples"], expected["samples"])
    for key, value in vars(expected[INVERSION]).items():
        same = vars(found[INVERSION])[key]
        assert torch.equal(same, value) if isinstance(value, Tensor) else same == value


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"gamma": 0.6, "start": "every step", "noise": "Gaussian"},
        {"method": "edit-friendly DDPM", "seed": 3},
        {"method": "STEM", "bases": 5},
        {"solver": "midpoint"},
    ],
)
def test_a_saved_inversion_is_sampled_as_the_one_that_was_saved(model, latent, folder, how: dict) -> None:
    settings = {"relation": relation(), "mask": left_half(), "start_step": 1}
    with torch.inference_mode():
        inversion = invert(model, latent, **how)
        direct = edit(model, inversion, **settings)
        (path,) = SaveInversion.execute(inversion, "clips/swan").args
        assert path == str(folder / "clips" / "swan_00001_.safetensors")
        SaveInversion.execute(inversion, "swan")
        assert sorted(list_files(INVERSIONS)) == ["clips/swan_00001_.safetensors", "swan_00001_.safetensors"]
        before = LoadInversion.fingerprint_inputs("clips/swan_00001_.safetensors")
        loaded, sigmas = LoadInversion.execute("clips/swan_00001_.safetensors").args
        assert torch.equal(sigmas, inversion_of(inversion).sigmas)
        assert_same(loaded, inversion)
        assert torch.equal(edit(model, loaded, **settings), direct)
        os.utime(path, (1, 1))
    assert LoadInversion.fingerprint_inputs("clips/swan_00001_.safetensors") != before


def test_only_inversions_are_saved(latent, folder) -> None:
    with pytest.raises(ValueError, match="inversion is a latent that was not inverted"):
        SaveInversion.execute(latent, "swan")
    assert list(folder.iterdir()) == []
