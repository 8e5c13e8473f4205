"""Save, Load and Apply Tune."""

from comfy_api.latest import io

from ..modules.files.host import read_tune, tune_files, tune_stamp, write_tune
from ..modules.tuning.host.apply import apply_tune
from .types import MENU, PREFIX, Tune, part_input

CATEGORY = MENU + "tune"


class SaveTune(io.ComfyNode):
    """A tune becomes a file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "SaveTune",
            display_name="Save Tune",
            category=CATEGORY,
            description="Writes a tune as one safetensors file below models/consistent_video: only what was trained, "
            "and how. Copied to models/loras, Load LoRA reads its query projections too.",
            search_aliases=["save training", "export tune"],
            inputs=[
                Tune.Input("tune", tooltip="From One-Shot Tune."),
                io.String.Input(
                    "filename_prefix",
                    default="tune",
                    tooltip="Name of the file; a number is added. May name a subfolder: clips/swan.",
                ),
                io.Boolean.Input(
                    "with_state",
                    default=False,
                    optional=True,
                    tooltip="Save also what resuming the tuning needs. It adds three times the size of the "
                    "tune without its snapshots.",
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file lies.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, tune, filename_prefix, with_state=False) -> io.NodeOutput:
        path = str(write_tune(tune, filename_prefix, with_state))
        return io.NodeOutput(path, ui={"text": (path,)})


class LoadTune(io.ComfyNode):
    """A file becomes a tune."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "LoadTune",
            display_name="Load Tune",
            category=CATEGORY,
            description="Reads a tune that Save Tune wrote. A damaged file or one of another kind is refused.",
            search_aliases=["import tune"],
            inputs=[io.Combo.Input("tune_name", options=tune_files(), tooltip="File below models/consistent_video.")],
            outputs=[Tune.Output("tune", tooltip="For Apply Tune.")],
        )

    @classmethod
    def fingerprint_inputs(cls, tune_name):
        return tune_stamp(tune_name)

    @classmethod
    def execute(cls, tune_name) -> io.NodeOutput:
        return io.NodeOutput(read_tune(tune_name))


class ApplyTune(io.ComfyNode):
    """A model with a tune."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "ApplyTune",
            display_name="Apply Tune",
            category=CATEGORY,
            description="Gives a model the attention across frames, query projections and temporal modules of a tune. "
            "Works on any checkpoint of the structure the tune was made on, also one with LoRA; an image model is "
            "inflated on the way.",
            search_aliases=[
                "use tune",
                "load trained",
                "overfit",
                "over-tuning",
                "tune strength",
                "snapshot",
                "checkpoint",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Model of the structure the tune was made on, without that tune."),
                Tune.Input("tune", tooltip="From One-Shot Tune or Load Tune."),
                io.Float.Input(
                    "query_strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Factor of the tuned change of the query projections. Below 1 when the edit looks too much "
                    "like the source.",
                ),
                part_input("temporal_strength", 1.0, "Factor of what the temporal modules add. 0 leaves them out."),
                part_input(
                    "progress",
                    1.0,
                    "How far the tuning went, from the snapshots in the tune: 1 = its end, 0.5 = after half of "
                    "its steps, 0 = before. Between snapshots the weights are interpolated.",
                    optional=True,
                ),
            ],
            outputs=[io.Model.Output("clip_model", tooltip="The model with the tune. The input is unchanged.")],
        )

    @classmethod
    def execute(cls, model, tune, query_strength, temporal_strength, progress=1.0) -> io.NodeOutput:
        return io.NodeOutput(apply_tune(model, tune, query_strength, temporal_strength, progress))
