"""How much memory sampling and tuning a clip take, counted on a copy of the UNet whose weights have no values."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from ...clip_model.host.family import require_unet
from ...clip_model.host.features import Features
from ...clip_model.host.settings import KEY, clip_settings
from ...diffusion.host.latent import fitting_latents
from ..accounting import Held
from ..losses.term import Forward
from ..settings import Precision, TuneSettings
from .attached import naming_patches
from .checkpoints import TOKENS, checkpointed_layers
from .fit import memory_advice, said_of_checkpointing
from .learned import sdpa_override, temporal_copy, trained_projections, training_options
from .private_copy import DTYPES, choose_precision, prepare

GIB = 2**30
BESIDE = 0.16  # of what is counted: workspaces and fragments; 14.2 GiB measured and 12.2 counted on an H200, of old
COARSER = (4, 8)  # r
CPU = torch.device("cpu")
TOO_MUCH = "too much: ComfyUI then takes the sides of the guidance one by one"


@dataclass(frozen=True)
class Plan:
    """Settings of a tuning with r of fine-coarse attention and the frames in each step, and the bytes that it takes."""

    settings: TuneSettings
    r: int | None
    frames: int
    peak: int


@contextmanager
def without_values() -> Iterator[FakeTensorMode]:
    """Yield the mode in which tensors have shapes and no values."""
    with torch.inference_mode(False), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def bare_unet(model: ModelPatcher, dtype: torch.dtype) -> nn.Module:
    """Return a UNet of a model's structure."""
    config = {key: value for key, value in model.model.model_config.unet_config.items() if key != "dtype"}
    unet = type(model.model.diffusion_model)(
        **config, dtype=dtype, device=CPU, operations=comfy.ops.disable_weight_init
    )
    return unet.requires_grad_(False)


def context_of(model: ModelPatcher, frames: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the UNet's arguments beside the state and its time."""
    config = model.model.model_config.unet_config
    given = {"context": torch.empty(frames, TOKENS, config["context_dim"], dtype=dtype)}
    if config.get("num_classes"):
        given["y"] = torch.empty(frames, config["adm_in_channels"], dtype=dtype)
    return given


def sampling_peak(model: ModelPatcher, shape: tuple[int, ...]) -> int:
    """Return the bytes that sampling with guidance takes, both sides in one call.

    Args:
        model: inflated and patched model.
        shape: of the clip's latent, (f, c, h, w).
    """
    dtype, (frames, *picture) = model.model.get_dtype_inference(), shape
    settings = clip_settings(model)
    with naming_patches(model), without_values() as mode, torch.no_grad():
        unet = bare_unet(model, dtype)
        bank = without(settings.temporal, mode) if settings.temporal is not None else None
        kept = {KEY: replace(settings, temporal=bank), "cond_or_uncond": [0, 1]}
        options = {**model.model_options["transformer_options"], **kept, "optimized_attention_override": sdpa_override}
        held = [*unet.parameters(), *(bank.parameters() if bank is not None else ())]
        with Held(held) as counted:
            x = torch.empty(2 * frames, *picture, dtype=dtype)
            unet(x, torch.empty(len(x)), **context_of(model, len(x), dtype), transformer_options=options)
    return with_rest(counted.peak)


def without(module: nn.Module, mode: FakeTensorMode) -> Any:
    """Return a copy of a module whose weights have no values."""
    with FakeCopyMode(mode):
        return copy.deepcopy(module)


def tuning_peak(model: ModelPatcher, shape: tuple[int, ...], settings: TuneSettings, precision: Precision) -> int:
    """Return the bytes that a step of one-shot tuning takes.

    Args:
        model: inflated and patched model.
        shape: of the latent of the frames in a step, (f, c, h, w).
        settings: of the tuning.
        precision: what the UNet computes in, not "auto".
    """
    dtype = DTYPES[precision]
    with torch.inference_mode(False):
        real = temporal_copy(model.model.diffusion_model, model, CPU)
    with naming_patches(model), without_values() as mode, torch.enable_grad(), ExitStack() as computing:
        unet = bare_unet(model, dtype)
        projections = trained_projections(unet, model).values()
        learned = [weight for linear in projections for weight in linear.parameters()]
        bank = without(real, mode) if real is not None else None
        learned += [] if bank is None else list(bank.parameters())
        checkpointed = checkpointed_layers(unet, shape, clip_settings(model), settings.memory)
        options = training_options(model, bank, settings.memory.chunking, checkpointed)
        computing.enter_context(prepare(unet, dtype, CPU))
        features = {part: Features(unet, part) for part in settings.parts}
        with Held([*unet.parameters(), *learned]) as counted:
            x = torch.empty(shape)
            for captured in features.values():
                captured.begin()
            output = unet(x, torch.empty(len(x)), **context_of(model, len(x), x.dtype), transformer_options=options)
            taken = {part: captured.take() for part, captured in features.items()}
            made = Forward(output, x, x, output, x, torch.empty(()), torch.empty(()), features=taken)
            torch.stack([term.value(made) for term in settings.terms.values()]).sum().backward()
    kept = {"AdamW": 2, "AdamW 8-bit": 0.5, "gradient descent": 0}[settings.optimization.optimizer]
    return with_rest(counted.peak + kept * sum(4 * weight.numel() for weight in learned))


def with_rest(counted: float) -> int:
    """Return bytes with what a GPU's libraries take beside the tensors."""
    return round(counted * (1 + BESIDE))


def free_memory() -> int:
    """Return the bytes that are free where every model is unloaded, less what the host keeps for others."""
    management = comfy.model_management
    device = management.get_torch_device()
    loaded = [held for held in management.current_loaded_models if held.device == device and held.model is not None]
    free = management.get_free_memory(device) + sum(held.model_loaded_memory() for held in loaded)
    return int(min(free, management.get_total_memory(device)) - management.extra_reserved_memory())


def r_of(model: ModelPatcher) -> int | None:
    """Return r of a model's fine-coarse attention, None = it has none."""
    spatial = clip_settings(model).spatial
    return spatial.r if spatial is not None and spatial.kind == "fine-coarse" else None


def with_r(model: ModelPatcher, r: int | None) -> ModelPatcher:
    """Return a model with another r of its fine-coarse attention; the model itself where it has that one, or none."""
    if r is None or r == r_of(model):
        return model
    clone, settings = model.clone(), clip_settings(model)
    assert settings.spatial is not None, "there is an r to change"
    clone.model_options["transformer_options"][KEY] = replace(settings, spatial=replace(settings.spatial, r=r))
    return clone


def list_ways(
    settings: TuneSettings, r: int | None, frames: int, coarser: Sequence[int] = COARSER
) -> Iterator[tuple[TuneSettings, int | None]]:
    """Yield settings of a tuning with an r, in the order in which to try them.

    As they are; with chunking; with more and more checkpointing; with larger r; with half the frames in a step and r
    as it was, and again.
    """
    now: TuneSettings | None = settings
    while now is not None:
        yield now, r
        less = now.stepped_down(frames)
        keeps_frames = less is not None and less.memory.frames_per_step == now.memory.frames_per_step
        if now.memory.frames_per_step == settings.memory.frames_per_step and not keeps_frames:
            yield from ((now, other) for other in coarser if r and 1 < r < other)  # 1 puts nothing side by side
        now = less


def plan_tuning(
    model: ModelPatcher, latent: dict[str, Any], settings: TuneSettings, budget: int
) -> tuple[ModelPatcher, TuneSettings, list[Plan]]:
    """Return the model and the settings with which tuning a clip fits into a budget, and all plans that were tried.

    They are the first of `list_ways` that fit.

    Args:
        model: inflated and patched model.
        latent: the clip.
        settings: to begin with.
        budget: bytes.

    Raises:
        ValueError: the latent is no clip of the model's, or nothing fits.
    """
    require_unet(model, "Fit Planner", "Leave it out: there is no tuning to plan.")
    samples = fitting_latents(model, latent, clip_settings(model).num_frames)
    precision = choose_precision(settings.memory.precision, model, comfy.model_management.get_torch_device())
    tried: list[Plan] = []
    may_change = not clip_settings(model).tunes  # were made with the r that is
    for now, r in list_ways(settings, r_of(model), len(samples), COARSER if may_change else ()):
        frames, given = now.memory.frames_of(len(samples)), with_r(model, r)
        tried.append(Plan(now, r, frames, tuning_peak(given, (frames, *samples.shape[1:]), now, precision)))
        if tried[-1].peak <= budget:
            return given, now, tried
    least = min(tried, key=lambda plan: plan.peak)
    raise ValueError(
        f"At least {least.peak / GIB:.1f} GiB are needed and budget_gib is {budget / GIB:.1f}. "
        + memory_advice(clip_settings(model), samples, least.settings.memory)
    )


def report_plan(
    model: ModelPatcher, latent: dict[str, Any], tried: list[Plan], budget: int
) -> tuple[str, dict[str, Any]]:
    """Return what was counted in plans, the last of which fits, as text and as JSON values."""
    shape, chosen = tuple(latent["samples"].shape), tried[-1]
    sampling = sampling_peak(model, shape)
    data = {
        "budget_gib": round(budget / GIB, 2),
        "sampling_gib": round(sampling / GIB, 2),
        "tuning": [
            {
                "frames_per_step": plan.frames,
                "r": plan.r,
                "chunking": plan.settings.memory.chunking,
                "gradient_checkpointing": plan.settings.memory.gradient_checkpointing,
                "checkpointing_share": plan.settings.memory.checkpointing_share,
                "gib": round(plan.peak / GIB, 2),
            }
            for plan in tried
        ],
    }
    lines = [
        f"{shape[0]} frames of {8 * shape[3]} x {8 * shape[2]}, {budget / GIB:.1f} GiB:",
        "",
        "| | frames | r | chunking | checkpointing | GiB | |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| tuning | {plan.frames} | {plan.r or ''} | {'on' if plan.settings.memory.chunking else 'off'} | "
            f"{said_of_checkpointing(plan.settings.memory)} | {plan.peak / GIB:.1f} | "
            f"{'chosen' if plan is chosen else 'too much'} |"
            for plan in tried
        ),
        f"| sampling with guidance | {shape[0]} | {chosen.r or ''} | | | {sampling / GIB:.1f} | "
        f"{'fits' if sampling <= budget else TOO_MUCH} |",
    ]
    return "\n".join(lines), data
