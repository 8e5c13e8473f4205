"""Import and export of Tune-A-Video's files."""

from comfy_api.latest import io

from ..modules.files.host import FOLDER, IMPORTS, list_files, stamp
from ..modules.tuning.host.tune_a_video import export_tune_a_video, import_tune_a_video
from .node import Node
from .types import MENU, PREFIX, Tune, prefix_input, saved_at, try_prefix

CATEGORY = MENU + "tune"


class ImportTuneAVideo(Node):
    """A UNet of Tune-A-Video becomes a tune."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "ImportTuneAVideo",
            display_name="Import Tune-A-Video",
            category=CATEGORY,
            description="Reads a UNet that the Tune-A-Video project (Wu et al., ICCV 2023) tuned, in diffusers' "
            "format, as a tune: what it changed in the query projections, and its temporal modules. Put the folder "
            "that its training wrote, or its folder unet, into models/consistent_video.",
            search_aliases=["diffusers", "convert", "load Tune-A-Video"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The checkpoint it was tuned from, inflated or not. LoRA on it do not count.",
                ),
                io.Combo.Input(
                    "file",
                    options=list_files(IMPORTS),
                    tooltip="File below models/consistent_video: my-clip/unet/diffusion_pytorch_model.bin or the like. "
                    "A pickle is read only if it holds nothing but weights.",
                ),
            ],
            outputs=[
                Tune.Output("tune", tooltip="For Apply Tune, or Save Tune."),
                io.String.Output("report", tooltip="What was found, and whether it was tuned from this checkpoint."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model, file):
        return stamp(IMPORTS, file)

    @classmethod
    def execute(cls, model, file) -> io.NodeOutput:
        tune, report = import_tune_a_video(model, file)
        return io.NodeOutput(tune, report)


class ExportTuneAVideo(Node):
    """A tune becomes a UNet of Tune-A-Video."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "ExportTuneAVideo",
            display_name="Export Tune-A-Video",
            category=CATEGORY,
            description="Writes a model with a tune as a whole UNet in diffusers' format, which the code of the "
            "Tune-A-Video project (Wu et al., ICCV 2023) reads. Only for tunes made with the preset Tune-A-Video: its "
            "code does not know EI²'s modules.",
            search_aliases=["diffusers", "convert", "save Tune-A-Video"],
            inputs=[
                io.Model.Input("model", tooltip="The model the tune was made on, without the tune. LoRA on it go in."),
                Tune.Input("tune", tooltip="Made with the preset Tune-A-Video: from One-Shot Tune or Load Tune."),
                prefix_input("tune_a_video", "folder below models/consistent_video"),
            ],
            outputs=[io.String.Output("path", tooltip="The folder, with unet/ in it.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix=None):
        return try_prefix(filename_prefix, FOLDER)

    @classmethod
    def execute(cls, model, tune, filename_prefix) -> io.NodeOutput:
        return saved_at(export_tune_a_video(model, tune, filename_prefix))
