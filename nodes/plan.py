"""Fit Planner."""

from dataclasses import replace

from comfy_api.latest import io

from ..modules.files.strict_json import to_json
from ..modules.tuning.host.planner import GIB, free_memory, plan_tuning, report_plan
from ..modules.tuning.settings import TuneSettings
from .node import Node
from .tune import loss_inputs, read_losses
from .types import MENU, PREFIX, TuningOptions


class FitPlanner(Node):
    """What fits into the memory."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "FitPlanner",
            display_name="Fit Planner",
            category=MENU + "tune",
            description="Predicts how much memory tuning and sampling a clip take, and chooses chunking, "
            "checkpointing, r and frames per step so that the tuning fits. It counts, and computes nothing on the GPU.",
            is_experimental=True,  # its counts have not been compared with a graphics card
            search_aliases=["VRAM", "out of memory", "low VRAM", "how many frames fit"],
            inputs=[
                io.Model.Input("model", tooltip="Clip model, with the patch that is to be tuned."),
                io.Latent.Input("latent", tooltip="The clip, from VAE Encode."),
                io.Float.Input(
                    "budget_gib",
                    default=0.0,
                    min=0.0,
                    max=1024.0,
                    step=0.1,
                    tooltip="Memory that may be used, GiB. 0 = what is free where ComfyUI's own models are unloaded, "
                    "less what it reserves.",
                ),
                TuningOptions.Input(
                    "options", optional=True, tooltip="Options to begin with. Without them the defaults."
                ),
                *loss_inputs(),
            ],
            outputs=[
                TuningOptions.Output("planned", tooltip="The options that fit, for One-Shot Tune; with clip_model."),
                io.String.Output("report", tooltip="What was counted, as a table."),
                io.String.Output("data", tooltip="The same as JSON."),
                io.Model.Output(
                    "clip_model", tooltip="The model, with a larger r of STAM/FFAM Patch where that alone lets it fit."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, latent, budget_gib, options=None, **losses) -> io.NodeOutput:
        budget, options = round(budget_gib * GIB) or free_memory(), options or TuneSettings()
        settings = options.changed(**read_losses(**losses))
        model, planned, tried = plan_tuning(model, latent, settings, budget)
        report, data = report_plan(model, latent, tried, budget)
        return io.NodeOutput(replace(options, memory=planned.memory), report, to_json(data), model)
