"""Smooth Sample and Smooth Sampler."""

from comfy_api.latest import io

from ..modules.host.sampling import InvertedClipSampler, sample_clip
from .types import MENU, PREFIX

CATEGORY = MENU + "sample"


class SmoothSample(io.ComfyNode):
    """Noise to edited clip."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "SmoothSample",
            display_name="Smooth Sample",
            category=CATEGORY,
            description="Samples the edited clip from an inverted one by deterministic DDIM. Steps and noise levels "
            "are the inversion's. With the source prompt, CFG 1 and a plain inversion (gamma 0) it gives the source "
            "clip back.",
            search_aliases=["DDIM sample", "video edit", "KSampler"],
            inputs=[
                io.Model.Input("model", tooltip="The clip model the clip was inverted with."),
                io.Conditioning.Input("positive", tooltip="Edited prompt; ControlNet may be applied to it."),
                io.Conditioning.Input("negative", tooltip="Negative prompt; may be empty. Without effect at CFG 1."),
                io.Latent.Input("inversion", tooltip="From INR Bidirectional DDIM Inversion."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance. 7.5 in the papers; higher follows the prompt more and the clip "
                    "less; 1 = none, for reconstruction.",
                ),
            ],
            outputs=[io.Latent.Output("latent", tooltip="The edited clip, for VAE Decode.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, inversion, cfg) -> io.NodeOutput:
        return io.NodeOutput(sample_clip(model, positive, negative, inversion, cfg))


class SmoothSampler(io.ComfyNode):
    """Smooth Sample for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "SmoothSampler",
            display_name="Smooth Sampler",
            category=CATEGORY,
            description="Sampler and noise levels of an inverted clip for SamplerCustomAdvanced, to be used with any "
            "guider. Connect DisableNoise to its noise and the inversion to its latent.",
            search_aliases=["DDIM sampler", "sampler custom"],
            inputs=[io.Latent.Input("inversion", tooltip="From INR Bidirectional DDIM Inversion.")],
            outputs=[
                io.Sampler.Output("sampler", tooltip="DDIM that starts at an inverted clip."),
                io.Sigmas.Output("sigmas", tooltip="Noise levels of the inversion."),
            ],
        )

    @classmethod
    def execute(cls, inversion) -> io.NodeOutput:
        sampler = InvertedClipSampler(inversion)
        return io.NodeOutput(sampler, sampler.sigmas)
