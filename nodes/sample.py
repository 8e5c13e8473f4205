"""Smooth Sample and Smooth Sampler, the noise relation they apply, and the motion it follows."""

from comfy_api.latest import io

from ..modules.files.strict_json import to_json
from ..modules.inversion.host.invert import inversion_of
from ..modules.judging.host.judges import LARGEST, VARIATIONAL, clip_motion, flow_methods
from ..modules.sampling.host import InvertedClipSampler, RelationSettings, SampleSettings, sample_clip
from .node import Node
from .types import (
    ADVANCED,
    MENU,
    PREFIX,
    Motion,
    NoiseRelation,
    OpticalFlow,
    cfg_input,
    part_input,
    seed_input,
    try_values,
)

CATEGORY = MENU + "sample"
MOST_NUMBERS = 1024  # in a list


def flow_input(name: str, *others: str) -> io.Input:
    """Return the choice of what estimates optical flow, behind other choices."""
    return io.Combo.Input(
        name,
        options=[*others, *flow_methods()],
        default=(*others, VARIATIONAL)[0],
        optional=True,
        tooltip="Optical flow: variational needs no weights; or a file of RAFT's weights (torchvision's raft_large or "
        "raft_small) in models/optical_flow.",
    )


def step_inputs() -> list[io.Input]:
    """Return the inputs of the nodes that sample an inversion."""
    return [
        part_input(
            "cfg_end",
            1.0,
            "Part of the steps that are guided; the rest use only the positive prompt, at CFG 1, and take half "
            "as long. Guidance decides the layout early and redraws texture late: ending it earlier makes the clip "
            "steadier.",
            optional=True,
        ),
        part_input(
            "eta",
            0.0,
            "Fresh noise at each step: 0 = deterministic DDIM, 1 = ancestral sampling. It loosens the hold of "
            "the clip.",
            **ADVANCED,
        ),
        seed_input("Seed for the fresh noise where eta is above 0.", **ADVANCED),
        io.Int.Input(
            "start_step",
            default=0,
            min=0,
            max=998,
            **ADVANCED,
            tooltip="Step to begin at, from the inversion as it is there. Later keeps more of it. 0 = from the noise.",
        ),
        io.Int.Input(
            "end_step",
            default=0,
            min=0,
            max=999,
            **ADVANCED,
            tooltip="Step to end before, leaving a noisy latent. 0 = to the end.",
        ),
        NoiseRelation.Input(
            "relation", optional=True, tooltip="Ties frames to each other: from Interframe Noise Relation."
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where the clip is edited: white. Elsewhere it stays the source. One for all frames or one each.",
        ),
    ]


class SmoothSample(Node):
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
                io.Conditioning.Input(
                    "negative",
                    tooltip="What guidance leads away from. The source prompt: only what the two prompts differ in "
                    "changes, so that the clip holds stiller. The empty prompt: as in the papers. From Null-Text "
                    "Optimization: optimised to bring the clip back. No effect at CFG 1.",
                ),
                io.Latent.Input("inversion", tooltip="From INR Bidirectional DDIM Inversion."),
                cfg_input(
                    7.5,
                    "Classifier-free guidance: about 3 with the source prompt as negative, 7.5 with the empty "
                    "prompt, as in the papers. Higher follows the prompt more and the clip less; 1 = none, for "
                    "reconstruction.",
                ),
                part_input(
                    "cfg_rescale",
                    0.0,
                    "How far the contrast that guidance adds is taken back, as in ComfyUI's RescaleCFG.",
                    **ADVANCED,
                ),
                *step_inputs(),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The edited clip, for VAE Decode."),
                io.String.Output(
                    "report",
                    tooltip="Strength of the noise relation and texture energy against the source's at each step, as "
                    "JSON.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, positive, negative, inversion, cfg, **values) -> io.NodeOutput:
        latent, report = sample_clip(model, positive, negative, inversion, SampleSettings(cfg, **values))
        return io.NodeOutput(latent, to_json(report))


class SmoothSampler(Node):
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
            inputs=[io.Latent.Input("inversion", tooltip="From INR Bidirectional DDIM Inversion."), *step_inputs()],
            outputs=[
                io.Sampler.Output("sampler", tooltip="DDIM that starts at an inverted clip."),
                io.Sigmas.Output("sigmas", tooltip="Noise levels of the inversion."),
            ],
        )

    @classmethod
    def execute(cls, inversion, **values) -> io.NodeOutput:
        sampler = InvertedClipSampler(inversion_of(inversion), SampleSettings(**values))
        return io.NodeOutput(sampler, sampler.sigmas)


class InterframeNoiseRelation(Node):
    """What ties the frames to each other while they are sampled."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "InterframeNoiseRelation",
            display_name="Interframe Noise Relation",
            category=CATEGORY,
            description="Ties neighbouring frames to each other at each step of Smooth Sample: what the edit changes "
            "of the inversion's noise (with flow-matching models, of its velocity) is blended with what it changes in "
            "the neighbours, along the source clip's motion if that is connected. Made of INR Smooth's relation (PLoS "
            "One 2025); its use in sampling is ours.",
            search_aliases=["temporal smoothing", "deflicker", "INR Smooth", "consistency"],
            inputs=[
                part_input(
                    "strength",
                    0.5,
                    "Weight of the neighbours. 0 changes nothing. Above 0.5 the clip breaks: what alternates "
                    "from frame to frame is turned round. For more, raise passes.",
                ),
                part_input("start", 0.0, "Part of the steps where it begins."),
                part_input(
                    "end",
                    0.8,
                    "Part of the steps where it ceases. In the last steps it blends fine texture too and may "
                    "leave specks.",
                ),
                part_input(
                    "keep_texture",
                    0.0,
                    "Guard against over-smoothing: where the relation would leave less than this part of the "
                    "texture that the step has without it, the strength is halved, at last to 0. 0 = no guard.",
                ),
                io.String.Input(
                    "frame_strengths",
                    default="",
                    advanced=True,
                    tooltip="Share of the relation in each frame, comma-separated: 1, 1, 0.5, ... Empty = all 1.",
                ),
                io.String.Input(
                    "step_strengths",
                    default="",
                    **ADVANCED,
                    tooltip="Factors of the strength, comma-separated, spread evenly from start to end, linear between "
                    "them: 1, 0 falls to nothing. Empty = constant.",
                ),
                io.Int.Input(
                    "passes",
                    default=8,
                    min=1,
                    max=16,
                    optional=True,
                    tooltip="How often neighbours are blended at each step; more reach frames farther away and tie "
                    "them closer, at some cost of texture. Without motion 1 is best.",
                ),
                Motion.Input(
                    "motion",
                    optional=True,
                    tooltip="Of the source clip, from Clip Motion. Without it neighbours are blended as they lie, "
                    "which leaves ghosts of what moves.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="Where it acts: white. One for all frames or one each."),
            ],
            outputs=[NoiseRelation.Output("relation", tooltip="For Smooth Sample or Smooth Sampler.")],
        )

    @classmethod
    def validate_inputs(cls, frame_strengths=None, step_strengths=None):
        return try_values(read_strengths, frame_strengths, step_strengths)

    @classmethod
    def execute(
        cls, strength, start, end, keep_texture, frame_strengths, step_strengths="", passes=8, motion=None, mask=None
    ) -> io.NodeOutput:
        frames, steps = read_strengths(frame_strengths, step_strengths)
        given = strength, start, end, motion, mask, frames, steps, keep_texture, passes
        return io.NodeOutput(RelationSettings(*given))


class ClipMotion(Node):
    """Optical flow of a clip, estimated or from elsewhere."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "ClipMotion",
            display_name="Clip Motion",
            category=CATEGORY,
            description="Estimates how everything in a clip moves from frame to frame (optical flow), or takes flow "
            "that something else made, such as another estimator or the vector pass of a renderer, and works out what "
            "is hidden in the next or the previous frame.",
            search_aliases=["optical flow", "RAFT", "motion estimation", "motion vectors", "vector pass"],
            inputs=[
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The source clip: the frames that are edited; alpha is left out. Not needed where "
                    "forward and backward are connected.",
                ),
                flow_input("method"),
                OpticalFlow.Input(
                    "optical_flow",
                    optional=True,
                    tooltip="Estimates the motion instead of method: from ComfyUI's Load Optical Flow Model.",
                ),
                io.AnyType.Input(
                    "forward",
                    optional=True,
                    tooltip="Used with backward instead of an estimate. From each frame but the last to the next: "
                    "pictures whose red and green are x and y, or tensors in pixels, x to the right and y down.",
                ),
                io.AnyType.Input(
                    "backward", optional=True, tooltip="The same from each frame but the first to the one before."
                ),
                io.Float.Input(
                    "largest",
                    default=LARGEST,
                    min=0.1,
                    max=4096.0,
                    step=0.1,
                    optional=True,
                    tooltip="Of pictures: pixels of motion that full red or green stands for; half is none, and black "
                    "as much the other way. Tensors are taken as they are.",
                ),
            ],
            outputs=[Motion.Output("motion", tooltip="For Interframe Noise Relation and Steady Frames.")],
        )

    @classmethod
    def execute(cls, images=None, method=VARIATIONAL, **values) -> io.NodeOutput:
        return io.NodeOutput(clip_motion(images, method, **values))


def read_strengths(by_frame: str, by_step: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read the strengths of the relation by frame and by step; ValueError where one is not a number from 0 to 1."""
    frames, steps = read_numbers("frame_strengths", by_frame), read_numbers("step_strengths", by_step)
    RelationSettings(frames=frames, steps=steps)
    return frames, steps


def read_numbers(name: str, text: str) -> tuple[float, ...]:
    """Read the comma-separated factors of an input; 1 where it is empty, ValueError of others and of too many."""
    if text.count(",") >= MOST_NUMBERS:
        raise ValueError(f"{name} has {text.count(',') + 1} numbers. Give {MOST_NUMBERS} or fewer.")
    try:
        return tuple(float(part) for part in text.split(",") if part.strip()) or (1.0,)
    except ValueError as error:
        raise ValueError(f"{name} {text[:80]!r} is not a list of numbers. Separate by commas: 1, 1, 0.5.") from error
