"""Slice Denoiser."""

from typing import get_args

from comfy_api.latest import io

from ..modules.slices.host import SliceSettings, attach_slices
from ..modules.slices.slices import Axes, Blend
from .node import Node
from .types import ADVANCED, MENU, PREFIX, part_input


class SliceDenoiser(Node):
    """A clip's slices in space and time are pictures as well."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "SliceDenoiser",
            display_name="Slice Denoiser",
            category=MENU + "model",
            description="Blends what the model predicts of the frames with what it predicts of the clip's slices in "
            "space and time, which resemble pictures: time from top to bottom, a column of the frames from left to "
            "right. They hold the frames together. Slicedit (Cohen et al., ICML 2024). Connect the same model to the "
            "inversion, best by edit-friendly DDPM, and to Smooth Sample.",
            search_aliases=["Slicedit", "spatiotemporal slices", "y-t slices", "video consistency"],
            inputs=[
                io.Model.Input("model", tooltip="Clip model. Connect it after One-Shot Tune, which refuses slices."),
                io.Conditioning.Input("empty", tooltip="The empty prompt, encoded: what slices are predicted with."),
                part_input(
                    "weight",
                    0.2,
                    "Share of the slices in the prediction. Slicedit's code has 0.2. 0 = nothing is attached.",
                ),
                io.Combo.Input(
                    "axes",
                    options=list(get_args(Axes)),
                    default="y-t",
                    tooltip="Which slices. y-t: one for each column of the frames, as in Slicedit's code. x-t: one for "
                    "each row. Both: half and half, at twice the cost.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "blend",
                    options=list(get_args(Blend)),
                    default="mean",
                    tooltip="How frames and slices are blended. Mean: shares that sum to 1, for any inversion. Square "
                    "roots: of the shares, as in Slicedit's code, which makes noise larger than it is: for "
                    "edit-friendly DDPM alone.",
                    **ADVANCED,
                ),
            ],
            outputs=[io.Model.Output("clip_model", tooltip="The clip model that predicts by slices as well.")],
        )

    @classmethod
    def execute(cls, model, empty, **values) -> io.NodeOutput:
        return io.NodeOutput(attach_slices(model, empty, SliceSettings(**values)))
