"""Null-Text Optimization."""

import time
from dataclasses import asdict

from comfy_api.latest import io

from ..modules.files.strict_json import to_json
from ..modules.inversion.host.invert import INVERSION
from ..modules.inversion.host.null_text import optimize_negative
from ..modules.inversion.null_text import NullTextSettings
from .node import Node
from .types import ADVANCED, MENU, PREFIX, cfg_input


class NullTextOptimization(Node):
    """A negative for each step, from which guided sampling gives the clip back."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "NullTextOptimization",
            display_name="Null-Text Optimization",
            category=MENU + "sample",
            description="Optimises the negative at each step, one for all frames, so that sampling with guidance and "
            "the source prompt reconstructs the clip (Null-text Inversion, CVPR 2023; shared by the frames as "
            "in Video-P2P). The model stays as it is. The variant that needs no optimisation is negative-prompt "
            "inversion: the source prompt as negative of Smooth Sample.",
            search_aliases=["null-text inversion", "unconditional embedding", "Video-P2P", "negative-prompt inversion"],
            inputs=[
                io.Model.Input("model", tooltip="The clip model the clip was inverted with and is sampled with."),
                io.Latent.Input(
                    "inversion",
                    tooltip="From INR Bidirectional DDIM Inversion, made by DDIM; best plain: gamma 0, cfg 1.",
                ),
                io.Conditioning.Input("positive", tooltip="Source prompt, that the clip was inverted with."),
                io.Conditioning.Input(
                    "negative", tooltip="Where the optimisation begins: usually the empty prompt. One for all frames."
                ),
                cfg_input(
                    7.5, "Classifier-free guidance that the negative is optimised for: that of Smooth Sample. Above 1."
                ),
                io.Int.Input(
                    "inner_steps",
                    default=10,
                    min=0,
                    max=1000,
                    tooltip="Steps of Adam at each sampling step, at most. Each takes about the time of four UNet "
                    "calls. 10 in the papers' code; 0 leaves the negative as it is.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-2,
                    min=1e-7,
                    max=1e2,
                    step=1e-7,
                    round=False,
                    tooltip="Adam's learning rate at the first sampling step; it falls to half of this at the last.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=1e-5,
                    min=0.0,
                    max=1.0,
                    step=1e-7,
                    round=False,
                    tooltip="Mean squared error below which Adam stops early at the first sampling step; it grows to "
                    "about a hundredfold at the last. 0 = never.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=True,
                    **ADVANCED,
                    tooltip="Compute the UNet's activations again for the backward pass instead of holding them. Off "
                    "is faster where the memory suffices.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "optimized_negative",
                    tooltip="An entry for each step, which acts at its noise level alone: negative of Smooth Sample.",
                ),
                io.String.Output(
                    "report",
                    tooltip="Error of each step before and after, steps of Adam, and the error of the guided "
                    "reconstruction with either negative, as JSON.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, inversion, positive, negative, gradient_checkpointing=True, **values) -> io.NodeOutput:
        began, settings = time.monotonic(), NullTextSettings(**values)
        given = model, positive, negative, inversion, settings, gradient_checkpointing, cls.hidden.unique_id
        made = optimize_negative(*given)
        found, inverted = made.found, inversion[INVERSION]
        report = {
            "frames": inverted.num_frames,
            "steps": inverted.steps,
            **asdict(settings),
            "sigmas": inverted.sigmas[:-1].tolist(),
            "inner_steps_used": found.inner_steps,
            "error_before": found.before,
            "error_after": found.after,
            "error_plain": made.plain,
            "reconstruction_error_plain": made.plain[-1],
            "reconstruction_error": found.after[-1],
            "seconds": round(time.monotonic() - began, 2),
        }
        return io.NodeOutput(made.conditioning, to_json(report))
