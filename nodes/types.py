"""The pack's own socket types and what node ids and menu entries begin with."""

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
