"""Tuning Options and Tuning Preview."""

from typing import get_args

from comfy_api.latest import io

from ..modules.tuning.host.preview import PreviewSettings
from ..modules.tuning.learning_rate import Schedule
from ..modules.tuning.losses.smoothing import Coupling
from ..modules.tuning.noise import OWN_CORRELATIONS, Noise
from ..modules.tuning.settings import OnOutOfMemory, OptimizerName, Precision, TuneSettings
from .inversion import denoise_input
from .node import Node
from .types import ADVANCED, MENU, PREFIX, TuningOptions, TuningPreview, cfg_input, part_input

CATEGORY = MENU + "tune"


class TuningOptionsNode(Node):
    """Settings of One-Shot Tune beyond steps and learning rate."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "TuningOptions",
            display_name="Tuning Options",
            category=CATEGORY,
            description="Precision, memory and optimiser of One-Shot Tune. Without it the defaults shown here hold, "
            "which are the papers' where they name them.",
            search_aliases=["optimizer", "gradient checkpointing", "learning rate schedule", "min-SNR", "low VRAM"],
            inputs=[
                io.Combo.Input(
                    "precision",
                    options=list(get_args(Precision)),
                    default="auto",
                    tooltip="Of the UNet's computations: auto takes bf16 for half-precision models where the GPU has "
                    "it, else fp16 with scaled gradients; fp32 on a CPU. Trainable parameters are always fp32.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    tooltip="Compute activations twice instead of holding them: less memory, more "
                    "time, the same result to rounding.",
                ),
                io.Int.Input(
                    "frames_per_step",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Consecutive frames, at random, that each step sees of a longer clip. 0 = all. Fewer need "
                    "less memory and more steps.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Gradients are scaled down to this norm. 0 = never.",
                ),
                io.Float.Input(
                    "weight_decay", default=0.01, min=0.0, max=1.0, step=1e-4, round=False, tooltip="Of AdamW."
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(get_args(Schedule)),
                    default="constant",
                    tooltip="How the learning rate falls over the steps.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Steps in which the learning rate rises from 0.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Min-SNR weighting: low noise levels count less. 5 is usual; 0 = all alike, as in the "
                    "papers.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(get_args(OptimizerName)),
                    default="AdamW",
                    tooltip="AdamW 8-bit needs the package bitsandbytes and a quarter of the optimiser's memory. "
                    "Gradient descent is plain: no momentum, no weight decay; its steps are checked, see Tune Prompt "
                    "Tokens.",
                ),
                io.Combo.Input(
                    "coupling",
                    options=list(get_args(Coupling)),
                    default="pairwise",
                    **ADVANCED,
                    tooltip="Of INR's smoothing loss, whose published equations are lost. Pairwise: gradients reach "
                    "both frames of a pair. Detached neighbour: only the one that is corrected. Cumulative: the first "
                    "or last frame stands for the neighbour.",
                ),
                part_input("backward_weight", 0.5, "Of INR's loss from the last frame to the first.", **ADVANCED),
                part_input("forward_weight", 0.5, "Of INR's loss from the first frame to the last.", **ADVANCED),
                io.Float.Input(
                    "smoothing_end",
                    default=-1.0,
                    min=-1.0,
                    max=100.0,
                    step=0.01,
                    **ADVANCED,
                    tooltip="Weight of the smoothing loss at the last step, changing evenly from smoothing_weight at "
                    "the first. -1 = the same at all steps.",
                ),
                io.Combo.Input(
                    "on_out_of_memory",
                    options=list(get_args(OnOutOfMemory)),
                    default="step down",
                    **ADVANCED,
                    tooltip="Step down: where a step does not fit, go on from the last one with chunking, then "
                    "gradient_checkpointing of ever more layers, then with half the frames in each step, and again; "
                    "log and report say so. Stop: end with an error.",
                ),
                io.Boolean.Input(
                    "chunking",
                    default=False,
                    optional=True,
                    tooltip="Compute activations of feed-forward layers and temporal modules again for the gradient, "
                    "part by part, instead of holding them: less memory, a little more time, the same result to "
                    "rounding. Try it before gradient_checkpointing; with both they are computed three times.",
                ),
                io.Combo.Input(
                    "noise",
                    options=list(get_args(Noise)),
                    default="independent",
                    **ADVANCED,
                    tooltip="Noise of a step's frames (PYoCo, ICCV 2023). Independent: of its own in each frame, as in "
                    "EI² and Tune-A-Video. Mixed: part of it is the same in all frames. Progressive: part of it goes "
                    "over from each frame to the next.",
                ),
                io.Float.Input(
                    "noise_correlation",
                    default=-1.0,
                    min=-1.0,
                    max=100.0,
                    step=0.01,
                    **ADVANCED,
                    tooltip="Alpha of mixed and progressive noise: all frames share alpha²/(1 + alpha²) of "
                    "the variance with mixed noise; with progressive noise neighbours correlate by the root of that. "
                    "-1 = its paper's: 1 and 2. 0 = independent.",
                ),
                io.Float.Input(
                    "autosave_minutes",
                    default=1.0,
                    min=0.0,
                    max=1440.0,
                    step=0.5,
                    **ADVANCED,
                    tooltip="Minutes between two times that One-Shot Tune saves the tuning while it runs, in "
                    "models/consistent_video/autosave. After a crash queue the same graph, and it goes on from there; "
                    "the file is deleted when the tuning ends. 0 = off.",
                ),
                io.Float.Input(
                    "checkpointing_share",
                    default=1.0,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    **ADVANCED,
                    tooltip="How much of the memory that gradient_checkpointing can save is saved. Below 1 only the "
                    "layers that save the most memory for their work are computed again. 1 = as much as possible, "
                    "which costs the most time.",
                ),
            ],
            outputs=[TuningOptions.Output("options", tooltip="For One-Shot Tune.")],
        )

    @classmethod
    def execute(
        cls, smoothing_end=-1.0, noise: Noise = "independent", noise_correlation=-1.0, **settings
    ) -> io.NodeOutput:
        settings["smoothing_end"] = None if smoothing_end < 0 else smoothing_end
        alpha = OWN_CORRELATIONS[noise] if noise_correlation < 0 else noise_correlation
        return io.NodeOutput(TuneSettings().changed(**settings, noise=noise, noise_correlation=alpha))


class TuningPreviewNode(Node):
    """An edit to look at while One-Shot Tune runs."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "TuningPreview",
            display_name="Tuning Preview",
            category=CATEGORY,
            description="Shows in One-Shot Tune what the edit would be if it ended now: the clip is inverted and "
            "sampled in a few steps and plays in the node. The tuning's result is the same with it.",
            search_aliases=["training preview", "validation sample"],
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="Prompt to preview. Give it its own text: changing it runs the tuning again."
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="Negative prompt, usually empty, of its own text too; the clip is inverted with it.",
                ),
                io.Int.Input(
                    "every",
                    default=PreviewSettings.every,
                    min=1,
                    max=100000,
                    tooltip="Steps of the tuning between two previews. Each costs thrice its own steps in UNet calls.",
                ),
                io.Int.Input(
                    "preview_steps",
                    default=PreviewSettings.steps,
                    min=1,
                    max=100,
                    tooltip="DDIM steps of the inversion and of the sampling.",
                ),
                cfg_input(PreviewSettings.cfg, "Classifier-free guidance of the sampling."),
                denoise_input(optional=True, advanced=True),
            ],
            outputs=[TuningPreview.Output("preview", tooltip="For One-Shot Tune.")],
        )

    @classmethod
    def execute(cls, positive, negative, every, preview_steps, cfg, denoise=0.0) -> io.NodeOutput:
        return io.NodeOutput(PreviewSettings(positive, negative, every, preview_steps, cfg, denoise))
