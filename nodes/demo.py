"""Load Demo Model, Load Demo ControlNet and Load Demo Clip."""

from typing import get_args

from comfy_api.latest import InputImpl, io, ui

from ..modules.demo_model.host import CLIPS, list_demo_clips, load_demo_controlnet, load_demo_model, show_demo_clip
from ..modules.diffusion.path import PathKind
from .node import Node
from .types import MENU, PREFIX


class LoadDemoModel(Node):
    """The tiny model that comes with the pack."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "LoadDemoModel",
            display_name="Load Demo Model",
            category=MENU + "load",
            description="Loads the tiny text-to-image model that comes with the pack, to try every node without a "
            "download and without a GPU. It knows drawn objects (shape, colour, texture) on a few backgrounds in a few "
            "styles, 128 x 128 pixels. For real work use Load Checkpoint instead.",
            search_aliases=["tiny model", "example model", "test model"],
            inputs=[
                io.Combo.Input(
                    "prediction",
                    options=list(get_args(PathKind)),
                    default="noise",
                    optional=True,
                    advanced=True,
                    tooltip="What the model predicts. noise: as Stable Diffusion 1.x does. flow: the velocity of a "
                    "flow, as SD3, Flux, Qwen-Image and Z-Image do, to see how such a model is edited with. It is the "
                    "same model, converted. Temporal modules (set temporal_strength to 0), tuning, Attention Control "
                    "and the demo ControlNet do not apply to it.",
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="UNet of Stable Diffusion 1.x's shape with narrow channels."),
                io.Clip.Output("CLIP", tooltip="Text encoder for its prompts."),
                io.Vae.Output("VAE", tooltip="Autoencoder, 8 pixels to a latent, made for 128 x 128 frames."),
            ],
        )

    @classmethod
    def execute(cls, prediction: PathKind = "noise") -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model(prediction))


class LoadDemoControlNet(Node):
    """The ControlNet of the tiny model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "LoadDemoControlNet",
            display_name="Load Demo ControlNet",
            category=MENU + "load",
            description="Loads the ControlNet of the demo model. Give it the edges that Canny finds in the clip. "
            "For real work use Load ControlNet Model instead.",
            search_aliases=["canny", "tiny controlnet", "example controlnet"],
            outputs=[
                io.ControlNet.Output("CONTROL_NET", tooltip="For Apply ControlNet, with edges of 128 x 128 pixels."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_demo_controlnet())


class LoadDemoClip(Node):
    """The clips that come with the pack."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "LoadDemoClip",
            display_name="Load Demo Clip",
            category=MENU + "load",
            description="Loads one of the clips that come with the pack, to try the demo model without uploading "
            "anything. For a clip of your own put Load Video in its place; this model edits drawn shapes alone.",
            search_aliases=["example video", "sample clip", "test clip"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list_demo_clips(),
                    default="red_circle.mp4",
                    tooltip="Clip to load: 128 x 128 pixels, 8 frames per second, 8 to 24 frames. Another clip needs "
                    "another source prompt, which this node's help page lists. A clip of your own is loaded by "
                    "Load Video.",
                ),
            ],
            outputs=[io.Video.Output("video", tooltip="The clip, as Load Video gives it.")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        shown = ui.PreviewVideo([show_demo_clip(file)])
        return io.NodeOutput(InputImpl.VideoFromFile(str(CLIPS / file)), ui=shown)
