"""What ComfyUI promises of model patches, one test for each hook that the pack relies on."""

from functools import partial

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.patcher_extension import WrappersMP, copy_nested_dicts
from comfy.weight_adapter import LoRAAdapter
from comfy_extras.nodes_train import LoraModelLoader
from torch import nn

from .. import small
from ..small import FRAMES, HEIGHT, TOKENS, WIDTH

PLACE = ("input", 1)
QUERY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
sample = partial(small.sample, sigmas=(5.0, 2.0))  # one step


def attend(q, k, v, options):
    return optimized_attention(
        q, k, v, options["n_heads"], attn_precision=options["attn_precision"], transformer_options=options
    )


def test_transformer_options_travel_with_clones_and_stay_apart(model) -> None:
    first = model.clone()
    first.model_options["transformer_options"]["ours"] = "first"
    second = first.clone()
    assert second.model_options["transformer_options"]["ours"] == "first"
    second.model_options["transformer_options"]["ours"] = "second"
    assert first.model_options["transformer_options"]["ours"] == "first"
    assert "ours" not in model.model_options["transformer_options"]


def test_copy_nested_dicts_copies_the_dicts_and_shares_the_rest() -> None:
    shared = object()
    options = {"patches": {"attn1": [shared]}, "ours": shared}
    copied = copy_nested_dicts(options)
    copied["patches"]["attn1"].append(None)
    assert options["patches"]["attn1"] == [shared] and copied["patches"]["attn1"][0] is copied["ours"] is shared


def test_attn1_replace_gets_projections_and_the_options_of_the_call(model, latent) -> None:
    seen = []

    def replace(q, k, v, options):
        seen.append((q, k, v, options))
        return attend(q, k, v, options)

    patched = model.clone()
    patched.set_model_attn1_replace(replace, *PLACE)
    patched.model_options["transformer_options"]["ours"] = "here"
    assert torch.equal(sample(patched, latent), sample(model, latent)), "what it returns goes into to_out"
    q, k, v, options = seen[0]
    width = patched.model.diffusion_model.get_submodule(QUERY.removeprefix("diffusion_model.")).out_features
    assert q.shape == k.shape == v.shape == (2 * FRAMES, HEIGHT * WIDTH, width)
    assert not torch.equal(q, k), "projected"
    assert sorted(options["cond_or_uncond"]) == [0, 1] and len(options["uuids"]) == 2
    assert tuple(options["activations_shape"]) == (2 * FRAMES, width, HEIGHT, WIDTH)
    assert options["block"] == PLACE and options["block_index"] == 0 and options["ours"] == "here"
    assert float(options["sigmas"][0]) == 5.0


def test_attn2_replace_gets_the_prompts_projections(model, latent) -> None:
    seen = []

    def replace(q, k, v, options):
        seen.append(k.shape[1])
        return attend(q, k, v, options)

    patched = model.clone()
    patched.set_model_attn2_replace(replace, *PLACE)
    assert torch.equal(sample(patched, latent), sample(model, latent))
    assert set(seen) == {TOKENS}


def test_optimized_attention_override_stands_in_for_the_kernel(model, latent) -> None:
    called = []

    def kernel(host_kernel, *given, **named):
        called.append(given[3])
        return host_kernel(*given, **named)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = kernel
    assert torch.equal(sample(patched, latent), sample(model, latent))
    assert set(called) == {8}, "heads"


@pytest.mark.parametrize("kind", [ResBlock, SpatialTransformer])
def test_forward_timestep_embed_patch_runs_the_layers(model, latent, kind) -> None:
    seen = []

    def run(layer, x, emb, context, options, *_):
        seen.append(options["block"])
        return layer(x, emb) if kind is ResBlock else layer(x, context, options)

    patched = model.clone()
    patched.set_model_forward_timestep_embed_patch((kind, run))
    assert torch.equal(sample(patched, latent), sample(model, latent))
    layers = [layer for layer in model.model.diffusion_model.modules() if isinstance(layer, kind)]
    assert len(seen) == len(layers) and PLACE in seen


def test_additional_models_are_loaded_with_the_model(model, latent) -> None:
    module = nn.Linear(3, 2)
    patched = model.clone()
    device = patched.load_device
    patcher = comfy.model_patcher.CoreModelPatcher(module, device, patched.offload_device)
    patched.set_additional_models("ours", [patcher])
    assert patched.clone().get_additional_models_with_key("ours")[0].model is module
    sample(patched, latent)
    assert module.weight.device.type == device.type
    without = patched.clone()
    without.remove_additional_models("ours")
    assert not without.get_additional_models_with_key("ours")
    assert patched.get_additional_models_with_key("ours")


def test_add_patches_adds_differences_and_returns_the_keys_it_knows(model, latent) -> None:
    patched, both = model.clone(), model.clone()
    weight = model.model.state_dict()[f"{QUERY}.weight"]
    difference = torch.ones_like(weight, device="cpu")
    given = {f"{QUERY}.weight": ("diff", (difference,)), "diffusion_model.unknown.weight": ("diff", (difference,))}
    assert list(patched.add_patches(given, 0.5)) == [f"{QUERY}.weight"]
    for _ in range(2):
        both.add_patches({f"{QUERY}.weight": ("diff", (difference,))}, 0.25)
    out = sample(patched, latent)
    assert not torch.equal(out, sample(model, latent))
    torch.testing.assert_close(sample(both, latent), out, rtol=1e-4, atol=1e-4)


def test_get_key_patches_and_calculate_weight_give_the_patched_weight(model) -> None:
    patched = model.clone()
    key = f"{QUERY}.weight"
    before = model.model.state_dict()[key].cpu().clone()
    patched.add_patches({key: ("diff", (torch.full_like(before, 2.0),))}, 0.5)
    (held, _convert), *patches = patched.get_key_patches("diffusion_model.")[key]
    assert torch.equal(held.cpu(), before)
    weight = comfy.lora.calculate_weight(patches, before.clone(), key)
    torch.testing.assert_close(weight, before + 1)


def test_clone_makes_a_deep_copy_with_weights_of_its_own(model) -> None:
    copy = model.clone(disable_dynamic=True, force_deepcopy=True)
    assert copy.model is not model.model and not copy.is_dynamic()
    mine, its = (each.model.state_dict()[f"{QUERY}.weight"] for each in (model, copy))
    assert torch.equal(mine.cpu(), its.cpu()) and mine.data_ptr() != its.data_ptr()


def test_a_deep_copy_is_wholly_loaded_and_unloaded(model) -> None:
    copy = model.clone(disable_dynamic=True, force_deepcopy=True)
    comfy.model_management.load_models_gpu([copy], force_full_load=True)
    assert not copy.model.model_lowvram and copy.loaded_size() == copy.model_size()
    comfy.model_management.unload_model_and_clones(copy)
    assert not [loaded for loaded in comfy.model_management.current_loaded_models if loaded.model is copy]


def test_wrappers_of_the_unet_and_the_preparation_are_called_by_key(model, latent) -> None:
    seen = {}

    def call(executor, x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
        seen["rows"] = (len(x), len(timesteps), len(context))
        return executor(x, timesteps, context, y, control, {**transformer_options, "ours": 1}, **kwargs)

    def prepare(executor, patcher, noise_shape, conds, *args, **kwargs):
        seen["shape"] = tuple(noise_shape)
        return executor(patcher, noise_shape, conds, *args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "ours", call)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "ours", prepare)
    assert torch.equal(sample(patched.clone(), latent), sample(model, latent))
    assert seen == {"rows": (2 * FRAMES,) * 3, "shape": (FRAMES, 4, HEIGHT, WIDTH)}
    seen.clear()
    patched.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, "ours")
    patched.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, "ours")
    sample(patched, latent)
    assert not seen


def test_lora_model_of_trained_adapters_is_applied(model, latent) -> None:
    weight = model.model.state_dict()[f"{QUERY}.weight"].float().cpu()
    adapter = LoRAAdapter.create_train(weight, 2, 2.0)
    x = torch.ones(1, weight.shape[1])
    assert not adapter.h(x, x @ weight.T).any(), "the identity at first"
    nn.init.ones_(adapter.lora_up.weight)
    lora = {f"{QUERY}.{name}": value.detach() for name, value in adapter.state_dict().items()}
    (loaded,) = LoraModelLoader.execute(model, lora, 1.0).args
    assert list(loaded.patches) == [f"{QUERY}.weight"]
    change = adapter.lora_up.weight @ adapter.lora_down.weight
    torch.testing.assert_close(adapter.h(x, x), x @ change.T, rtol=1e-4, atol=1e-4)
    by_hand = model.clone()
    by_hand.add_patches({f"{QUERY}.weight": ("diff", (change.detach(),))})
    torch.testing.assert_close(sample(loaded, latent), sample(by_hand, latent), rtol=1e-4, atol=1e-4)


def test_unet_to_diffusers_names_the_query_projections(model) -> None:
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    diffusers = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert names[diffusers] == f"{QUERY.removeprefix('diffusion_model.')}.weight"
