"""One-Shot Tune."""

import time
from collections.abc import Callable
from typing import Any, get_args

import torch
from comfy_api.latest import io

from ..modules.clip_model.methods import Part
from ..modules.files.host import Shelf
from ..modules.files.strict_json import to_json
from ..modules.judging.plot import plot_loss
from ..modules.tuning.host.apply import apply_tune
from ..modules.tuning.host.autosave import Autosave
from ..modules.tuning.host.progress import TuningProgress
from ..modules.tuning.host.training import tune_model
from ..modules.tuning.host.tune_inputs import TuneInputs
from ..modules.tuning.losses.smoothing import OWN_WEIGHTS, Smoothing
from ..modules.tuning.settings import FACTOR, LENGTH, MOST_STEPS, Recipe, TuneSettings, read_steps
from .node import Node
from .shelves import TUNES
from .types import ADVANCED, MENU, PREFIX, Tune, TuningOptions, TuningPreview, seed_input, try_values

CATEGORY = MENU + "tune"
SNAPSHOTS = "25%, 50%, 75%"
USUAL_STEPS = round(LENGTH * TuneSettings.steps)  # by recipe fast


def keep_unfinished(shelf: Shelf, **how: bool) -> Callable[[Any], str]:
    """Return what saves a tuning that did not come to its end, and says where."""
    return lambda learned: shelf.write(learned, "unfinished", **how).name


def loss_inputs() -> list[io.Input]:
    """Return the inputs of all losses, named as their settings but for `consistency_blocks`."""
    return [
        io.Combo.Input(
            "smoothing",
            options=list(get_args(Smoothing)),
            default="none",
            optional=True,
            tooltip="Loss added that ties neighbouring frames to each other. INR (INR Smooth, PLoS One 2025): "
            "what UNet and noise differ by is to be equal in neighbours. SmoothVideo: the predicted noise is "
            "to change evenly, but for how the noisy frames change, as its code does by default; simple without "
            "that. It also takes texture away.",
        ),
        io.Float.Input(
            "smoothing_weight",
            default=-1.0,
            min=-1.0,
            max=100.0,
            step=0.01,
            optional=True,
            tooltip="Weight lambda of the smoothing loss against the diffusion loss. -1 = its paper's: 2 for INR, on "
            "Tune-A-Video (0.2 on ControlVideo); 0.2 for SmoothVideo.",
        ),
        *consistency_inputs(),
    ]


def read_losses(
    smoothing: Smoothing = "none", smoothing_weight: float = -1.0, consistency_blocks: Part = "middle", **others: Any
) -> dict[str, Any]:
    """Return what `loss_inputs` were set to by the names of the settings; a weight of its paper's as the number."""
    weight = OWN_WEIGHTS.get(smoothing) if smoothing_weight < 0 else smoothing_weight
    return {"smoothing": smoothing, "smoothing_weight": weight, "consistency_part": consistency_blocks, **others}


def consistency_inputs() -> list[io.Input]:
    """Return the inputs of the temporal consistency loss."""
    return [
        io.Float.Input(
            "consistency_weight",
            default=0.0,
            min=0.0,
            max=1000000.0,
            step=0.01,
            **ADVANCED,
            tooltip="Weight of the temporal consistency loss against the diffusion loss: the similarity of "
            "neighbouring frames is to change evenly. Its values are small, about 1e-4 beside a diffusion "
            "loss of 1e-2: try 1 to 100. 0 = none.",
        ),
        io.Combo.Input(
            "consistency_blocks",
            options=list(get_args(Part)),
            default="middle",
            **ADVANCED,
            tooltip="Whose self-attention features the temporal consistency loss compares: those of the whole UNet, or "
            "of its encoder blocks (input), its middle block or its decoder blocks (output).",
        ),
    ]


class OneShotTune(Node):
    """One-shot tuning on one clip."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "OneShotTune",
            display_name="One-Shot Tune",
            category=CATEGORY,
            description="Teaches the clip model this one clip under its source prompt, so that inversion and edit keep "
            "its motion. Trains the query projections of both attentions and the temporal modules, as EI² and "
            "Tune-A-Video do, or what ControlVideo does, on a private copy: the input model stays as it is. Connect "
            "Save Tune, or the result is lost when ComfyUI closes.",
            search_aliases=["train", "fine-tune", "Tune-A-Video", "EI2", "ControlVideo", "overfit clip"],
            inputs=[
                io.Model.Input("model", tooltip="Model from Inflate UNet and STAM/FFAM Patch."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Source prompt: says what the clip shows. It may come from Apply ControlNet, with a hint "
                    "for each frame, as ControlVideo tunes.",
                ),
                io.Latent.Input("latent", tooltip="The clip: all frames in one batch, from VAE Encode."),
                io.Int.Input(
                    "steps",
                    default=USUAL_STEPS,
                    min=1,
                    max=MOST_STEPS,
                    tooltip=f"Optimiser steps: {USUAL_STEPS} with recipe fast, {TuneSettings.steps} in EI². More keep "
                    "the source better and follow the edit less.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=3e-5,
                    min=1e-7,
                    max=1e6,
                    step=1e-7,
                    round=False,
                    tooltip="Of the optimiser, AdamW unless Tuning Options choose another; recipe fast takes "
                    f"{FACTOR:g} times it. 3e-5 is EI²'s, for Stable Diffusion; the demo model is small and wants "
                    "1e-4.",
                ),
                seed_input(
                    "Seed for the noise and the noise levels trained on. Same seed, same result on the "
                    "same machine; on a GPU to the last bit only if ComfyUI was started with --deterministic.",
                ),
                io.String.Input(
                    "snapshots",
                    default=SNAPSHOTS,
                    **ADVANCED,
                    tooltip="When the state is kept for progress of Apply Tune: comma-separated steps or percentages. "
                    "Each makes the file half as long again. Empty = the end alone.",
                ),
                io.Combo.Input(
                    "on_interrupt",
                    options=["keep", "discard"],
                    default="keep",
                    **ADVANCED,
                    tooltip="Keep: what was learned before you cancel is saved as unfinished_00001_ in "
                    "models/consistent_video, to use or to resume. Also where memory runs out, and where the loss "
                    "diverges: the last weights that were seen to work.",
                ),
                io.String.Input(
                    "prompt_to_note",
                    default="",
                    **ADVANCED,
                    tooltip="Text noted in the tune file as its source prompt. Empty = none: a file you share then "
                    "says nothing of your prompt.",
                ),
                *loss_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the loss counts: white is learned, black ignored. One for all frames or one each.",
                ),
                Tune.Input(
                    "resume",
                    optional=True,
                    tooltip="Tune to continue, from Load Tune: saved with with_state, or unfinished. steps counts from "
                    "its beginning. With the same settings the result is that of one long run.",
                ),
                TuningOptions.Input("options", optional=True, tooltip="Precision, memory, optimiser: Tuning Options."),
                TuningPreview.Input("preview", optional=True, tooltip="Edit to show meanwhile: Tuning Preview."),
                io.Combo.Input(
                    "recipe",
                    options=list(get_args(Recipe)),
                    default="fast",
                    optional=True,
                    tooltip="Learning rate as set or raised. Paper: learning_rate itself. Fast (ours): "
                    f"{FACTOR:g} times learning_rate; give it two fifths of the steps. Measured on the demo model.",
                ),
            ],
            outputs=[
                io.Model.Output("clip_model", tooltip="The input model with the tune applied."),
                Tune.Output(
                    "tune",
                    tooltip="What was learned, for Save Tune or Apply Tune: the change to the model given here.",
                ),
                io.Image.Output("loss_plot", tooltip="Loss of each step and its running mean."),
                io.String.Output("report", tooltip="Settings, losses, seconds and peak memory as JSON."),
                io.LossMap.Output("loss_map", tooltip="Loss of each step, for ComfyUI's loss nodes."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, snapshots=None, steps=None):
        return try_values(read_steps, snapshots, steps)

    @classmethod
    def execute(
        cls,
        model,
        positive,
        latent,
        steps,
        snapshots=SNAPSHOTS,
        on_interrupt="keep",
        prompt_to_note="",
        mask=None,
        resume=None,
        options=None,
        preview=None,
        recipe: Recipe = "paper",  # in a graph that does not name it, learning_rate is what is taken
        **chosen,
    ) -> io.NodeOutput:
        start, progress = time.monotonic(), TuningProgress(cls.hidden.unique_id)
        chosen = {"steps": steps, "snapshots": read_steps(snapshots, steps), "recipe": recipe, **read_losses(**chosen)}
        settings = (options or TuneSettings()).changed(**chosen)
        inputs = TuneInputs(positive, latent, mask, resume, preview, prompt_to_note)
        keep = keep_unfinished(TUNES, with_state=True) if on_interrupt == "keep" else None
        autosave = Autosave(settings.autosave_minutes) if settings.autosave_minutes > 0 else None
        tune = tune_model(model, inputs, settings, progress, keep, autosave)
        spent = {"seconds": round(time.monotonic() - start, 2), "peak_gib": round(progress.memory.look(), 2)}
        if autosave is not None and autosave.resumed:
            spent["resumed_from_autosave_after"] = autosave.resumed
        plotted = {name.replace("_", " "): tune.info[name] for name in tune.info if name.endswith("_loss")}
        return io.NodeOutput(
            apply_tune(model, tune),
            tune,
            plot_loss(tune.info["loss"], plotted),
            to_json({**tune.info, **spent}),
            {"loss": torch.tensor(tune.info["loss"])},
        )
