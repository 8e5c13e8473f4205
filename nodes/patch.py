"""STAM/FFAM Patch."""

from collections.abc import Sequence

from comfy_api.latest import io

from ..modules.clip_model.host.attach import attach
from ..modules.clip_model.methods import AS_PRESET, EI2, NORMS, PRESETS, SPATIAL_KINDS, TEMPORAL_KINDS, method
from .node import Node
from .types import ADVANCED, MENU, PREFIX, part_input


def instead_input(name: str, kinds: Sequence[str], tooltip: str) -> io.Input:
    """Return an input for a part that may be used instead of the preset's."""
    return io.Combo.Input(name, options=[AS_PRESET, *kinds], default=AS_PRESET, tooltip=tooltip, **ADVANCED)


class STAMFFAMPatch(Node):
    """Attention across the frames of a clip."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "STAMFFAMPatch",
            display_name="STAM/FFAM Patch",
            category=MENU + "model",
            description="Connects the frames of an inflated model: self-attention looks at the other frames, and a "
            "temporal module stands in each block. EI² (Zhang et al., NeurIPS 2023), its ancestor Tune-A-Video (Wu et "
            "al., ICCV 2023) or ControlVideo (Zhao et al., 2023). The temporal module does next to nothing until "
            "One-Shot Tune has trained it; the attention works at once.",
            search_aliases=[
                "EI2",
                "Tune-A-Video",
                "ControlVideo",
                "temporal attention",
                "frame attention",
                "video consistency",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Model from Inflate UNet. With Stable Diffusion 3, Flux, Qwen-Image or Z-Image set "
                    "temporal to none: they have no temporal module.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=EI2,
                    tooltip="EI²: fine-coarse frame attention and shift-restricted temporal attention. Tune-A-Video: "
                    "attention to the first and the previous frame, plain temporal attention. ControlVideo: attention "
                    "to the first frame, temporal attention after self-attention. Full attention: EI² with every "
                    "token of every frame, slow and large. Per frame: nothing is attached.",
                ),
                io.Int.Input(
                    "r",
                    default=4,
                    min=1,
                    max=8,
                    tooltip="FFAM only: each frame sees all its own tokens and those of the others at 1/r of width and "
                    "height. 1 = all of them (full attention: slow, much memory), 2 finer, 4 faster. Where a feature "
                    "map is smaller than r, its size is taken.",
                ),
                io.Combo.Input(
                    "downsample",
                    options=["area", "strided", "bilinear"],
                    default="area",
                    tooltip="FFAM only: how the other frames' tokens are shrunk. Area averages r x r tokens.",
                    advanced=True,
                ),
                part_input(
                    "attention_strength",
                    1.0,
                    "Weight of the attention across frames against the model's own. 0 = the model's own.",
                ),
                part_input(
                    "temporal_strength", 1.0, "Factor of what the temporal module adds. 0 = no temporal module."
                ),
                part_input(
                    "start_percent",
                    0.0,
                    "Where in sampling both begin to act, 0 = pure noise. Inversion follows the same noise "
                    "levels; tuning is not limited by it.",
                    step=0.001,
                    **ADVANCED,
                ),
                part_input(
                    "end_percent",
                    1.0,
                    "Where in sampling both cease to act, 1 = the clean clip.",
                    step=0.001,
                    **ADVANCED,
                ),
                instead_input(
                    "spatial",
                    SPATIAL_KINDS,
                    "Self-attention instead of the preset's: FFAM (EI²), sparse-causal (Tune-A-Video), full (Vid2Vid-"
                    "zero's dense attention), to one frame alone, the first (key-frame: ControlVideo; first-frame: "
                    "Text2Video-Zero, Video-P2P) or the middle one (FateZero), or per frame.",
                ),
                instead_input("temporal", TEMPORAL_KINDS, "Temporal module instead of the preset's."),
                instead_input(
                    "norm",
                    NORMS,
                    "Norm of the temporal module, for EI²'s ablation: instance centering is STAM's, layer norm "
                    "without affine Tune-A-Video's, none ControlVideo's; the affine of layer norm is learned.",
                ),
                instead_input(
                    "spectral_norm",
                    ("on", "off"),
                    "Whether the temporal module's value and output matrices are divided by their largest "
                    "singular value, for EI²'s ablation: on in STAM, off in Tune-A-Video and ControlVideo.",
                ),
            ],
            outputs=[io.Model.Output("clip_model", tooltip="The clip model with connected frames.")],
        )

    @classmethod
    def execute(
        cls, model, preset, attention_strength, temporal_strength, start_percent=0.0, end_percent=1.0, **parts
    ) -> io.NodeOutput:
        strengths = (attention_strength, temporal_strength)
        return io.NodeOutput(attach(model, *method(preset, **parts), *strengths, percents=(start_percent, end_percent)))
