"""Tune, Apply, Save and Load Prompt Tokens."""

import time
from dataclasses import asdict

import torch
from comfy_api.latest import io

from ..modules.diffusion.host.latent import image_latents
from ..modules.files.host import PROMPT_TOKENS, stamp
from ..modules.files.strict_json import to_json
from ..modules.judging.plot import plot_loss
from ..modules.prompt_tokens.host.session import PromptSettings
from ..modules.prompt_tokens.host.tokens import apply_prompt_tokens, tune_prompt
from ..modules.tuning.host.progress import TuningProgress
from ..modules.tuning.host.tune_inputs import TuneInputs
from ..modules.tuning.learning_rate import advice_text
from ..modules.tuning.settings import MOST_STEPS, TuneSettings
from .node import Node
from .shelves import ADAPTERS
from .tune import consistency_inputs, keep_unfinished
from .types import (
    ADVANCED,
    MENU,
    PREFIX,
    LoraModel,
    PromptTokens,
    TuningOptions,
    file_input,
    prefix_input,
    saved_at,
    seed_input,
    strength_input,
    try_prefix,
)

CATEGORY = MENU + "tune"
NO_ADVICE = "advise_learning_rate is off."


class TunePromptTokens(Node):
    """Prompt tokens learned on one clip."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "TunePromptTokens",
            display_name="Tune Prompt Tokens",
            category=CATEGORY,
            description="Learns tokens that stand before the text of any prompt and carry what this clip looks like: "
            "some for all frames, some for each. The model stays as it is, so that a file of some kilobytes is all "
            "that is learned; with rank above 0 also a small LoRA. After the prompt adapters of arXiv 2504.16016.",
            is_experimental=True,  # the benchmark does not measure it
            search_aliases=["prompt learning", "textual inversion", "soft prompt", "adapter", "temporal consistency"],
            inputs=[
                io.Model.Input("model", tooltip="Model from Inflate UNet, with STAM/FFAM Patch or a tune if wanted."),
                io.Conditioning.Input("positive", tooltip="Source prompt: says what the clip shows."),
                io.Latent.Input("latent", tooltip="The clip: all frames in one batch, from VAE Encode."),
                io.Int.Input(
                    "shared_tokens", default=4, min=0, max=64, tooltip="Tokens that all frames see. 4 in the paper."
                ),
                io.Int.Input(
                    "frame_tokens",
                    default=2,
                    min=0,
                    max=64,
                    tooltip="Tokens of each frame, which it alone sees: what distinguishes it.",
                ),
                io.Int.Input(
                    "steps", default=300, min=1, max=MOST_STEPS, tooltip="Optimiser steps, on one noise level each."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-2,
                    min=1e-7,
                    max=1e6,
                    step=1e-7,
                    round=False,
                    tooltip="Of AdamW: 1e-3 to 1e-2. Of gradient descent, chosen in Tuning Options: what advice says.",
                ),
                seed_input("Of the tokens' beginning, the noise and the noise levels."),
                *consistency_inputs(),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=128,
                    **ADVANCED,
                    tooltip="Of low-rank adapters on all projections of both attentions, learned with the tokens and "
                    "given out as lora. 0 = none, the model stays as it is.",
                ),
                io.Boolean.Input(
                    "advise_learning_rate",
                    default=True,
                    **ADVANCED,
                    tooltip="Estimate how curved the loss is before and after, and say which learning rate is safe for "
                    "gradient descent. Takes the time of some 60 steps.",
                ),
                io.Combo.Input(
                    "on_interrupt",
                    options=["keep", "discard"],
                    default="keep",
                    **ADVANCED,
                    tooltip="Keep: what was learned before you cancel is saved as unfinished_00001_ in "
                    "models/consistent_video_prompt_tokens, to use or to resume.",
                ),
                io.String.Input(
                    "prompt_to_note",
                    default="",
                    **ADVANCED,
                    tooltip="Text noted in the file as its source prompt. Empty = none.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the diffusion loss counts: white is learned. One for all frames or one each.",
                ),
                PromptTokens.Input(
                    "resume",
                    optional=True,
                    tooltip="Prompt tokens to go on with, from Load Prompt Tokens. steps counts from their beginning.",
                ),
                TuningOptions.Input("options", optional=True, tooltip="Precision, memory, optimiser: Tuning Options."),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="From CLIP Vision Encode of all frames: each frame's tokens are then a learned projection "
                    "of its embedding, instead of learned by themselves.",
                ),
            ],
            outputs=[
                PromptTokens.Output("prompt_tokens", tooltip="What was learned, for Apply or Save Prompt Tokens."),
                LoraModel.Output(
                    "lora",
                    tooltip="The low-rank adapters as a LoRA, for ComfyUI's Load LoRA Model and Save LoRA Weights. "
                    "Empty at rank 0.",
                ),
                io.Image.Output("loss_plot", tooltip="Loss of each step and its running mean."),
                io.String.Output("advice", tooltip="A safe learning rate for gradient descent, and what proves it."),
                io.String.Output("report", tooltip="Settings, losses, seconds and peak memory as JSON."),
                io.LossMap.Output("loss_map", tooltip="Loss of each step, for ComfyUI's loss nodes."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        latent,
        shared_tokens,
        frame_tokens,
        consistency_blocks="middle",
        rank=0,
        advise_learning_rate=True,
        on_interrupt="keep",
        prompt_to_note="",
        mask=None,
        resume=None,
        options=None,
        clip_vision_output=None,
        **chosen,
    ) -> io.NodeOutput:
        start, progress = time.monotonic(), TuningProgress(cls.hidden.unique_id)
        settings = (options or TuneSettings()).changed(**chosen, consistency_part=consistency_blocks)
        inputs = TuneInputs(positive, latent, mask, resume, prompt=prompt_to_note)
        keep = keep_unfinished(ADAPTERS) if on_interrupt == "keep" else None
        prompt = PromptSettings(shared_tokens, frame_tokens, rank)
        embeddings = None if clip_vision_output is None else clip_vision_output.image_embeds
        found = tune_prompt(model, inputs, settings, prompt, progress, keep, advise_learning_rate, embeddings)
        info = found.adapter.info
        spent = {"seconds": round(time.monotonic() - start, 2), "peak_gib": round(progress.memory.look(), 2)}
        curvatures, smoothness = [asdict(curvature) for curvature in found.curvatures], found.smoothness
        advice = advice_text(found.curvatures, smoothness, info.get("rises")) if smoothness else NO_ADVICE
        measured = {"curvatures": curvatures, "smoothness": asdict(smoothness)} if smoothness else {}
        return io.NodeOutput(
            found.adapter,
            found.low_rank,
            plot_loss(info["loss"], {"consistency loss": info.get("consistency_loss")}),
            advice,
            to_json({**info, **measured, **spent}),
            {"loss": torch.tensor(info["loss"])},
        )


class ApplyPromptTokens(Node):
    """A prompt with learned tokens."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "ApplyPromptTokens",
            display_name="Apply Prompt Tokens",
            category=CATEGORY,
            description="Puts learned tokens before a prompt's text, for each frame: the shared ones, then its own. "
            "Any prompt takes them, so that what was learned under the source prompt serves the edit. Give the "
            "negative prompt tokens as well, at any strength: prompts of equal length are computed in one call.",
            search_aliases=["use prompt tokens", "soft prompt", "prompt adapter"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="Any prompt; its pooled output and the rest stay."),
                PromptTokens.Input("prompt_tokens", tooltip="From Tune or Load Prompt Tokens."),
                io.Latent.Input(
                    "latent",
                    tooltip="The clip or inversion to be sampled; its number of frames is taken. Where it is not the "
                    "one learned on, the frames' tokens are interpolated in time.",
                ),
                strength_input(
                    "shared_strength",
                    "Of the tokens that all frames see. 0 = the prompt's own padding instead.",
                ),
                strength_input("frame_strength", "Of each frame's own tokens. 0 = the prompt's own padding instead."),
            ],
            outputs=[io.Conditioning.Output("conditioning_with_tokens", tooltip="The prompt with tokens, by frame.")],
        )

    @classmethod
    def execute(cls, conditioning, prompt_tokens, latent, shared_strength, frame_strength) -> io.NodeOutput:
        frames = len(image_latents(latent))
        return io.NodeOutput(apply_prompt_tokens(conditioning, prompt_tokens, frames, shared_strength, frame_strength))


class SavePromptTokens(Node):
    """Prompt tokens become a file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "SavePromptTokens",
            display_name="Save Prompt Tokens",
            category=CATEGORY,
            description="Writes prompt tokens as one safetensors file below models/consistent_video_prompt_tokens, "
            "with how they were made and what resuming needs.",
            search_aliases=["export prompt tokens", "save soft prompt"],
            inputs=[
                PromptTokens.Input("prompt_tokens", tooltip="From Tune Prompt Tokens."),
                prefix_input("tokens"),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file lies.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix=None):
        return try_prefix(filename_prefix, PROMPT_TOKENS)

    @classmethod
    def execute(cls, prompt_tokens, filename_prefix) -> io.NodeOutput:
        return saved_at(ADAPTERS.write(prompt_tokens, filename_prefix))


class LoadPromptTokens(Node):
    """A file becomes prompt tokens."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "LoadPromptTokens",
            display_name="Load Prompt Tokens",
            category=CATEGORY,
            description="Reads prompt tokens that Save Prompt Tokens wrote. A damaged file or one of another kind is "
            "refused.",
            search_aliases=["import prompt tokens"],
            inputs=[file_input("prompt_tokens_name", PROMPT_TOKENS)],
            outputs=[PromptTokens.Output("prompt_tokens", tooltip="For Apply Prompt Tokens, or to resume.")],
        )

    @classmethod
    def fingerprint_inputs(cls, prompt_tokens_name):
        return stamp(PROMPT_TOKENS, prompt_tokens_name)

    @classmethod
    def execute(cls, prompt_tokens_name) -> io.NodeOutput:
        return io.NodeOutput(ADAPTERS.read(prompt_tokens_name))
