"""STAM/FFAM Patch."""

from comfy_api.latest import io

from ..modules.clip_model.host.attach import attach
from ..modules.clip_model.methods import AS_PRESET, EI2, NORMS, PRESETS, SPATIAL_KINDS, TEMPORAL_KINDS, method
from .types import MENU, PREFIX, part_input


class STAMFFAMPatch(io.ComfyNode):
    """Attention across the frames of a clip."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=PREFIX + "STAMFFAMPatch",
            display_name="STAM/FFAM Patch",
            category=MENU + "model",
            description="Connects the frames of an inflated model: self-attention looks at the other frames, and a "
            "temporal module follows each block's feed-forward. EI² (Zhang et al., NeurIPS 2023) or its ancestor "
            "Tune-A-Video (Wu et al., ICCV 2023). The temporal module does next to nothing until One-Shot Tune has "
            "trained it; the attention works at once.",
            search_aliases=["EI2", "Tune-A-Video", "temporal attention", "frame attention", "video consistency"],
            inputs=[
                io.Model.Input("model", tooltip="Model from Inflate UNet."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=EI2,
                    tooltip="EI²: fine-coarse frame attention and shift-restricted temporal attention. Tune-A-Video: "
                    "attention to the first and the previous frame, plain temporal attention. Full attention: EI² with "
                    "every token of every frame, slow and large. Per frame: nothing is attached.",
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
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where in sampling both begin to act, 0 = pure noise. Inversion follows the same noise "
                    "levels; tuning is not limited by it.",
                    optional=True,
                    advanced=True,
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where in sampling both cease to act, 1 = the clean clip.",
                    optional=True,
                    advanced=True,
                ),
                io.Combo.Input(
                    "spatial",
                    options=[AS_PRESET, *SPATIAL_KINDS],
                    default=AS_PRESET,
                    tooltip="Self-attention instead of the preset's: FFAM (EI²), sparse-causal (Tune-A-Video), "
                    "full, key-frame (ControlVideo: all frames attend to the first), or per frame.",
                    optional=True,
                    advanced=True,
                ),
                io.Combo.Input(
                    "temporal",
                    options=[AS_PRESET, *TEMPORAL_KINDS],
                    default=AS_PRESET,
                    tooltip="Temporal module instead of the preset's.",
                    optional=True,
                    advanced=True,
                ),
                io.Combo.Input(
                    "norm",
                    options=[AS_PRESET, *NORMS],
                    default=AS_PRESET,
                    tooltip="Norm of the temporal module, for EI²'s ablation: instance centering is STAM's, layer norm "
                    "without affine Tune-A-Video's; the affine of layer norm is learned.",
                    optional=True,
                    advanced=True,
                ),
                io.Combo.Input(
                    "spectral_norm",
                    options=[AS_PRESET, "on", "off"],
                    default=AS_PRESET,
                    tooltip="Whether the temporal module's value and output matrices are divided by their largest "
                    "singular value, for EI²'s ablation: on in STAM, off in Tune-A-Video.",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output("clip_model", tooltip="The clip model with connected frames.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        preset,
        r,
        downsample,
        attention_strength,
        temporal_strength,
        start_percent=0.0,
        end_percent=1.0,
        spatial=AS_PRESET,
        temporal=AS_PRESET,
        norm=AS_PRESET,
        spectral_norm=AS_PRESET,
    ) -> io.NodeOutput:
        chosen = method(preset, r, downsample, spatial, temporal, norm, spectral_norm)
        strengths = (attention_strength, temporal_strength)
        return io.NodeOutput(attach(model, *chosen, *strengths, percents=(start_percent, end_percent)))
