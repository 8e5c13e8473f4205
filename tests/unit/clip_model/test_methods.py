"""The named methods and what they are made of; the names are public."""

import pytest

from consistent_video.modules.clip_model.attention.fine_coarse import Downsample
from consistent_video.modules.clip_model.attention.spatial import SpatialConfig
from consistent_video.modules.clip_model.methods import (
    CUSTOM,
    NORMS,
    PRESETS,
    SPATIAL_KINDS,
    TEMPORAL_KINDS,
    method,
    name_of,
)
from consistent_video.modules.clip_model.temporal import CONTROL_VIDEO, STAM, TUNE_A_VIDEO, TemporalConfig

SPATIALS = {
    "FFAM": SpatialConfig("fine-coarse", 4, "area"),
    "sparse-causal": SpatialConfig("sparse-causal"),
    "full": SpatialConfig("full"),
    "key-frame": SpatialConfig("key-frame"),
    "first-frame": SpatialConfig("key-frame"),
    "middle-frame": SpatialConfig("middle-frame"),
    "per frame": None,
}
TEMPORALS = {"STAM": STAM, "Tune-A-Video": TUNE_A_VIDEO, "ControlVideo": CONTROL_VIDEO, "none": None}


def test_the_names_are_these() -> None:
    assert PRESETS == ("EI²", "Tune-A-Video", "ControlVideo", "full attention", "per frame")
    assert SPATIAL_KINDS == tuple(SPATIALS) and TEMPORAL_KINDS == tuple(TEMPORALS)
    assert NORMS == ("instance centering", "instance norm", "layer norm", "layer norm without affine", "none")


def test_ei2_is_fine_coarse_attention_and_a_shift_restricted_module() -> None:
    spatial, temporal = method("EI²", 2, "strided")
    assert spatial == SpatialConfig(kind="fine-coarse", r=2, downsample="strided")
    assert temporal == TemporalConfig(norm="instance centering", spectral=True, zero_init=False)


def test_tune_a_video_is_sparse_causal_attention_and_a_zero_initialised_module() -> None:
    spatial, temporal = method("Tune-A-Video", 2, "strided")
    assert spatial is not None and spatial.kind == "sparse-causal"
    assert temporal == TemporalConfig(norm="layer norm without affine", spectral=False, zero_init=True)


def test_controlvideo_attends_to_the_first_frame_and_its_module_follows_self_attention() -> None:
    spatial, temporal = method("ControlVideo")
    assert spatial == SpatialConfig("key-frame")
    assert temporal == TemporalConfig(norm="none", spectral=False, zero_init=False, follows="self-attention")
    assert temporal.noted()["follows"] == "self-attention" and "follows" not in STAM.noted()


def test_full_attention_is_ei2_with_every_token_of_the_other_frames() -> None:
    spatial, temporal = method("full attention", 2, "strided")
    assert spatial is not None and spatial.kind == "full"
    assert temporal == method("EI²")[1]


def test_per_frame_keeps_the_base_model() -> None:
    assert method("per frame", 4, "area") == (None, None)


@pytest.mark.parametrize("name", ["EI2", "", "tune-a-video"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError) as caught:
        method(name, 4, "area")
    assert repr(name) in str(caught.value) and all(known in str(caught.value) for known in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", SPATIAL_KINDS)
def test_the_attention_of_a_preset_can_be_exchanged(name: str, kind: str) -> None:
    assert method(name, spatial=kind) == (SPATIALS[kind], method(name)[1])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", TEMPORAL_KINDS)
def test_the_temporal_module_of_a_preset_can_be_exchanged(name: str, kind: str) -> None:
    assert method(name, temporal=kind) == (method(name)[0], TEMPORALS[kind])


def test_factor_and_downsampling_reach_an_exchanged_attention() -> None:
    assert method("Tune-A-Video", 2, "bilinear", spatial="FFAM")[0] == SpatialConfig("fine-coarse", 2, "bilinear")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("spectral", ["on", "off"])
def test_stam_takes_each_part_of_the_ablation(norm: str, spectral: str) -> None:
    for name in ("EI²", "full attention"):
        spatial, temporal = method(name, norm=norm, spectral_norm=spectral)
        assert temporal == TemporalConfig(norm=norm, spectral=spectral == "on", zero_init=False)
        assert spatial == method(name)[0]


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_alone_leaves_the_rest_of_a_module(norm: str) -> None:
    assert method("EI²", norm=norm)[1] == TemporalConfig(norm=norm, spectral=True, zero_init=False)
    assert method("Tune-A-Video", norm=norm)[1] == TemporalConfig(norm=norm, spectral=False, zero_init=True)


def test_spectral_norm_takes_the_place_of_a_zero_start() -> None:
    own = {"norm": "layer norm without affine"}
    assert method("Tune-A-Video", spectral_norm="on")[1] == TemporalConfig(**own, spectral=True, zero_init=False)
    assert method("Tune-A-Video", spectral_norm="off")[1] == TemporalConfig(**own, spectral=False, zero_init=True)
    assert method("EI²", spectral_norm="off")[1] == TemporalConfig(spectral=False, zero_init=False)


def test_parts_belong_to_an_exchanged_module() -> None:
    _, temporal = method("per frame", temporal="Tune-A-Video", norm="none", spectral_norm="on")
    assert temporal == TemporalConfig(norm="none", spectral=True, zero_init=False)


@pytest.mark.parametrize(
    "parts", [{"norm": "layer norm"}, {"spectral_norm": "on"}, {"norm": "none", "spectral_norm": "off"}]
)
@pytest.mark.parametrize("chosen", [{"name": "EI²", "temporal": "none"}, {"name": "per frame"}])
def test_parts_of_no_module_are_refused(chosen: dict[str, str], parts: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="none is chosen.*'as preset'") as caught:
        method(**chosen, **parts)
    assert all(repr(value) in str(caught.value) for value in parts.values())


@pytest.mark.parametrize("part", ["spatial", "temporal", "norm", "spectral_norm"])
def test_unknown_parts_are_refused_by_name(part: str) -> None:
    with pytest.raises(ValueError, match="Unknown.*'STEM'"):
        method("EI²", **{part: "STEM"})


@pytest.mark.parametrize("r", [1, 2, 5])
@pytest.mark.parametrize("downsample", ["area", "strided", "bilinear"])
def test_a_preset_is_recognised_at_any_factor_and_downsampling(r: int, downsample: Downsample) -> None:
    assert [name_of(*method(name, r, downsample)) for name in PRESETS] == list(PRESETS)


def test_a_preset_is_recognised_by_what_it_is_made_of() -> None:
    assert name_of(*method("per frame", spatial="FFAM", temporal="STAM")) == "EI²"
    assert name_of(*method("EI²", norm="instance centering", spectral_norm="on")) == "EI²"
    assert name_of(*method("Tune-A-Video", spatial="full", temporal="STAM")) == "full attention"


@pytest.mark.parametrize(
    "changed",
    [{"spatial": "sparse-causal"}, {"spatial": "per frame"}, {"temporal": "none"}, {"temporal": "Tune-A-Video"},
     {"norm": "none"}, {"norm": "instance norm"}, {"spectral_norm": "off"}],
)  # fmt: skip
def test_what_is_no_preset_is_custom(changed: dict[str, str]) -> None:
    assert name_of(*method("EI²", **changed)) == CUSTOM == "custom"
