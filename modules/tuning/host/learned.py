"""What is learned on a private copy, and how its UNet is called meanwhile."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.patcher_extension
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...clip_model.attention import scaled_dot_product
from ...clip_model.host.bank import TemporalBank, part_of, transformer_blocks
from ...clip_model.host.calls import attend_block
from ...clip_model.host.conflicts import LAYERS
from ...clip_model.host.features import Features
from ...clip_model.host.settings import KEY, clip_settings
from ...clip_model.temporal import trained_with
from ..weights import DIFFERENCES
from .attached import apply_apart
from .checkpoints import KINDS, leave_apart, run_checkpointed
from .control_nets import ControlNets

SKIPS = "output_block_patch"


@dataclass(frozen=True)
class Caller:
    """Calls of a private copy's UNet."""

    copy: ModelPatcher
    options: dict[str, Any]
    computing: AbstractContextManager
    features: tuple[Features, ...] = ()

    def __call__(self, x: Tensor, sigma: Tensor, given: dict[str, Any], **options: Any) -> Tensor:
        """Predict x_0 from the state of some frames at the noise levels of their rows.

        Args:
            x: state x_0 + sigma * eps, model latent.
            sigma: noise level of each row, or one for all.
            given: the UNet's other arguments, see `condition`.
            options: transformer options that replace its own.
        """
        for features in self.features:
            features.begin()
        sigmas = sigma * x.new_ones(len(x))
        options = {**self.options, "sigmas": sigmas, **options}  # noise levels as the host's sampler tells them
        given = {
            key: value.residuals(x, sigmas, given, options) if isinstance(value, ControlNets) else value
            for key, value in given.items()
        }
        with self.computing:
            return self.copy.model.apply_model(x, sigmas, transformer_options=options, **given)


class Learned(nn.Module):
    """What is learned on a private copy, in float32: the temporal modules, and projections of the attentions.

    Those are the query projections of both, or with ControlVideo's module the output projections of self-attention.

    Args:
        unet: of the copy; its projections are replaced by those that are learned.
        model: whose temporal modules are the beginning.
        device: of the copy.
    """

    def __init__(self, unet: nn.Module, model: ModelPatcher, device: torch.device):
        super().__init__()
        projections = trained_projections(unet, model)
        self.keys, self.queries = list(projections), nn.ModuleList(projections.values())
        before = self.weights(self.state_dict())
        self.start = {key: value.detach().to("cpu", copy=True) for key, value in before.items()}
        self.before = [value for key, value in self.start.items() if key.endswith(".diff")]
        self.bank = temporal_copy(unet, model, device)

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the projections' weights and biases in a state dict, by the names of their differences in a Tune."""
        return {
            f"{key}.{DIFFERENCES[name]}": value
            for i, key in enumerate(self.keys)
            for name, value in part_of(state, f"queries.{i}.").items()
        }

    def tensors(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return what is learned as a Tune holds it; or what another state dict of this module holds."""
        state = self.state_dict() if state is None else state
        tensors = {key: value.detach().cpu() - self.start[key] for key, value in self.weights(state).items()}
        return tensors | self.temporal_tensors(state)

    def temporal_tensors(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the temporal modules' part of `tensors`."""
        if self.bank is None:
            return {}
        return self.bank.tensors(part_of(self.state_dict() if state is None else state, "bank."))


def trained_projections(unet: nn.Module, model: ModelPatcher) -> dict[str, nn.Linear]:
    """Replace the projections of a model's copy that are tuned by float32 ones that can be; return them by key."""
    bank, projections = clip_settings(model).temporal, {}
    names = trained_with(None if bank is None else bank.config)
    for block in transformer_blocks(unet):
        for path in (f"{block.path}.{name}" for name in names):
            before = unet.get_submodule(path)
            wide, high = before.weight.shape[1], before.weight.shape[0]
            linear = nn.Linear(wide, high, bias=before.bias is not None, device="meta")
            for name, value in before.named_parameters():
                setattr(linear, name, nn.Parameter(value.detach().float().clone()))
            unet.set_submodule(path, linear)
            projections[f"diffusion_model.{path}"] = linear
    return projections


def temporal_copy(unet: nn.Module, model: ModelPatcher, device: torch.device) -> TemporalBank | None:
    """Return the model's temporal modules as float32 ones that can be tuned, or None."""
    bank = exact_bank(unet, model)
    if bank is None:
        return None
    for module in bank.bank:
        module.tune_spectral_norm()
    return bank.to(device).train()


def frozen_bank(unet: nn.Module, model: ModelPatcher, device: torch.device) -> TemporalBank | None:
    """Return the model's temporal modules in float32 as they are, or None."""
    bank = exact_bank(unet, model)
    return None if bank is None else bank.to(device).eval().requires_grad_(False)


def exact_bank(unet: nn.Module, model: ModelPatcher) -> TemporalBank | None:
    """Return a copy in float32 of the model's temporal modules, or None."""
    attached = clip_settings(model).temporal
    if attached is None:
        return None
    return TemporalBank(transformer_blocks(unet), attached.config, attached.origin or attached.tensors())


def sdpa_override(_host_kernel: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
    """Stand in for the host's attention kernel, which need not have a backward."""
    return scaled_dot_product(q, k, v, heads)


def training_options(
    model: ModelPatcher, bank: TemporalBank | None, chunking: bool, checkpointed: Collection[nn.Module] = ()
) -> dict[str, Any]:
    """Return the transformer options of a training call: the model's own, with the given temporal modules.

    Args:
        model: clip model.
        bank: temporal modules.
        chunking: whether the backward pass computes activations of feed-forwards and temporal modules again.
        checkpointed: layers of the UNet all of whose activations it computes again.
    """
    options = comfy.patcher_extension.copy_nested_dicts(model.model_options["transformer_options"])
    clip = replace(options[KEY], temporal=bank, num_frames=0)  # a step may take a part of the clip
    options[KEY] = replace(clip, rebuild=True, recompute=chunking)
    options["optimized_attention_override"] = sdpa_override
    options["cond_or_uncond"] = [0]
    attn1 = options.setdefault("patches_replace", {}).setdefault("attn1", {})
    for block in transformer_blocks(model.model.diffusion_model):
        attn1.setdefault(block.place, attend_block)  # refuses rearranged tokens where no attention is replaced, too
    patches = options.setdefault("patches", {})
    for kind in patches.keys() - {LAYERS}:
        patches[kind] = [partial(apply_apart, patch) for patch in patches[kind]]
    patches.setdefault(SKIPS, []).append(leave_apart)  # after all that change them
    patches.setdefault(LAYERS, []).insert(0, (KINDS, partial(run_checkpointed, checkpointed)))
    return options
