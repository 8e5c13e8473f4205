"""The named methods and what they are made of; the names are public."""

import pytest

from consistent_video.modules.attention.spatial import SpatialConfig
from consistent_video.modules.attention.temporal import TemporalConfig
from consistent_video.modules.presets import PRESETS, method


def test_the_names_are_these() -> None:
    assert PRESETS == ("EI²", "Tune-A-Video", "full attention", "per frame")


def test_ei2_is_fine_coarse_attention_and_a_shift_restricted_module() -> None:
    spatial, temporal = method("EI²", 2, "strided")
    assert spatial == SpatialConfig(kind="fine-coarse", r=2, downsample="strided")
    assert temporal == TemporalConfig(norm="instance centering", spectral=True, zero_init=False)


def test_tune_a_video_is_sparse_causal_attention_and_a_zero_initialised_module() -> None:
    spatial, temporal = method("Tune-A-Video", 2, "strided")
    assert spatial is not None and spatial.kind == "sparse-causal"
    assert temporal == TemporalConfig(norm="layer norm without affine", spectral=False, zero_init=True)


def test_per_frame_keeps_the_base_model() -> None:
    assert method("per frame", 4, "area") == (None, None)


@pytest.mark.parametrize("name", ["EI2", "", "tune-a-video"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        method(name, 4, "area")
    assert repr(name) in str(caught.value) and all(known in str(caught.value) for known in PRESETS)
