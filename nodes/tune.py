"""One-Shot Tune, and Save, Load and Apply Tune."""

import json
import time

from comfy_api.latest import io

from ..modules.host.apply import apply_tune
from ..modules.host.files import read_tune, tune_files, tune_stamp, write_tune
from ..modules.host.training import tune_model
from ..modules.plot import plot_loss
from ..modules.tuning import TuneSettings
from .types import MENU, PREFIX, Tune

CATEGORY = MENU + "tune"


class OneShotTune(io.ComfyNode):
    """One-shot tuning on one clip."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "OneShotTune",
            display_name="One-Shot Tune",
            category=CATEGORY,
            description="Teaches the clip model this one clip under its source prompt, so that inversion and edit keep "
            "its motion. Trains the query projections of both attentions and the temporal modules, as EI² and "
            "Tune-A-Video do, on a private copy: the input model stays as it is. Connect Save Tune, or the result "
            "is gone with the program.",
            search_aliases=["train", "fine-tune", "Tune-A-Video", "EI2", "overfit clip"],
            inputs=[
                io.Model.Input("model", tooltip="Model from Inflate UNet and STAM/FFAM Patch."),
                io.Conditioning.Input("positive", tooltip="Source prompt: says what the clip shows."),
                io.Latent.Input("latent", tooltip="The clip: all frames in one batch, from VAE Encode."),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=100000,
                    tooltip="Optimiser steps. 500 in EI². More keep the source better and follow the edit less.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=3e-5,
                    min=1e-7,
                    max=1e-2,
                    step=1e-7,
                    round=False,
                    tooltip="Of AdamW. 3e-5 suits Stable Diffusion; the demo model is small and wants 1e-4.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Of the noise and noise levels trained on. Same seed, same result on the same machine; on "
                    "a GPU to the last bit only if ComfyUI was started with --deterministic.",
                ),
            ],
            outputs=[
                io.Model.Output("clip_model", tooltip="The input model with the tune applied."),
                Tune.Output(
                    "tune",
                    tooltip="What was learned, for Save Tune or Apply Tune: the change to the model given here.",
                ),
                io.Image.Output("loss_plot", tooltip="Loss of each step and its running mean."),
                io.String.Output("report", tooltip="Settings, losses and seconds as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, positive, latent, steps, learning_rate, seed) -> io.NodeOutput:
        start = time.monotonic()
        settings = TuneSettings(steps, learning_rate, seed)
        tune = tune_model(model, positive, latent, settings, cls.hidden.unique_id)
        report = {**tune.info, "seconds": round(time.monotonic() - start, 2)}
        return io.NodeOutput(
            apply_tune(model, tune), tune, plot_loss(tune.info["loss"]), json.dumps(report, ensure_ascii=False)
        )


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
            ],
            outputs=[io.String.Output("path", tooltip="Where the file lies.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, tune, filename_prefix) -> io.NodeOutput:
        path = str(write_tune(tune, filename_prefix))
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
            search_aliases=["use tune", "load trained"],
            inputs=[
                io.Model.Input("model", tooltip="Model of the structure the tune was made on."),
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
                io.Float.Input(
                    "temporal_strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Factor of what the temporal modules add. 0 leaves them out.",
                ),
            ],
            outputs=[io.Model.Output("clip_model", tooltip="The model with the tune. The input is unchanged.")],
        )

    @classmethod
    def execute(cls, model, tune, query_strength, temporal_strength) -> io.NodeOutput:
        return io.NodeOutput(apply_tune(model, tune, query_strength, temporal_strength))
