"""A copy of a model to tune, of which nothing is left afterwards."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...clip_model.host.family import require_unet
from ..frozen import can_forget, convolve
from ..settings import Precision
from .attached import check_attached, naming_patches

HALVES = (torch.float16, torch.bfloat16)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_tunable(model: ModelPatcher) -> None:
    """Refuse models that cannot be tuned.

    Raises:
        ValueError: the model's loader cannot load it again, its weights are too coarse, or it carries what would have
            no effect.
    """
    require_unet(
        model,
        "Tuning, or a measurement on a private copy (One-Shot Tune, Tune Prompt, Null-Text Optimization, Inversion "
        "Stability),",
        "Leave that node out: the inversion alone edits a clip.",
    )
    check_attached(model)
    if model.cached_patcher_init is None:
        raise ValueError(
            "model comes from a loader that cannot load it a second time, which tuning needs. "
            "Load it with Load Checkpoint, Load Diffusion Model or Load Demo Model."
        )
    check_precision(model)


def check_precision(model: ModelPatcher) -> None:
    """Refuse models whose weights are too coarse for the changes of a tuning."""
    for weight in model.model.diffusion_model.parameters():
        if isinstance(weight.data, QuantizedTensor) or weight.dtype.itemsize < 2:
            is_packed = isinstance(weight.data, QuantizedTensor)  # which claims the type it is unpacked to
            kind = "a packed layout" if is_packed else str(weight.dtype).removeprefix("torch.")
            raise ValueError(
                f"model has quantised weights ({kind}), in which the small changes of tuning would be rounded away. "
                "Load the checkpoint in fp16, bf16 or fp32 (weight_dtype default, without --fp8 options)."
            )


@contextmanager
def private_copy(model: ModelPatcher) -> Iterator[ModelPatcher]:
    """Yield a copy of a model with weights of its own, wholly on the device and ready for gradients.

    LoRA patches of the model are part of the copy's weights. The host takes kernels that have a backward pass
    meanwhile. Afterwards the copy is unloaded, whatever was raised.

    Raises:
        ValueError: ComfyUI does not let the model be loaded wholly, or what other nodes attached to it fails.
    """
    copy = model.clone(disable_dynamic=True, force_deepcopy=True)
    in_training = comfy.model_management.in_training
    try:
        comfy.model_management.in_training = True
        comfy.model_management.load_models_gpu([copy], force_full_load=True)
        if copy.model.model_lowvram:
            raise ValueError("model cannot be tuned while ComfyUI runs with --novram. Start ComfyUI without it.")
        with naming_patches(model):
            yield copy
    finally:
        comfy.model_management.in_training = in_training
        comfy.model_management.unload_model_and_clones(copy)
        for layer in copy.model.diffusion_model.modules():
            vars(layer).pop("forward", None)  # which holds its layer: the copy would wait for the garbage collector
        gc.collect()  # what was tuned holds itself in a circle
        comfy.model_management.soft_empty_cache()


def choose_precision(precision: Precision, model: ModelPatcher, device: torch.device) -> Precision:
    """Return what "auto" means: fp32 for a float32 model and on a CPU, else bf16 where the device has it, else fp16."""
    if precision != "auto":
        return precision
    if device.type != "cuda" or model.model.get_dtype_inference() not in HALVES:
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def computing_in(precision: Precision, copy: ModelPatcher) -> AbstractContextManager:
    """Return the context to run a copy's UNet in, whose frozen weights are then held in what it computes in.

    Call it after what is learned is in its place, which is float32 always.
    """
    unet = copy.model.diffusion_model
    dtype = DTYPES[precision]
    for weight in unet.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(dtype)
    unet.dtype, copy.model.manual_cast_dtype = dtype, None
    return prepare(unet, dtype, copy.load_device)


def prepare(unet: nn.Module, dtype: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Let a UNet hold little for the backward pass, and return the context to run it in."""
    forget_inputs(unet)
    if dtype == torch.float32:
        return nullcontext()
    keep_norms_in(dtype, unet)
    # Autocast would keep its casts of what is learned, which a call takes once.
    return torch.autocast(device.type, dtype, cache_enabled=False)


def forget_inputs(unet: nn.Module) -> None:
    """Let a UNet's convolutions keep nothing of their inputs for the backward pass, where their weights are frozen."""
    for layer in unet.modules():
        if isinstance(layer, nn.Conv2d) and can_forget(layer) and not getattr(layer, "weight_function", ()):
            layer.forward = partial(convolve, layer, layer.forward)  # type: ignore[method-assign]


def keep_norms_in(dtype: torch.dtype, unet: nn.Module) -> None:
    """Let a UNet's norms take and give a half precision under autocast, as in sampling.

    Their kernels sum in float32 either way. Autocast by itself has them take and give float32 on a GPU, and what they
    take is kept for the backward: twice the memory, and a copy where there need be none.
    """
    for module in unet.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            module.forward = partial(normalise_in, dtype, module.forward)  # type: ignore[method-assign]


def normalise_in(dtype: torch.dtype, norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a norm in a precision, whatever autocast would do."""
    with torch.autocast(x.device.type, enabled=False):
        return norm(x.to(dtype))


@contextmanager
def reproducible() -> Iterator[None]:
    """Make the backward passes of attention and convolutions reproducible, where that costs little.

    On a CPU they are. On a GPU attention's are where the host was started with --deterministic, which alone prepares
    cuBLAS for it; the host then merely warns of kernels that are not, here they are not used.
    """
    mode, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(mode)
        yield
    finally:
        torch.backends.cudnn.deterministic = cudnn
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
