"""STAM/FFAM Patch."""

from comfy_api.latest import io

from ..modules.host.patch import attach
from ..modules.presets import EI2, PRESETS, method
from .types import MENU, PREFIX


class STAMFFAMPatch(io.ComfyNode):
    """Attention across the frames of a clip."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "STAMFFAMPatch",
            display_name="STAM/FFAM Patch",
            category=MENU + "model",
            description="Connects the frames of an inflated model: self-attention looks at the other frames, and a "
            "temporal module follows each block's feed-forward. EI² (Zhang et al., NeurIPS 2023) or its ancestor "
            "Tune-A-Video (Wu et al., ICCV 2023). The temporal module does next to nothing until One-Shot Tune has "
            "trained it; the attention works at once.",
            search_aliases=["EI2", "Tune-A-Video", "temporal attention", "frame attention", "video consistency"],
            inputs=[
                io.Model.Input("model", tooltip="Model from Inflate UNet."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=EI2,
                    tooltip="EI²: fine-coarse frame attention and shift-restricted temporal attention. Tune-A-Video: "
                    "attention to the first and the previous frame, plain temporal attention. Per frame: nothing is "
                    "attached.",
                ),
                io.Int.Input(
                    "r",
                    default=4,
                    min=1,
                    max=8,
                    tooltip="EI² only: each frame sees all its own tokens and those of the others at 1/r of width and "
                    "height. 1 = all of them (full attention: slow, much memory), 2 finer, 4 faster.",
                ),
                io.Combo.Input(
                    "downsample",
                    options=["area", "strided", "bilinear"],
                    default="area",
                    tooltip="EI² only: how the other frames' tokens are shrunk. Area averages r x r tokens.",
                    advanced=True,
                ),
                io.Float.Input(
                    "attention_strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Weight of the attention across frames against the model's own. 0 = the model's own.",
                ),
                io.Float.Input(
                    "temporal_strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Factor of what the temporal module adds. 0 = no temporal module.",
                ),
            ],
            outputs=[io.Model.Output("clip_model", tooltip="The clip model with connected frames.")],
        )

    @classmethod
    def execute(cls, model, preset, r, downsample, attention_strength, temporal_strength) -> io.NodeOutput:
        spatial, temporal = method(preset, r, downsample)
        return io.NodeOutput(attach(model, spatial, temporal, attention_strength, temporal_strength))
