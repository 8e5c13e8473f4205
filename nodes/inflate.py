"""Inflate UNet."""

from comfy_api.latest import io

from ..modules.clip_model.host.attach import inflate
from .node import Node
from .types import MENU, PREFIX


class InflateUNet(Node):
    """An image UNet becomes a clip UNet."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "InflateUNet",
            display_name="Inflate UNet",
            category=MENU + "model",
            description="Makes an image model treat the batch as the frames of a clip. Alone it changes no picture: "
            "frames share nothing until STAM/FFAM Patch or Apply Tune connects them.",
            search_aliases=["video unet", "pseudo 3D", "inflation", "EI2", "Tune-A-Video"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Model of the Stable Diffusion 1.x family, or SD3, Flux, Qwen-Image or Z-Image for "
                    "inversion, sampling and attention across frames; LoRA may be applied.",
                ),
                io.Int.Input(
                    "num_frames",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Frames of each clip. 0 = the whole batch is one clip. A smaller number splits the batch "
                    "into clips of that length that do not see each other, for ComfyUI's own samplers; tuning and "
                    "inversion take one clip.",
                ),
            ],
            outputs=[io.Model.Output("clip_model", tooltip="The model whose batch is a clip. The input is unchanged.")],
        )

    @classmethod
    def execute(cls, model, num_frames) -> io.NodeOutput:
        return io.NodeOutput(inflate(model, num_frames))
