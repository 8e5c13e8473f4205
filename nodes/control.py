"""Attention Control."""

from typing import get_args

from comfy_api.latest import io

from ..modules.attention_control.host.call import ControlSettings, Cross, SelfAttention
from ..modules.attention_control.host.control import attach_control
from ..modules.attention_control.host.prompts import read_prompts
from ..modules.attention_control.recipe import RECIPES, Name
from .node import Node
from .types import ADVANCED, MENU, PREFIX, part_input


class AttentionControl(Node):
    """The edit's attention follows the source clip's."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "AttentionControl",
            display_name="Attention Control",
            category=MENU + "model",
            description="Lets the attention of an edit follow the source clip's, so that shape and motion stay: "
            "prompt-to-prompt (Hertz et al. 2022) as Video-P2P and FateZero use it. At each step the UNet is evaluated "
            "on the source as well, as the inversion went through it; nothing is stored beyond the step.",
            search_aliases=["prompt-to-prompt", "FateZero", "Video-P2P", "attention replace", "local blend"],
            inputs=[
                io.Model.Input("model", tooltip="The clip model that the edit is sampled with."),
                io.Latent.Input("inversion", tooltip="The one that Smooth Sample begins from."),
                io.Conditioning.Input("source_positive", tooltip="Prompt of the source clip, encoded."),
                io.Clip.Input("clip", tooltip="Text encoder, whose tokens align the two prompts."),
                io.String.Input("source_text", multiline=True, tooltip="Prompt of the source clip, the same text."),
                io.String.Input("edit_text", multiline=True, tooltip="Prompt of the edit, the text that is encoded."),
                io.Combo.Input(
                    "cross",
                    options=list(get_args(Cross)),
                    default="refine",
                    tooltip="Maps of cross-attention. refine: those of the words in both prompts are the source's. "
                    "replace: all are, word by word, for prompts of equally many words. none: the edit's own.",
                ),
                part_input("cross_end", 0.8, "Part of the steps until which cross and the weight of words act."),
                part_input(
                    "self_end",
                    0.5,
                    "Part of the steps until which self-attention follows the source's. Lower where the shape is to "
                    "change; 0 = never.",
                ),
                io.Combo.Input(
                    "self_attention",
                    options=list(get_args(SelfAttention)),
                    default="replace",
                    **ADVANCED,
                    tooltip="replace: queries and keys are the source's everywhere. fusion: outside the mask only "
                    "(FateZero).",
                ),
                io.Boolean.Input(
                    "local_blend",
                    default=False,
                    **ADVANCED,
                    tooltip="Keep the source itself outside the mask, from a fifth of the steps on. For Smooth "
                    "Sample with eta 0.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    **ADVANCED,
                    tooltip="Comma-separated words of the edited prompt to weight. Empty = none.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.1,
                    **ADVANCED,
                    tooltip="Factor of these words' maps: above 1 stronger, below weaker, 1 = as they are.",
                ),
                io.String.Input(
                    "mask_words",
                    default="",
                    **ADVANCED,
                    tooltip="Comma-separated words of either prompt, whose cross-attention makes the mask of fusion "
                    "and local blend. Empty = the words that are only in one of the prompts.",
                ),
                part_input(
                    "mask_threshold",
                    0.3,
                    "Part of a frame's largest attention from which a place is in the mask. Higher = smaller.",
                    **ADVANCED,
                ),
                io.Combo.Input(
                    "recipe",
                    options=list(get_args(Name)),
                    default="general",
                    **ADVANCED,
                    tooltip="Whose code decides the rest. general: this pack's reading of prompt-to-prompt, for every "
                    "clip model. FateZero: attention of the inversion's own calls, the source's mask of one step. "
                    "Video-P2P: attention over frames follows, not attention within them; needs temporal modules.",
                ),
            ],
            outputs=[io.Model.Output("clip_model", tooltip="For Smooth Sample. The input is unchanged.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        inversion,
        source_positive,
        clip,
        source_text,
        edit_text,
        words="",
        weight=1.0,
        mask_words="",
        mask_threshold=0.3,
        recipe="general",
        **settings,
    ) -> io.NodeOutput:
        by_position = RECIPES[recipe].by_position
        prompts = read_prompts(clip, source_text, edit_text, words, weight, mask_words, by_position)
        control = ControlSettings(threshold=mask_threshold, recipe=recipe, **settings)
        return io.NodeOutput(attach_control(model, inversion, source_positive, prompts, control))
