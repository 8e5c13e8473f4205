"""The pack's own socket types, what node ids and menu entries begin with, and an input that many nodes have."""

from comfy_api.latest import io

PREFIX = "ConsistentVideo_"
MENU = "Consistent Video/"

Tune = io.Custom("CONSISTENT_VIDEO_TUNE")
TuningOptions = io.Custom("CONSISTENT_VIDEO_TUNING_OPTIONS")
TuningPreview = io.Custom("CONSISTENT_VIDEO_TUNING_PREVIEW")
NoiseRelation = io.Custom("CONSISTENT_VIDEO_NOISE_RELATION")
Motion = io.Custom("CONSISTENT_VIDEO_MOTION")
PromptTokens = io.Custom("CONSISTENT_VIDEO_PROMPT_TOKENS")
LoraModel = io.Custom("LORA_MODEL")  # the host's
OpticalFlow = io.Custom("OPTICAL_FLOW")  # the host's


def part_input(name: str, default: float, tooltip: str, **options: bool) -> io.Input:
    """Return an input for a number from 0 to 1."""
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip, **options)
