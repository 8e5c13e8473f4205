"""One-shot tuning in the host: on a private copy of the model, which is gone afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import convert_cond
from comfy.samplers import encode_model_conds
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..attention import scaled_dot_product
from ..tuning import TuneSettings, tune
from ..weights import Tune
from .latent import clip_latent, prediction_of, sigma_table, to_model_latent
from .patch import KEY, ClipSettings, TemporalBank, clip_settings, transformer_blocks
from .progress import TuningProgress

HALVES = (torch.float16, torch.bfloat16)
NOT_TUNED_WITH = ("control", "mask", "area", "gligen", "hooks", "timestep_start", "start_percent", "end_percent")


@contextmanager
def private_copy(model: ModelPatcher) -> Iterator[ModelPatcher]:
    """Yield a copy of a model with weights of its own, wholly on the device and ready for gradients.

    LoRA patches of the model are part of the copy's weights. Afterwards it is unloaded, whatever was raised.

    Raises:
        ValueError: the model's loader cannot load it again.
    """
    if model.cached_patcher_init is None:
        raise ValueError(
            "model comes from a loader that cannot load it a second time, which tuning needs. "
            "Load it with Load Checkpoint, Load Diffusion Model or Load Demo Model."
        )
    copy = model.clone(disable_dynamic=True, force_deepcopy=True)
    try:
        comfy.model_management.load_models_gpu([copy], force_full_load=True)
        if copy.model.model_lowvram:
            raise ValueError("model cannot be tuned while ComfyUI runs with --novram. Start ComfyUI without it.")
        yield copy
    finally:
        comfy.model_management.unload_model_and_clones(copy)
        comfy.model_management.soft_empty_cache()


def autocast_for(model: ModelPatcher, device: torch.device):
    """Return the context to run a copy's UNet in: bfloat16 where a half-precision model's device has it."""
    dtype = model.model.get_dtype_inference()
    if dtype not in HALVES:
        return nullcontext()
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    unet = model.model.diffusion_model
    unet.float()
    unet.dtype, model.model.manual_cast_dtype = torch.float32, None
    return nullcontext()


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


def query_projections(unet: nn.Module) -> dict[str, nn.Linear]:
    """Replace both attentions' query projections of a copy by float32 ones that can be tuned; return them by key."""
    projections = {}
    for block in transformer_blocks(unet):
        for name in ("attn1", "attn2"):
            attention = unet.get_submodule(f"{block.path}.{name}")
            weight = attention.to_q.weight.detach()
            linear = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False, device=weight.device)
            linear.weight.data.copy_(weight)
            attention.to_q = linear
            projections[f"diffusion_model.{block.path}.{name}.to_q"] = linear
    return projections


def temporal_copy(unet: nn.Module, model: ModelPatcher, device: torch.device) -> TemporalBank | None:
    """Return the model's temporal modules as float32 ones that can be tuned, or None."""
    attached = clip_settings(model).temporal
    if attached is None:
        return None
    bank = TemporalBank(transformer_blocks(unet), attached.config, attached.tensors())
    for module in bank.bank:
        module.tune_spectral_norm()
    return bank.to(device).train()


def sdpa_override(_host_kernel: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
    """Stand in for the host's attention kernel, which need not have a backward."""
    return scaled_dot_product(q, k, v, heads)


def training_options(model: ModelPatcher, bank: TemporalBank | None) -> dict[str, Any]:
    """Return the transformer options of a training call: the model's own, with the given temporal modules."""
    options = comfy.patcher_extension.copy_nested_dicts(model.model_options["transformer_options"])
    options[KEY] = replace(options[KEY], temporal=bank)
    options["optimized_attention_override"] = sdpa_override
    options["cond_or_uncond"] = [0]
    return options


def condition(model: ModelPatcher, positive: list, x_0: Tensor) -> dict[str, Any]:
    """Return the UNet's keyword arguments for a conditioning, one row for each frame."""
    conds = encode_model_conds(model.model.extra_conds, convert_cond(positive), x_0, x_0.device, "positive")
    if len(conds) != 1:
        raise ValueError(f"positive has {len(conds)} conditionings; tuning takes one prompt for the whole clip.")
    ignored = [key for key in NOT_TUNED_WITH if key in conds[0]]
    if ignored:
        raise ValueError(
            f"positive carries {', '.join(ignored)}, which tuning does not use. Connect the plain prompt here, and "
            "apply the rest to the edited prompt."
        )
    given = {key: cond.process_cond(batch_size=len(x_0)).cond for key, cond in conds[0]["model_conds"].items()}
    return {key: own_copy(value, x_0.device) for key, value in given.items()}


def own_copy(value: Any, device: torch.device) -> Any:
    """Copy a tensor made in inference mode so that gradients may pass it."""
    return value.to(device).clone() if isinstance(value, Tensor) else value


def tune_copy(
    copy: ModelPatcher, model: ModelPatcher, positive: list, samples: Tensor, settings: TuneSettings, node_id: str
) -> tuple[dict[str, Tensor], list[float]]:
    """Tune a private copy of a model; returns what was learned, as a Tune holds it, and the losses."""
    device, unet = copy.load_device, copy.model.diffusion_model
    x_0, table = to_model_latent(copy, samples), sigma_table(model).clone()
    autocast = autocast_for(copy, device)
    unet.requires_grad_(False)
    projections = query_projections(unet)
    before = {key: linear.weight.detach().clone() for key, linear in projections.items()}
    bank = temporal_copy(unet, model, device)
    options, given = training_options(copy, bank), condition(copy, positive, x_0)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        with autocast:
            return copy.model.apply_model(x, sigma * x.new_ones(len(x)), transformer_options=dict(options), **given)

    modules = [*projections.values(), *(bank.bank if bank is not None else ())]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    on_step = TuningProgress(settings.steps, node_id)
    with reproducible():
        losses = tune(denoise, parameters, x_0, table, prediction_of(model), settings, on_step)
    tensors = {f"{key}.diff": (linear.weight - before[key]).detach().cpu() for key, linear in projections.items()}
    if bank is not None:
        for module in bank.cpu().bank:  # where the singular values are exact on every machine
            module.bake_spectral_norm()
        tensors |= {key: value.detach().clone() for key, value in bank.tensors().items()}
    return tensors, losses


def tune_model(
    model: ModelPatcher, positive: list, latent: dict[str, Any], settings: TuneSettings, node_id: str
) -> Tune:
    """Tune an inflated model on one clip: the query projections of both attentions and the temporal modules.

    Args:
        model: inflated and patched model; neither it nor its base is changed.
        positive: conditioning of the source prompt.
        latent: the clip, VAE latent.
        settings: of the tuning.
        node_id: node that shows the progress.

    Raises:
        ValueError: the model is not inflated, or the inputs do not fit.
        FloatingPointError: the loss is no longer finite.
    """
    clip = clip_settings(model)
    samples = clip_latent(model, latent, clip.num_frames)
    info = tune_info(clip, len(samples), prediction_of(model), settings)
    comfy.model_management.unload_all_models()  # while their inference tensors may still be moved
    with torch.inference_mode(False), torch.enable_grad(), private_copy(model) as copy:
        tensors, losses = tune_copy(copy, model, positive, samples, settings, node_id)
    return Tune(tensors, {**info, "loss": losses})


def tune_info(clip: ClipSettings, num_frames: int, prediction: str, settings: TuneSettings) -> dict[str, Any]:
    """Return what a tune says of how it was made."""
    return {
        "frames": num_frames,
        "spatial": asdict(clip.spatial) if clip.spatial else None,
        "spatial_strength": clip.spatial_strength,
        "temporal": asdict(clip.temporal.config) if clip.temporal is not None else None,
        "temporal_strength": clip.temporal_strength,
        "prediction": prediction,
        "steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
    }
