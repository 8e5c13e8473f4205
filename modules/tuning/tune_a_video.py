"""Tunes as files of the Tune-A-Video project (Wu et al., ICCV 2023): UNets in diffusers' names, whole."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..clip_model.attention.spatial import SpatialConfig
from ..clip_model.methods import name_of
from ..clip_model.temporal import TUNE_A_VIDEO
from ..files.strict_json import to_json
from ..files.whole import appearing
from .weights import Tune, hash_tensors

PREFIX = "diffusion_model."
QUERIES = ("attn1.to_q", "attn2.to_q")
TEMPORAL = {  # a temporal module's weights: in a tune, and in a file
    "attn_temp.to_q.weight": "attn_temp.to_q.weight",
    "attn_temp.to_k.weight": "attn_temp.to_k.weight",
    "attn_temp.to_v.weight": "attn_temp.to_v.weight",
    "attn_temp.to_out.weight": "attn_temp.to_out.0.weight",
    "attn_temp.to_out.bias": "attn_temp.to_out.0.bias",
    "attn_temp.norm.weight": "norm_temp.weight",
    "attn_temp.norm.bias": "norm_temp.bias",
}
SPATIAL = SpatialConfig("sparse-causal")
NORMS = ("layer norm", "layer norm without affine")
ALWAYS = {  # in the configuration of a Stable Diffusion UNet of that project
    "_class_name": "UNet3DConditionModel",
    "_diffusers_version": "0.11.1",  # which it requires
    "sample_size": 64,  # of a latent where its pipeline is given no size
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock3DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
}
FILE = "diffusion_pytorch_model.safetensors"

Weights = Mapping[str, Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Apart:
    """How far the frozen weights of a file are from a model's.

    Attributes:
        keys: of the model, those that differ by more than the rounding to 16 bits.
        relative: norm of the difference of all frozen weights, relative to the model's.
    """

    keys: tuple[str, ...]
    relative: float


def block_paths(keys: Iterable[str]) -> list[str]:
    """Return the paths of a UNet's transformer blocks from the keys of its weights."""
    end = ".attn1.to_q.weight"
    return [key.removesuffix(end) for key in keys if key.endswith(end)]


def file_names(table: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    """Return the names in a file of a UNet's weights and of those of its temporal modules.

    Args:
        table: the host's table, its names by diffusers'; may name what the UNet has not.
        keys: of the UNet's weights, in the host's names.

    Raises:
        ValueError: the table has no name for a weight.
    """
    known = {ours: theirs for theirs, ours in table.items()}
    names: dict[str, str] = {}
    for key in keys:
        if key not in known:
            raise ValueError(
                f"model has the weight {key}, for which diffusers has no name, so that Tune-A-Video cannot know it. "
                "Load a checkpoint of the Stable Diffusion 1.x family."
            )
        names[key] = known[key]
    for path in block_paths(names):
        block = names[f"{path}.norm1.weight"].removesuffix(".norm1.weight")
        names |= {f"{path}.{ours}": f"{block}.{theirs}" for ours, theirs in TEMPORAL.items()}
    return names


def file_shapes(unet: Weights) -> dict[str, Shape]:
    """Return the shapes of a UNet's weights and of those of its temporal modules, by the host's names."""
    shapes = {key: tuple(value.shape) for key, value in unet.items()}
    for path in block_paths(unet):
        dim = len(unet[f"{path}.norm1.weight"])
        for name in TEMPORAL:
            is_vector = ".norm." in name or name.endswith("bias")
            shapes[f"{path}.{name}"] = (dim,) if is_vector else (dim, dim)
    return shapes


def check_file(weights: Weights, names: Mapping[str, str], shapes: Mapping[str, Shape], source: str) -> None:
    """Refuse what is not a UNet of Tune-A-Video, or one of another structure.

    Args:
        weights: of the file.
        names: in the file, by the host's.
        shapes: expected, by the host's names.
        source: the file's name.

    Raises:
        ValueError: says which key is the first to differ, and both shapes.
    """
    if not any(".attn_temp." in key and not key.startswith(PREFIX) for key in weights):
        raise ValueError(
            f"{source} is not a UNet of Tune-A-Video: it has no temporal attention (attn_temp). Choose the file that "
            "its training wrote, unet/diffusion_pytorch_model; a file of Save Tune belongs into Load Tune."
        )
    expected = {names[key]: shape for key, shape in shapes.items()}
    for key in [*expected, *weights]:
        mine, its = expected.get(key), tuple(weights[key].shape) if key in weights else None
        if mine != its:
            raise ValueError(
                f"{source} does not fit this model: {key} is {its or 'absent'} in the file and {mine or 'absent'} in "
                "the model. Load the checkpoint that it was tuned from."
            )


def rounding(norm: float, size: int, dtype: torch.dtype) -> float:
    """Return the largest norm of what rounding takes from numbers, by their norm and how many they are."""
    kind = torch.finfo(dtype)
    return kind.eps * (norm + kind.smallest_normal * size**0.5)


def compare_frozen(weights: Weights, unet: Weights, names: Mapping[str, str]) -> Apart:
    """Compare what Tune-A-Video does not train, in float32; rounding to 16 bits or either's type is no difference."""
    apart, difference, size = [], 0.0, 0.0
    for key, ours in unet.items():
        if key.removesuffix(".weight").endswith(QUERIES):
            continue
        theirs = weights[names[key]]
        norm, off = float(ours.float().norm()), float((theirs.float() - ours.float()).norm())
        types = {ours.dtype, theirs.dtype, torch.float16}
        if not off <= sum(rounding(norm, ours.numel(), dtype) for dtype in types):
            apart.append(key)
        difference, size = difference + off**2, size + norm**2
    return Apart(tuple(apart), (difference / size) ** 0.5 if size else difference**0.5)


def to_tune(weights: Weights, unet: Weights, names: Mapping[str, str], prediction: str, source: str) -> Tune:
    """Return the tune that a checked file of a name holds, against the weights of the model it was tuned from."""
    tensors = {}
    for path in block_paths(unet):
        for name in QUERIES:
            key = f"{path}.{name}.weight"
            tensors[f"{PREFIX}{path}.{name}.diff"] = weights[names[key]].float() - unet[key].float()
        for name in TEMPORAL:
            tensors[f"{PREFIX}{path}.{name}"] = weights[names[f"{path}.{name}"]].to(torch.float32, copy=True)
    affine = {key: value for key, value in tensors.items() if ".norm." in key}
    temporal = replace(TUNE_A_VIDEO, norm="layer norm")
    if all(bool((value == key.endswith("weight")).all()) for key, value in affine.items()):
        temporal = TUNE_A_VIDEO
        tensors = {key: value for key, value in tensors.items() if key not in affine}
    info = {
        "preset": name_of(SPATIAL, temporal),
        "frames": 0,
        "spatial": asdict(SPATIAL),
        "spatial_strength": 1.0,
        "temporal": temporal.noted(),
        "temporal_strength": 1.0,
        "prediction": prediction,
        "imported_from": source,
        "weights_hash": hash_tensors(tensors.values()),
    }
    return Tune(tensors, info)


def describe_import(tune: Tune, apart: Apart) -> str:
    """Return what a user should know of an import, a sentence in each line."""
    source, norm = tune.info["imported_from"], tune.info["temporal"]["norm"]
    queries = sum(key.endswith(".diff") for key in tune.tensors)
    lines = [f"{source}: {queries} query projections, {queries // len(QUERIES)} temporal modules with {norm}."]
    if apart.keys:
        lines.append(
            f"WARNING: it was tuned from another checkpoint than this model, or trained more than Tune-A-Video does: "
            f"{len(apart.keys)} weights that should be frozen differ, the first is {apart.keys[0]}; the difference of "
            f"all frozen weights is {apart.relative:.2%} of their size. Only query projections and temporal modules "
            "are imported. For what that training saw, load the checkpoint it began with."
        )
    else:
        lines.append("Its frozen weights are those of the model.")
    return "\n".join(lines)


def check_exportable(info: Mapping[str, Any]) -> None:
    """Refuse a tune that Tune-A-Video's code could not run as it was made, saying what it does not know."""
    spatial = info["spatial"] or {"kind": "per frame"}
    temporal = info["temporal"] or {"norm": NORMS[0], "spectral": False}
    unlike = {
        f"self-attention {spatial['kind']} (it has {SPATIAL.kind})": spatial["kind"] != SPATIAL.kind,
        "blocks without a temporal module": not info["temporal"],
        f"{temporal['norm']} in a temporal module (it has layer norm)": temporal["norm"] not in NORMS,
        "spectral norm": temporal["spectral"],
        "a temporal module after self-attention": temporal.get("follows") == "self-attention",
        "strengths other than 1": (info["spatial_strength"], info["temporal_strength"]) != (1, 1),
        "parts of sampling": tuple(info.get("percents", (0, 1))) != (0, 1),
    }
    foreign = [what for what, is_there in unlike.items() if is_there]
    if foreign:
        raise ValueError(
            f"The tune cannot be exported: Tune-A-Video's code does not know {', '.join(foreign)}. Tune with the "
            "preset Tune-A-Video of STAM/FFAM Patch and its other settings as they are by default."
        )


def check_structure(unet: Mapping[str, Any]) -> None:
    """Refuse structures, in the host's configuration, that Tune-A-Video's UNet cannot have."""
    blocks, middle = unet["num_res_blocks"], unet["transformer_depth_middle"]
    depths = unet["transformer_depth"], unet["transformer_depth_output"]
    sides = zip(depths, (blocks[0], blocks[0] + 1), strict=True)
    levels = [set(side[first : first + size]) for side, size in sides for first in range(0, len(side), size)]
    unlike = {f"{key} = {unet.get(key)}": bool(unet.get(key)) for key in ("num_classes", "disable_self_attentions")} | {
        f"{blocks} residual blocks in its levels": set(blocks) != {blocks[0]},
        f"transformers of depths {depths[0]} and {depths[1]}": any(level not in ({0}, {1}) for level in levels),
        f"a transformer of depth {middle} in the middle": middle != 1,
    }
    foreign = [what for what, is_there in unlike.items() if is_there]
    if foreign:
        raise ValueError(
            f"model cannot be exported: it has {', '.join(foreign)}, which Tune-A-Video's UNet cannot have. Load a "
            "checkpoint of the Stable Diffusion 1.x or 2.x family."
        )


def file_config(unet: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of Tune-A-Video's UNet3DConditionModel from the host's; ValueError where it has none."""
    check_structure(unet)
    channels, blocks = [unet["model_channels"] * factor for factor in unet["channel_mult"]], unet["num_res_blocks"][0]
    width = unet.get("num_head_channels", -1)  # of a head; "attention_head_dim" is the number of heads
    down, up = unet["transformer_depth"][::blocks], unet["transformer_depth_output"][:: -blocks - 1]
    return {
        **ALWAYS,
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "down_block_types": ["CrossAttnDownBlock3D" if depth else "DownBlock3D" for depth in down],
        "up_block_types": ["CrossAttnUpBlock3D" if depth else "UpBlock3D" for depth in up],
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "cross_attention_dim": unet["context_dim"],
        "attention_head_dim": unet["num_heads"] if width == -1 else [channel // width for channel in channels],
        "use_linear_projection": bool(unet.get("use_linear_in_transformer")),
        "upcast_attention": unet.get("attn_precision") == torch.float32,
    }


def to_file(tune: Tune, unet: Weights, names: Mapping[str, str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of a file, all of one type, as that project's loader wants them.

    Raises:
        ValueError: the type cannot hold a weight.
    """
    weights = {names[key]: value.to(dtype, copy=True).contiguous() for key, value in unet.items()}
    for path in block_paths(unet):
        ones = torch.ones(len(unet[f"{path}.norm1.weight"]))
        identity = {"attn_temp.norm.weight": ones, "attn_temp.norm.bias": 0 * ones}
        for name in TEMPORAL:
            value = tune.tensors.get(f"{PREFIX}{path}.{name}", identity.get(name))
            assert value is not None, "keys were checked"
            weights[names[f"{path}.{name}"]] = value.to("cpu", dtype, copy=True).contiguous()
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(
                f"{name} has values that {str(dtype).removeprefix('torch.')} cannot hold. Load the checkpoint in fp32 "
                "(ComfyUI's option --force-fp32) and export again."
            )
    return weights


def save_unet(weights: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """Write a UNet as diffusers lays out a pipeline's; the folder appears whole or not at all.

    Args:
        weights: in the file's names.
        config: of the UNet.
        folder: to be made; the files lie in its folder `unet`.

    Raises:
        FileExistsError: the folder is there, or being written.
        OSError: it could not be written.
    """
    with appearing(folder, new=True) as unfinished:
        unet = unfinished / "unet"
        unet.mkdir(parents=True)
        save_file(dict(weights), unet / FILE, {"format": "pt"})
        (unet / "config.json").write_text(to_json(config, indent=2) + "\n", encoding="utf-8")
