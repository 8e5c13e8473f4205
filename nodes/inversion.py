"""INR Bidirectional DDIM Inversion."""

import json
import time

from comfy_api.latest import io

from ..modules.host.sampling import INVERSION, invert_clip
from .types import MENU, PREFIX


class INRBidirectionalDDIMInversion(io.ComfyNode):
    """Clip to noise."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "INRBidirectionalDDIMInversion",
            display_name="INR Bidirectional DDIM Inversion",
            category=MENU + "sample",
            description="Finds the noise that DDIM sampling turns into this clip, and applies the interframe noise "
            "relation of INR Smooth (PLoS One 2025) from both ends: what UNet and noise differ by is to be equal in "
            "neighbouring frames. With gamma 0 or direction none it is plain DDIM inversion, the one to check "
            "reconstruction with.",
            search_aliases=["DDIM inversion", "noise inversion", "video to noise", "INR Smooth", "unsample"],
            inputs=[
                io.Model.Input("model", tooltip="Clip model: from One-Shot Tune, Apply Tune, or a patch alone."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Prompt to invert with, at CFG 1. An empty one, as in Tune-A-Video, leaves more of the "
                    "clip's motion to the edit; the source prompt reconstructs.",
                ),
                io.Latent.Input("latent", tooltip="The clip: all frames in one batch, from VAE Encode."),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=999,
                    tooltip="DDIM steps; the edit takes the same number. More reconstruct better.",
                ),
                io.Float.Input(
                    "gamma",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Inverse noise weight: share of the neighbours in each frame's noise. The paper uses 0.5 "
                    "and 1. Exactly 0 = plain DDIM inversion, which is not the limit of small values.",
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
                    options=["next", "current"],
                    default="next",
                    tooltip="Noise level the UNet is told at each step: the one it goes to (Tune-A-Video, diffusers) "
                    "or the one it comes from.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Latent.Output("inversion", tooltip="The clip as noise, with its noise levels, for Smooth Sample."),
                io.Sigmas.Output("sigmas", tooltip="Noise levels to sample with, from noise to clean."),
                io.String.Output("report", tooltip="What was done, as JSON."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, steps, gamma, direction, label) -> io.NodeOutput:
        start = time.monotonic()
        inversion = invert_clip(model, positive, latent, steps, gamma, direction, label)
        report = {
            "frames": inversion[INVERSION]["num_frames"],
            "steps": steps,
            "gamma": gamma,
            "direction": direction,
            "label": label,
            "sigma_max": round(float(inversion[INVERSION]["sigmas"][0]), 4),
            "seconds": round(time.monotonic() - start, 2),
        }
        return io.NodeOutput(inversion, inversion[INVERSION]["sigmas"], json.dumps(report))
