"""Named methods: what their papers use instead of self-attention and as temporal modules."""

from dataclasses import replace
from typing import Literal, cast, get_args

from .attention.fine_coarse import Downsample
from .attention.spatial import Kind, SpatialConfig
from .temporal import CONTROL_VIDEO, STAM, TUNE_A_VIDEO, Norm, TemporalConfig

EI2 = "EI²"
TUNE_A_VIDEO_PRESET = "Tune-A-Video"
CONTROL_VIDEO_PRESET = "ControlVideo"
FULL = "full attention"
PER_FRAME = "per frame"
PRESETS = (EI2, TUNE_A_VIDEO_PRESET, CONTROL_VIDEO_PRESET, FULL, PER_FRAME)
CUSTOM = "custom"

AS_PRESET = "as preset"
SPATIAL_KINDS = ("FFAM", "sparse-causal", "full", "key-frame", "first-frame", "middle-frame", "per frame")
KIND_OF = {"FFAM": "fine-coarse", "first-frame": "key-frame"}  # where an attention is named otherwise
TEMPORAL_KINDS = ("STAM", "Tune-A-Video", "ControlVideo", "none")
NORMS: tuple[str, ...] = get_args(Norm)
OF_PRESET = {
    EI2: ("FFAM", "STAM"),
    TUNE_A_VIDEO_PRESET: ("sparse-causal", "Tune-A-Video"),
    CONTROL_VIDEO_PRESET: ("key-frame", "ControlVideo"),
    FULL: ("full", "STAM"),
    PER_FRAME: ("per frame", "none"),
}

Part = Literal["all", "input", "middle", "output"]  # of the UNet
Method = tuple[SpatialConfig | None, TemporalConfig | None]


def spatial_attention(kind: str, r: int = 4, downsample: Downsample = "area") -> SpatialConfig | None:
    """Return a self-attention across frames by its name, one of SPATIAL_KINDS, with FFAM's r; None for "per frame"."""
    if kind not in SPATIAL_KINDS:
        raise ValueError(f"Unknown attention {kind!r}; known are {', '.join(SPATIAL_KINDS)}.")
    if kind == "per frame":
        return None
    settings = {"r": r, "downsample": downsample} if kind == "FFAM" else {}
    return SpatialConfig(cast(Kind, KIND_OF.get(kind, kind)), **settings)  # type: ignore[arg-type]


def temporal_module(kind: str, norm: str = AS_PRESET, spectral_norm: str = AS_PRESET) -> TemporalConfig | None:
    """Return a temporal module by its name, one of TEMPORAL_KINDS, with parts exchanged as in EI²'s Figure 4.

    Args:
        kind: its name.
        norm: one of NORMS to use instead of its own, or AS_PRESET.
        spectral_norm: "on", "off" or AS_PRESET. With it on, Tune-A-Video's output matrix starts random, for zero has no
            spectral norm to divide by.

    Raises:
        ValueError: unknown name, or parts of no module.
    """
    if kind == "none":
        if (norm, spectral_norm) != (AS_PRESET, AS_PRESET):
            raise ValueError(
                f"norm {norm!r} and spectral_norm {spectral_norm!r} belong to a temporal module and none is chosen. "
                f"Choose STAM, Tune-A-Video or ControlVideo as temporal, or set both to {AS_PRESET!r}."
            )
        return None
    known = {"STAM": STAM, "Tune-A-Video": TUNE_A_VIDEO, "ControlVideo": CONTROL_VIDEO}
    if kind not in known or norm not in (AS_PRESET, *NORMS) or spectral_norm not in (AS_PRESET, "on", "off"):
        raise ValueError(f"Unknown temporal module {kind!r} with norm {norm!r} and spectral norm {spectral_norm!r}.")
    config = known[kind]
    if norm != AS_PRESET:
        config = replace(config, norm=cast(Norm, norm))
    if spectral_norm != AS_PRESET:
        config = replace(config, spectral=spectral_norm == "on", zero_init=config.zero_init and spectral_norm == "off")
    return config


def method(
    name: str,
    r: int = 4,
    downsample: Downsample = "area",
    spatial: str = AS_PRESET,
    temporal: str = AS_PRESET,
    norm: str = AS_PRESET,
    spectral_norm: str = AS_PRESET,
) -> Method:
    """Return a method's spatial attention and temporal module, None where it keeps the base model's.

    Args:
        name: one of PRESETS. Full attention is EI² with every token of the other frames.
        r, downsample: of FFAM, see `spatial_attention`.
        spatial: one of SPATIAL_KINDS, to use instead of the preset's attention.
        temporal: one of TEMPORAL_KINDS, to use instead of the preset's temporal module.
        norm, spectral_norm: parts of the temporal module, see `temporal_module`.

    Raises:
        ValueError: unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; known are {', '.join(PRESETS)}.")
    of_preset = OF_PRESET[name]
    kinds = [own if given == AS_PRESET else given for given, own in zip((spatial, temporal), of_preset, strict=True)]
    return spatial_attention(kinds[0], r, downsample), temporal_module(kinds[1], norm, spectral_norm)


def name_of(spatial: SpatialConfig | None, temporal: TemporalConfig | None) -> str:
    """Return the name of the preset that a method is, or CUSTOM; r and downsampling do not count."""
    for name in PRESETS:
        own, module = method(name)
        if (own and own.kind, module) == (spatial and spatial.kind, temporal):
            return name
    return CUSTOM
