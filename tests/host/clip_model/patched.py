"""The small model with a frame attention."""

from comfy.model_patcher import ModelPatcher

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, FULL, TUNE_A_VIDEO_PRESET, method

CROSS_FRAME = (EI2, TUNE_A_VIDEO_PRESET, FULL)


def patched(model, name: str, **given) -> ModelPatcher:
    return attach(inflate(model), *method(name, 2, "area"), **given)
