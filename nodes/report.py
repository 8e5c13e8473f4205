"""Reports: Covariate Shift Report, Reconstruction Report, Inversion Stability, Inspect Video Model."""

from dataclasses import asdict

from comfy_api.latest import io

from ..modules.files.strict_json import to_json
from ..modules.inversion.host.stability import WayBack, measure_stability
from ..modules.inversion.stability import stability_text
from ..modules.judging.covariate_shift import average_shift, shift_table, worst_shift
from ..modules.judging.host.inspect import inspect_model
from ..modules.judging.host.reconstruct import reconstruct
from ..modules.judging.host.report import measure_clip
from ..modules.judging.plot import plot_reconstruction, plot_shifts, plot_stability
from ..modules.judging.reconstruction import report_text
from .node import Node
from .types import ADVANCED, MENU, PREFIX, cfg_input, part_input, seed_input


class CovariateShiftReport(Node):
    """What the temporal modules do to a clip's features."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "CovariateShiftReport",
            display_name="Covariate Shift Report",
            category=MENU + "report",
            description="Measures, for each transformer block, how far the temporal module shifts the mean of the "
            "features over the frames and by what factor it changes their temporal covariance. EI² (NeurIPS 2023) "
            "holds that layer norm in the module shifts the features and instance centering does not. Calls the UNet "
            "once; changes nothing.",
            search_aliases=["EI2", "layer norm", "instance centering", "temporal module", "ablation", "measure"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Clip model with temporal modules: from STAM/FFAM Patch, One-Shot Tune or Apply Tune.",
                ),
                io.Conditioning.Input("positive", tooltip="Prompt to call the UNet with, at CFG 1."),
                io.Latent.Input("latent", tooltip="The clip: two frames or more in one batch, from VAE Encode."),
                part_input(
                    "percent",
                    0.5,
                    "Point of sampling whose noise level is put on the clip: 0 = the highest, 1 = the lowest.",
                    step=0.001,
                ),
                seed_input("Seed for the noise put on the clip, which differs from frame to frame."),
            ],
            outputs=[
                io.String.Output("report", tooltip="A Markdown table: a row for each block, then mean and worst."),
                io.Image.Output("plot", tooltip="Both quantities of each block as bars."),
                io.String.Output("data", tooltip="The same and the settings, as JSON."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, percent, seed) -> io.NodeOutput:
        shifts, info = measure_clip(model, positive, latent, percent, seed)
        every = list(shifts.values())
        data = {
            **info,
            "blocks": {path: asdict(shift) for path, shift in shifts.items()},
            "mean": asdict(average_shift(every)),
            "worst": asdict(worst_shift(every)),
        }
        return io.NodeOutput(shift_table(shifts), plot_shifts(shifts), to_json(data))


class ReconstructionReport(Node):
    """How well a clip comes back from its inversion."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "ReconstructionReport",
            display_name="Reconstruction Report",
            category=MENU + "report",
            description="Samples an inverted clip back with the prompt it was inverted with and compares every frame "
            "with what the autoencoder alone makes of it. What does not come back here cannot come through an edit.",
            search_aliases=["PSNR", "SSIM", "inversion quality", "round trip"],
            inputs=[
                io.Model.Input("model", tooltip="The clip model the clip was inverted with."),
                io.Vae.Input("vae", tooltip="Autoencoder that encoded the clip."),
                io.Conditioning.Input("positive", tooltip="Prompt that the clip was inverted with."),
                io.Conditioning.Input(
                    "negative",
                    tooltip="Other side of the guidance: that of the edit, for example from Null-Text Optimization. "
                    "Without effect at CFG 1.",
                ),
                io.Latent.Input("inversion", tooltip="From INR Bidirectional DDIM Inversion."),
                cfg_input(
                    1.0,
                    "Classifier-free guidance. That of the inversion, usually 1, tells what it keeps; that of "
                    "the edit, what its guidance takes away.",
                ),
            ],
            outputs=[
                io.Image.Output("images", tooltip="The reconstructed frames."),
                io.String.Output("report", tooltip="What was lost, the worst frame, and what would help."),
                io.Image.Output("plot", tooltip="PSNR and SSIM of each frame, drift of each step."),
                io.String.Output("data", tooltip="The figures as JSON."),
            ],
        )

    @classmethod
    def execute(cls, model, vae, positive, negative, inversion, cfg) -> io.NodeOutput:
        frames, found, advice = reconstruct(model, vae, positive, negative, inversion, cfg)
        data = to_json({**asdict(found), "worst": found.worst, "remedies": advice})
        return io.NodeOutput(frames, report_text(found, advice), plot_reconstruction(found), data)


class InversionStability(Node):
    """How far DDIM's way back from an inversion may stray."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "InversionStability",
            display_name="Inversion Stability",
            category=MENU + "report",
            description="Measures along a plain inversion how strongly the predicted noise depends on the latent, "
            "bounds by it how far sampling without guidance may stray on its way back, and measures how far it does. "
            "With a second prompt or model, for example with learned tokens or a tune, also what that changes. The "
            "bound is ours.",
            search_aliases=["Lipschitz", "inversion error", "round trip", "adapter stability"],
            inputs=[
                io.Model.Input("model", tooltip="The clip model the clip was inverted with."),
                io.Conditioning.Input("positive", tooltip="Prompt that the clip was inverted with."),
                io.Latent.Input(
                    "inversion", tooltip="Plain, from INR Bidirectional DDIM Inversion: gamma 0, cfg 1, no refinements."
                ),
                io.Int.Input(
                    "iterations",
                    default=3,
                    min=1,
                    max=50,
                    tooltip="Of power iteration at each step. More find L more exactly, from below; each takes the "
                    "time of three steps of the inversion and a backward.",
                ),
                io.Conditioning.Input(
                    "sampled",
                    optional=True,
                    tooltip="Prompt of the way back, where it is another: with an adapter, kappa is what it changes.",
                ),
                io.Model.Input(
                    "sampled_model",
                    optional=True,
                    tooltip="Clip model of the way back, where it is another: the tuned one against the untuned, for "
                    "example. Both are held at once.",
                ),
                part_input(
                    "eta",
                    0.0,
                    "Noise that the way back adds at each step, as in Smooth Sample: 0 = none (DDIM), 1 = ancestral.",
                    **ADVANCED,
                ),
                seed_input("Seed for that noise.", **ADVANCED),
            ],
            outputs=[
                io.String.Output("report", tooltip="What was found, and a Markdown table of the steps."),
                io.Image.Output("plot", tooltip="Bound and measured distance at each step; L and kappa."),
                io.String.Output("data", tooltip="The figures as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, positive, inversion, iterations, sampled=None, sampled_model=None, eta=0.0, seed=0
    ) -> io.NodeOutput:
        back = WayBack(sampled, sampled_model, eta, seed)
        found = measure_stability(model, positive, inversion, back, iterations, cls.hidden.unique_id)
        data = {**asdict(found), "bound": found.bound, "bound_without_kappa": found.bound_without}
        report = stability_text(found, len(inversion["samples"]))
        return io.NodeOutput(report, plot_stability(found), to_json(data))


class InspectVideoModel(Node):
    """What is attached to a model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "InspectVideoModel",
            display_name="Inspect Video Model",
            category=MENU + "report",
            description="Lists what this pack and other nodes attached to a model, in which precision it computes, "
            "what is known not to go together, what to do about it, and the memory that sampling a clip takes. "
            "Changes nothing and computes nothing on the GPU.",
            search_aliases=["doctor", "diagnose", "debug", "conflict", "compatibility", "VRAM"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="Clip model or image model, as it goes into the inversion, the tuning or the edit."
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="The clip or its inversion: with it the memory is counted."
                ),
            ],
            outputs=[
                io.Model.Output("same_model", tooltip="The input itself."),
                io.String.Output("report", tooltip="What was found, as Markdown."),
                io.String.Output("data", tooltip="The same as JSON."),
            ],
        )

    @classmethod
    def execute(cls, model, latent=None) -> io.NodeOutput:
        report, data = inspect_model(model, latent)
        return io.NodeOutput(model, report, to_json(data))
