"""Save, Load and Apply Tune."""

from comfy_api.latest import io

from ..modules.files.host import FOLDER, stamp
from ..modules.tuning.host.apply import apply_tune
from .node import Node
from .shelves import TUNES
from .types import MENU, PREFIX, Tune, file_input, part_input, prefix_input, saved_at, strength_input, try_prefix

CATEGORY = MENU + "tune"


class SaveTune(Node):
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
                prefix_input("tune"),
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
    def validate_inputs(cls, filename_prefix=None):
        return try_prefix(filename_prefix, FOLDER)

    @classmethod
    def execute(cls, tune, filename_prefix, with_state=False) -> io.NodeOutput:
        return saved_at(TUNES.write(tune, filename_prefix, with_state=with_state))


class LoadTune(Node):
    """A file becomes a tune."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "LoadTune",
            display_name="Load Tune",
            category=CATEGORY,
            description="Reads a tune that Save Tune wrote. A damaged file or one of another kind is refused.",
            search_aliases=["import tune"],
            inputs=[file_input("tune_name", FOLDER)],
            outputs=[Tune.Output("tune", tooltip="For Apply Tune.")],
        )

    @classmethod
    def fingerprint_inputs(cls, tune_name):
        return stamp(FOLDER, tune_name)

    @classmethod
    def execute(cls, tune_name) -> io.NodeOutput:
        return io.NodeOutput(TUNES.read(tune_name))


class ApplyTune(Node):
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
                strength_input(
                    "query_strength",
                    "Factor of the tuned change of the query projections. Below 1 when the edit looks too much "
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
