"""Models, tunes and files to exchange with Tune-A-Video."""

from pathlib import Path

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from safetensors.torch import save_file
from torch import Tensor

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import TUNE_A_VIDEO_PRESET, method
from consistent_video.modules.tuning import tune_a_video as convert
from consistent_video.modules.tuning.host.tune_a_video import export_tune_a_video, import_tune_a_video, unet_weights
from consistent_video.modules.tuning.weights import Tune

from ...small import UNET, Small, lively_weights, make_model

NAME = "clip/unet/diffusion_pytorch_model"
# As SD1.5's: depth 1, and none in the deepest level.
TAV_UNET = {**UNET, "transformer_depth": [1, 0], "transformer_depth_output": [1, 1, 0, 0]}
BLOCK = "diffusion_model.input_blocks.1.1.transformer_blocks.0"


def small_model(kind: type = Small, unet: dict = TAV_UNET, dtype: torch.dtype = torch.float32) -> ModelPatcher:
    return make_model(kind, unet, lively_weights, dtype)


def draw_tune(model: ModelPatcher, preset: str = TUNE_A_VIDEO_PRESET) -> Tune:
    """Return a tune with random weights that matter."""
    spatial, temporal = method(preset, 2, "area")
    bank = clip_settings(attach(inflate(model), spatial, temporal)).temporal
    shapes = {key: value.shape for key, value in bank.tensors().items()}
    for key, value in model.model.state_dict().items():
        if key.endswith("to_q.weight"):
            shapes[key.replace(".weight", ".diff")] = value.shape
    tensors = {key: 0.3 * value for key, value in lively_weights(shapes, torch.float32).items()}
    info = {"spatial": vars(spatial), "spatial_strength": 1.0, "temporal": temporal.noted(), "temporal_strength": 1.0}
    return Tune(tensors, info)


def write(weights: dict, folder: Path, ending: str = ".safetensors") -> str:
    """Write a file as Tune-A-Video does; returns its name in the folder."""
    path = folder / (NAME + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return NAME + ending


def export(model: ModelPatcher, tune: Tune, prefix: str = "swan") -> Path:
    with torch.inference_mode():
        return Path(export_tune_a_video(model, tune, prefix))


def read(model: ModelPatcher, name: str) -> tuple[Tune, str]:
    with torch.inference_mode():
        return import_tune_a_video(model, name)


def read_back(model: ModelPatcher, exported: Path, folder: Path) -> tuple[Tune, str]:
    return read(model, str((exported / "unet" / convert.FILE).relative_to(folder)))


def assert_close(tune: Tune, expected: Tune, **tolerance: float) -> None:
    assert tune.tensors.keys() == expected.tensors.keys()
    for key, value in expected.tensors.items():
        torch.testing.assert_close(tune.tensors[key], value, **tolerance)


def is_temporal(key: str) -> bool:
    return ".attn_temp." in key or ".norm_temp." in key


def make_file(model: ModelPatcher) -> dict[str, Tensor]:
    """Return a UNet of Tune-A-Video by diffusers' own names: the model's, its queries changed and modules added."""
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=TAV_UNET["context_dim"],
    )
    table, weights = comfy.utils.unet_to_diffusers(TAV_UNET), unet_weights(model)
    unet.load_state_dict({theirs: weights[ours] for theirs, ours in table.items() if ours in weights}, strict=True)
    file, shapes = {key: value.clone() for key, value in unet.state_dict().items()}, {}
    for path, block in unet.named_modules():
        if isinstance(block, BasicTransformerBlock):
            dim = block.norm1.normalized_shape[0]
            shapes |= {f"{path}.attn_temp.{name}.weight": (dim, dim) for name in ("to_q", "to_k", "to_v", "to_out.0")}
            shapes[f"{path}.attn_temp.to_out.0.bias"] = (dim,)
            file |= {f"{path}.norm_temp.weight": torch.ones(dim), f"{path}.norm_temp.bias": torch.zeros(dim)}
            for number, name in enumerate(("attn1", "attn2")):
                file[f"{path}.{name}.to_q.weight"] += 0.1 * (number + 1)
    return file | lively_weights({key: torch.Size(shape) for key, shape in shapes.items()}, torch.float32)


def lora_of(model: ModelPatcher) -> dict[str, Tensor]:
    key, generator = f"{BLOCK}.attn1.to_q", torch.Generator().manual_seed(10)
    return {
        f"{key}.lora_up.weight": torch.randn(32, 2, generator=generator),
        f"{key}.lora_down.weight": torch.randn(2, 32, generator=generator),
        f"{BLOCK}.attn2.to_k.diff": torch.randn(32, TAV_UNET["context_dim"], generator=generator),
    }
