"""What the pack needs of ComfyUI, checked once when it is loaded.

A ComfyUI that lacks a hook would fail in the middle of a run, or leave the frames apart without a word.
"""

import importlib
import inspect
from operator import attrgetter

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, forward_timestep_embed
from torch import nn

OLDEST = "0.26.0"  # the oldest ComfyUI that has everything; docs/hosts.md says what was tried

# By module and name, in parentheses a parameter that older ones lack.
NEEDED = (
    "comfy.context_windows:ContextFuseMethods.RELATIVE",
    "comfy.context_windows:IndexListContextHandler",
    "comfy.model_management:is_oom",
    "comfy.model_management:load_models_gpu(force_full_load)",
    "comfy.model_management:unload_model_and_clones",
    "comfy.model_patcher:CoreModelPatcher",
    "comfy.model_patcher:ModelPatcher.add_wrapper_with_key",
    "comfy.model_patcher:ModelPatcher.clone(force_deepcopy)",
    "comfy.model_patcher:ModelPatcher.remove_additional_models",
    "comfy.model_patcher:ModelPatcher.set_additional_models",
    "comfy.model_patcher:ModelPatcher.set_model_attn1_replace",
    "comfy.model_patcher:ModelPatcher.set_model_forward_timestep_embed_patch",
    "comfy.patcher_extension:WrappersMP.APPLY_MODEL",
    "comfy.patcher_extension:WrappersMP.CALC_COND_BATCH",
    "comfy.patcher_extension:WrappersMP.DIFFUSION_MODEL",
    "comfy.patcher_extension:WrappersMP.OUTER_SAMPLE",
    "comfy.patcher_extension:WrappersMP.PREDICT_NOISE",
    "comfy.patcher_extension:WrappersMP.PREPARE_SAMPLING",
    "comfy.patcher_extension:WrappersMP.SAMPLER_SAMPLE",
    "comfy.quant_ops:QuantizedTensor",
    "comfy.sampler_helpers:convert_cond",
    "comfy.samplers:encode_model_conds",
    "comfy.sd:load_text_encoder_state_dicts",
    "comfy.utils:ProgressBar(node_id)",
    "comfy.weight_adapter:LoRAAdapter.create_train",
    "comfy_api.latest:io.Schema(search_aliases)",
)


def check_host() -> None:
    """Refuse a ComfyUI in which the pack would not do what it says.

    Raises:
        ImportError: in one line, what is missing; the host shows it and goes on without the pack.
    """
    missing = [hook for hook in NEEDED if not is_there(hook)]
    missing += [f"handlers for {kind.__name__}" for kind in (ResBlock, SpatialTransformer) if not is_handed_over(kind)]
    if missing:
        raise ImportError(
            f"Consistent Video needs ComfyUI {OLDEST} or newer; this one lacks {', '.join(missing)}. Update ComfyUI."
        )


def is_there(hook: str) -> bool:
    """Whether the host has a name, and the parameter given with it."""
    module, _, rest = hook.partition(":")
    name, _, parameter = rest.rstrip(")").partition("(")
    try:
        found = attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        return False
    return not parameter or parameter in inspect.signature(found).parameters


def is_handed_over(kind: type[nn.Module]) -> bool:
    """Whether the host's UNets give layers of a kind to the handlers for them; older ones run their own kinds first."""
    layer = type("Layer", (kind,), {"__init__": nn.Module.__init__, "forward": lambda self, x, *_: x})()
    patches = {"forward_timestep_embed_patch": [(kind, lambda *_: "handled")]}
    return forward_timestep_embed([layer], "run", None, transformer_options={"patches": patches}) == "handled"
