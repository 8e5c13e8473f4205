"""Steady Frames."""

from comfy_api.latest import io

from ..modules.files.strict_json import to_json
from ..modules.inversion.noise_relation import check_factors
from ..modules.steady.host import steady_clip
from ..modules.steady.steady import SteadySettings
from .node import Node
from .sample import CATEGORY, read_numbers
from .types import PREFIX, Motion, part_input, try_values

CLIP = io.MatchType.Template("clip", [io.Image, io.Latent])


class SteadyFrames(Node):
    """A clip that was edited frame by frame, without the flicker."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "SteadyFrames",
            display_name="Steady Frames",
            category=CATEGORY,
            description="Takes the flicker out of a clip that anything edited frame by frame: any image model, or a "
            "filter. What the edit changes is blended with what it changes in the neighbouring frames, along the "
            "source clip's motion. It needs no model. Made of INR Smooth's relation (PLoS One 2025); its use on "
            "finished edits is ours.",
            search_aliases=["deflicker", "temporal smoothing", "consistency", "per-frame edit", "stabilize"],
            inputs=[
                io.MatchType.Input(
                    "source",
                    CLIP,
                    tooltip="The clip before the edit, images or latents of any image model's VAE, Qwen-Image's "
                    "encoded one by one. Latents keep edges sharper. Alpha is left out.",
                ),
                io.MatchType.Input(
                    "edited",
                    CLIP,
                    tooltip="Its edit, frame by frame: as many frames of the same size and kind as the source.",
                ),
                part_input(
                    "strength",
                    0.5,
                    "Weight of the neighbours in each pass. 0 changes nothing. Above 0.5 what alternates from frame to "
                    "frame is turned round; for more, raise passes.",
                ),
                io.Int.Input(
                    "passes",
                    default=8,
                    min=1,
                    max=64,
                    tooltip="How often neighbours are blended; more reach frames farther away and steady more. Without "
                    "motion 1 is best.",
                ),
                Motion.Input(
                    "motion",
                    optional=True,
                    tooltip="Of the source clip's images, from Clip Motion; for latents too. Without it frames are "
                    "blended as they lie, which leaves ghosts of what moves.",
                ),
                io.Combo.Input(
                    "direction",
                    options=["both", "forward", "backward"],
                    default="both",
                    optional=True,
                    tooltip="Neighbours taken: forward = the frame before, backward = the frame after, both = their "
                    "mean. With forward the first frame stays as it is, and the others follow it.",
                ),
                part_input(
                    "keep_texture",
                    0.0,
                    "Guard against over-smoothing: where less than this part of the edit's texture, or of the source's "
                    "if that has less, would be left, the strength is halved, at last to 0. 0 = no guard.",
                    optional=True,
                ),
                io.String.Input(
                    "frame_strengths",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Share of the blend in each frame, comma-separated: 1, 1, 0.5, ... Empty = all 1.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where it acts: white. One for all frames or one each."),
            ],
            outputs=[
                io.MatchType.Output(CLIP, id="steadied", tooltip="The steadied edit, of the kind of edited."),
                io.String.Output(
                    "report",
                    tooltip="Strength, unsteadiness along the motion before and after, the part of the texture that is "
                    "left, and how much was changed, as JSON.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, frame_strengths=None):
        return try_values(
            lambda text: check_factors(frame_strengths=read_numbers("frame_strengths", text)), frame_strengths
        )

    @classmethod
    def execute(
        cls,
        source,
        edited,
        strength,
        passes,
        motion=None,
        direction="both",
        keep_texture=0.0,
        frame_strengths="",
        mask=None,
    ) -> io.NodeOutput:
        frames = read_numbers("frame_strengths", frame_strengths)
        settings = SteadySettings(strength, passes, direction, keep_texture, frames)
        steadied, report = steady_clip(source, edited, settings, motion, mask)
        return io.NodeOutput(steadied, to_json(report))
