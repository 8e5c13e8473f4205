"""What other nodes attach to a model that does not go together with a clip model: one table, for every door."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .bank import transformer_blocks
from .calls import OURS, attend_block
from .evolved import CONTEXT, WINDOWS, window_length
from .family import family_of, is_flow_unet
from .settings import ALWAYS, CONTROL, KEY, SLICES, ClipSettings, sigmas_of

ROUNDING = 1e-4  # of a noise level that is computed on another device
LAYERS = "forward_timestep_embed_patch"  # the host's name for what runs layers instead of it
REARRANGING = ("comfy_extras.nodes_hypertile", "comfy_extras.nodes_tomesd")


@dataclass(frozen=True)
class Conflict:
    """A kind of attachment of other nodes that a clip model does not go together with.

    Attributes:
        name: of the kind.
        find: returns what is in the way in a model with some clip settings, by name; empty = nothing.
        consequence: what comes of it, as the end of a sentence that begins with those names.
        remedy: what to do.
        is_refused: whether STAM/FFAM Patch, Apply Tune and every sampling refuse it.
    """

    name: str
    find: Callable[[ModelPatcher, ClipSettings], list[str]]
    consequence: str
    remedy: str
    is_refused: bool = False

    def text(self, names: list[str]) -> str:
        """Return what is in the way, what comes of it and what to do, in words."""
        return f"{', '.join(names)} {self.consequence}. {self.remedy}."


def origin(patch: Any) -> str:
    """Return the name of the node that made a patch, as far as Python knows it: its class and where that lies."""
    of = patch if hasattr(patch, "__qualname__") else type(patch)
    where = str(of.__module__).replace("\\", "/").rpartition("/")[2].rpartition("custom_nodes.")[2]
    return f"{of.__qualname__.split('.')[0]} ({where})"


def origins(patches: Iterable[Any]) -> list[str]:
    """Return the names of the nodes that made some patches, each once."""
    return list(dict.fromkeys(map(origin, patches)))


def patches_of(model: ModelPatcher, kind: str) -> list[Any]:
    """Return the patches of a kind in a model's transformer options."""
    return model.model_options["transformer_options"].get("patches", {}).get(kind, [])


def replacements_of(model: ModelPatcher, kind: str) -> dict[Any, Any]:
    """Return what other nodes put in place of a model's "attn1", "attn2" or "dit", by the host's name for the block."""
    replaced = model.model_options["transformer_options"].get("patches_replace", {}).get(kind, {})
    return {place: patch for place, patch in replaced.items() if patch is not attend_block}


def replaces_attention(model: ModelPatcher, settings: ClipSettings) -> list[str]:
    """Return what replaces self-attention that is to see other frames."""
    blocks = transformer_blocks(model.model.diffusion_model) if settings.spatial is not None else []
    places = {block.place for block in blocks}
    return origins(patch for place, patch in replacements_of(model, "attn1").items() if place[:2] in places)


def replaces_blocks(model: ModelPatcher, settings: ClipSettings) -> list[str]:
    """Return what replaces blocks of a transformer whose frames are to see each other."""
    known = family_of(model).transformer if settings.spatial is not None else None
    return origins(replacements_of(model, "dit").values()) if known is not None and known.is_replaceable else []


def runs_layers(model: ModelPatcher, settings: ClipSettings) -> list[str]:
    """Return what runs layers that a clip model runs: of two such patches the host heeds the first alone."""
    return [] if settings.spatial is None and settings.temporal is None else layer_runners(model)


def layer_runners(model: ModelPatcher) -> list[str]:
    """Return what other nodes run layers by that a clip model with parts runs itself, and every tuning."""
    patches = (patch for patch in patches_of(model, LAYERS) if patch not in OURS)
    return origins(run for layer, run in patches if any(issubclass(mine, layer) for mine, _ in OURS))


def rearranges_tokens(model: ModelPatcher, settings: ClipSettings) -> list[str]:
    """Return what merges or tiles the tokens of self-attention."""
    if settings.spatial is None:
        return []
    return origins(patch for patch in patches_of(model, "attn1_patch") if patch.__module__ in REARRANGING)


def counts_other_frames(model: ModelPatcher, settings: ClipSettings) -> list[str]:
    """Return context windows of another length than the clips of a model."""
    handler = model.model_options.get("context_handler")
    length = getattr(handler, "context_length", settings.num_frames)
    return [origin(handler)] if settings.num_frames not in (0, length) else []


def splits_other_axes(model: ModelPatcher, _settings: ClipSettings) -> list[str]:
    """Return context windows along another axis than the frames', which is the batch."""
    handler = model.model_options.get("context_handler")
    return [origin(handler)] if getattr(handler, "dim", 0) != 0 else []


def splits_without_memory(model: ModelPatcher, settings: ClipSettings) -> list[str]:
    """Return what shows a model whose frames see each other a part of them, and nothing of the others."""
    return [CONTEXT] if settings.spatial is not None and window_length(model) is not None else []


def copies_to_other_devices(model: ModelPatcher, settings: ClipSettings) -> list[str]:
    """Return what copies a model with temporal modules to other devices."""
    return ["MultiGPU"] if settings.temporal is not None and "multigpu" in model.additional_models else []


def makes_a_flow(model: ModelPatcher, settings: ClipSettings) -> list[str]:
    """Return what makes a UNet sample by flow matching that has parts which do not apply to one."""
    is_sliced = SLICES in model.wrappers.get(WrappersMP.APPLY_MODEL, {})
    has_parts = settings.temporal is not None or settings.tunes or is_sliced
    return ["ModelSamplingSD3"] if has_parts and is_flow_unet(model) else []


def moves_noise_levels(model: ModelPatcher, settings: ClipSettings) -> list[str]:
    """Return what gave other noise levels to a model whose start and end were taken before."""
    now = sigmas_of(model, settings.percents) if settings.sigmas != ALWAYS else ALWAYS
    is_moved = not all(map(partial(math.isclose, rel_tol=ROUNDING), settings.sigmas, now))
    return ["A ModelSampling node"] if is_moved else []


def replaces_controlled_attention(model: ModelPatcher, _settings: ClipSettings) -> list[str]:
    """Return what replaces the cross-attention of a model that carries Attention Control."""
    is_controlled = CONTROL in model.model_options["transformer_options"]
    return origins(replacements_of(model, "attn2").values()) if is_controlled else []


def guides(model: ModelPatcher, _settings: ClipSettings) -> list[str]:
    """Return what combines the two sides of the guidance."""
    guidance = model.model_options.get("sampler_cfg_function")
    return [] if guidance is None else [origin(guidance)]


CONFLICTS = (
    Conflict(
        "self-attention replaced",
        replaces_attention,
        "replaces self-attention, by which STAM/FFAM Patch connects the frames",
        "Remove that node, or set attention_strength to 0",
        is_refused=True,
    ),
    Conflict(
        "blocks replaced",
        replaces_blocks,
        "replaces blocks of the transformer: where the replacement skips their attention, frames are not connected",
        "If the edit flickers, remove that node",
    ),
    Conflict(
        "layers run by another node",
        runs_layers,
        "runs layers of the UNet that STAM/FFAM Patch has to, and ComfyUI would heed one of the two alone",
        "Remove that node",
        is_refused=True,
    ),
    Conflict(
        "several devices",
        copies_to_other_devices,
        "copies the model to other devices, which temporal modules cannot follow",
        "Remove that node, or set temporal_strength to 0",
        is_refused=True,
    ),
    Conflict(
        "parts for noise in a flow",
        makes_a_flow,
        "makes the UNet sample by flow matching, to which temporal modules, tunes and slices do not apply",
        "Remove that node, or set temporal of STAM/FFAM Patch to none and leave out Apply Tune and Slice Denoiser",
        is_refused=True,
    ),
    Conflict(
        "noise levels moved",
        moves_noise_levels,
        "changes the noise levels that STAM/FFAM Patch took start_percent and end_percent from",
        "Connect that node before Inflate UNet",
        is_refused=True,
    ),
    Conflict(
        "tokens rearranged",
        rearranges_tokens,
        "rearranges the tokens of self-attention, whose places attention across frames needs: sampling refuses it",
        "Remove that node",
    ),
    Conflict(
        "windows of other lengths",
        counts_other_frames,
        "shows the model another number of frames than num_frames of Inflate UNet: sampling refuses it",
        "Set num_frames to 0",
    ),
    Conflict(
        "windows along another axis",
        splits_other_axes,
        "splits latents along an axis of time, as video models have it, and a clip's frames are the batch",
        f"Use {WINDOWS} with dim 0 instead",
        is_refused=True,
    ),
    Conflict(
        "windows of AnimateDiff-Evolved",
        splits_without_memory,
        "shows longer clips to the model in windows, in which frames attend to those of their own window alone",
        f"Use ComfyUI's {WINDOWS} instead, in which they see the whole clip",
    ),
    Conflict(
        "cross-attention replaced",
        replaces_controlled_attention,
        "replaces cross-attention, which Attention Control has to, and refuses where it does",
        "Remove one of the two, or set cross of Attention Control to none with no weighted words and no mask",
    ),
    Conflict(
        "guidance replaced",
        guides,
        "combines the sides of the guidance: cfg_rescale of Smooth Sample refuses to take its place",
        "Leave cfg_rescale at 0",
    ),
)


def find_conflicts(model: ModelPatcher, settings: ClipSettings) -> list[tuple[Conflict, list[str]]]:
    """Return the conflicts of a model with some clip settings, each with what is in the way."""
    found = ((conflict, conflict.find(model, settings)) for conflict in CONFLICTS)
    return [(conflict, names) for conflict, names in found if names]


def refuse_conflicts(model: ModelPatcher, settings: ClipSettings) -> None:
    """Raise ValueError where a model cannot have some clip settings, naming what is in the way."""
    refused = [conflict.text(names) for conflict, names in find_conflicts(model, settings) if conflict.is_refused]
    if refused:
        raise ValueError(" ".join(refused))


def check_sampling(executor, model: ModelPatcher, *args, **kwargs):
    """Wrap the preparation of a sampling: refuse what other nodes attached after the clip model was made."""
    settings = model.model_options["transformer_options"].get(KEY)
    if settings is not None:
        refuse_conflicts(model, settings)
    return executor(model, *args, **kwargs)
