"""INR Bidirectional DDIM Inversion, and Save and Load Inversion."""

import time
from typing import get_args

from comfy_api.latest import io

from ..modules.clip_model.attention.bases import BASES
from ..modules.clip_model.host.family import guidance_of
from ..modules.diffusion.ddim import Label, Solver
from ..modules.files.host import INVERSIONS, stamp
from ..modules.files.strict_json import to_json
from ..modules.inversion.host.invert import INVERSION, inversion_of, invert_clip, to_latent
from ..modules.inversion.inversion import InversionSettings, Method, Noise, Start
from ..modules.inversion.noise_relation import Reading
from .node import Node
from .shelves import INVERTED
from .types import (
    ADVANCED,
    MENU,
    PREFIX,
    cfg_input,
    file_input,
    part_input,
    prefix_input,
    saved_at,
    seed_input,
    try_prefix,
)

CATEGORY = MENU + "sample"


def denoise_input(**options: bool) -> io.Input:
    """Return the input for the part of the noise levels that an inversion walks."""
    return part_input(
        "denoise",
        0.0,
        "Part of the noise levels that is walked, as in KSampler: less keeps more of the clip's layout and "
        "motion, more leaves the edit freer. 0 = auto, matched to the latent's size; 1 for a UNet that "
        "predicts noise from 512 x 512 pixels on.",
        **options,
    )


class INRBidirectionalDDIMInversion(Node):
    """Clip to noise."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "INRBidirectionalDDIMInversion",
            display_name="INR Bidirectional DDIM Inversion",
            category=CATEGORY,
            description="Finds the noise that DDIM sampling turns into this clip, and applies the interframe noise "
            "relation of INR Smooth (PLoS One 2025) from both ends: what UNet and noise differ by is to be equal in "
            "neighbouring frames. With gamma 0 or direction none it is plain DDIM inversion, the one to check "
            "reconstruction with.",
            search_aliases=["DDIM inversion", "noise inversion", "video to noise", "INR Smooth", "unsample"],
            inputs=[
                io.Model.Input("model", tooltip="Clip model: from One-Shot Tune, Apply Tune, or a patch alone."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Prompt to invert with, and best the negative of Smooth Sample as well: the source prompt, "
                    "or the empty prompt as in Tune-A-Video.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="The clip: all frames in one batch, from VAE Encode; for Qwen-Image encoded one by one, "
                    "see Inflate UNet.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=999,
                    tooltip="DDIM steps; the edit takes the same number. More usually reconstruct better.",
                ),
                denoise_input(),
                part_input(
                    "gamma",
                    0.5,
                    "Inverse noise weight: share of the neighbours in each frame's noise. The paper uses 0.5 "
                    "and 1. 0 = plain DDIM inversion, with the reading mean.",
                ),
                io.Combo.Input(
                    "direction",
                    options=["both", "forward", "backward", "none"],
                    default="both",
                    tooltip="Neighbours taken: forward = the frame before, backward = the frame after, both = their "
                    "mean, none = plain DDIM inversion.",
                ),
                io.Combo.Input(
                    "label",
                    options=list(get_args(Label)),
                    default="next",
                    tooltip="Noise level the UNet is told at each step: the one it goes to (Tune-A-Video, diffusers) "
                    "or the one it comes from. With refinements only the first guess depends on it.",
                    advanced=True,
                ),
                io.Int.Input(
                    "refinements",
                    default=0,
                    min=0,
                    max=20,
                    optional=True,
                    tooltip="How often each step is taken again with the noise predicted where it led to. 1 to 3 make "
                    "the reconstruction nearly exact; each costs as much time as the inversion itself.",
                ),
                cfg_input(
                    1.0,
                    "Classifier-free guidance of the inversion. 1 = none, as in the papers. Above 1, connect negative.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "reading",
                    options=list(get_args(Reading)),
                    default="mean",
                    **ADVANCED,
                    tooltip="Of the paper's equation 26, which is lost. Mean: gamma is the weight of the neighbours' "
                    "mean. Sum: gamma times the sum of both. Complementary: gamma of the frame after, the rest of the "
                    "one before.",
                ),
                io.Combo.Input(
                    "noise",
                    options=list(get_args(Noise)),
                    default="implied",
                    **ADVANCED,
                    tooltip="Added noise in equations 24 and 25: implied by the inverted clip, which keeps its motion, "
                    "or fresh Gaussian noise, which does not.",
                ),
                seed_input("Seed for the Gaussian noise, and for edit-friendly DDPM.", **ADVANCED),
                io.Combo.Input(
                    "start",
                    options=list(get_args(Start)),
                    default="inverted latent",
                    **ADVANCED,
                    tooltip="Where the relation is applied: to the inverted latent, moved by what the relation changes "
                    "in its noise; to a start made of the clean latent and the smoothed noise, which jumps when gamma "
                    "leaves 0; or at every step of the inversion.",
                ),
                io.Boolean.Input(
                    "set_alpha_to_one",
                    default=False,
                    **ADVANCED,
                    tooltip="End the walk at noise level 0 instead of the first timestep's, as diffusers' parameter of "
                    "this name. Stable Diffusion's scheduler has it off.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(get_args(Method)),
                    default="DDIM",
                    **ADVANCED,
                    tooltip="What is inverted. DDIM: deterministic sampling. Edit-friendly DDPM: ancestral sampling, "
                    "whose noise of each step is found for this clip; it reconstructs exactly at CFG 1, whatever the "
                    "number of steps. Each frame's noise is its own: edits follow the prompt more, above all in the "
                    "background, and flicker more; with shared noise, as in Slicedit, it begins alike in all frames. "
                    "Its seed is the one above. STEM: DDIM with a model whose frames "
                    "all attend to the same few bases of the clip instead of to tokens; the edit has the model's "
                    "own attention.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Other side of the guidance of the inversion; for cfg above 1."
                ),
                io.Int.Input(
                    "bases",
                    default=BASES,
                    min=1,
                    max=65536,
                    **ADVANCED,
                    tooltip="STEM only: number of bases of the clip in each layer. The paper uses 256. With as many as "
                    "the clip has tokens it is attention to all tokens of all frames.",
                ),
                io.Combo.Input(
                    "solver",
                    options=list(get_args(Solver)),
                    default="DDIM",
                    **ADVANCED,
                    tooltip="How a step follows the predicted noise; Smooth Sample takes the inversion's. DDIM: along "
                    "that at its beginning, as in the papers. midpoint: along that halfway, for one UNet call a step "
                    "and one more: much closer to the clip at CFG 1 in half the steps.",
                ),
            ],
            outputs=[
                io.Latent.Output("inversion", tooltip="The clip as noise, with its noise levels, for Smooth Sample."),
                io.Sigmas.Output("sigmas", tooltip="Noise levels to sample with, from noise to clean."),
                io.String.Output("report", tooltip="What was done, as JSON."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, negative=None, **values) -> io.NodeOutput:
        began = time.monotonic()
        settings = InversionSettings(**values)
        if settings.cfg > 1 and negative is None:
            raise ValueError(f"cfg {settings.cfg:g} of the inversion needs a negative. Connect one, or set cfg to 1.")
        inverted = invert_clip(model, positive, negative or positive, latent, settings)
        inversion = inverted[INVERSION]
        guidance = guidance_of(model)
        said = {"guidance": guidance} if guidance else {}
        report = {**inversion.report(settings), **said, "seconds": round(time.monotonic() - began, 2)}
        return io.NodeOutput(inverted, inversion.sigmas, to_json(report))


class SaveInversion(Node):
    """An inversion becomes a file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "SaveInversion",
            display_name="Save Inversion",
            category=CATEGORY,
            description="Writes an inverted clip as one safetensors file below models/consistent_video_inversions, "
            "with all that editing it needs.",
            search_aliases=["cache inversion", "export noise"],
            inputs=[
                io.Latent.Input("inversion", tooltip="From INR Bidirectional DDIM Inversion."),
                prefix_input("inversion"),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file lies.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix=None):
        return try_prefix(filename_prefix, INVERSIONS)

    @classmethod
    def execute(cls, inversion, filename_prefix) -> io.NodeOutput:
        return saved_at(INVERTED.write(inversion_of(inversion), filename_prefix))


class LoadInversion(Node):
    """A file becomes an inversion."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "LoadInversion",
            display_name="Load Inversion",
            category=CATEGORY,
            description="Reads an inversion that Save Inversion wrote. Sample it with the model it was made with.",
            search_aliases=["import noise"],
            inputs=[file_input("inversion_name", INVERSIONS)],
            outputs=[
                io.Latent.Output("inversion", tooltip="The clip as noise, for Smooth Sample."),
                io.Sigmas.Output("sigmas", tooltip="Noise levels to sample with, from noise to clean."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, inversion_name):
        return stamp(INVERSIONS, inversion_name)

    @classmethod
    def execute(cls, inversion_name) -> io.NodeOutput:
        inversion = INVERTED.read(inversion_name)
        return io.NodeOutput(to_latent(inversion), inversion.sigmas)
