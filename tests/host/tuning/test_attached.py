"""What other nodes attached to a model is heeded by a tuning, does no harm, or is refused by name."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance

from consistent_video.modules.attention_control.host.call import ControlSettings
from consistent_video.modules.attention_control.host.control import attach_control
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME
from consistent_video.modules.inversion.host.stability import measure_stability
from consistent_video.modules.tuning.host import progress

from ..attention_control.controlled import PROMPTS
from ..edits import invert
from ..prompt_tokens import learned as tokens
from ..small import SOURCE, clip_latent, random_model
from .tuned import SETTINGS, lora_of, patched, run

QUICK = SETTINGS.changed(steps=2)


def bypass_lora(model):
    return comfy.sd.load_bypass_lora_for_models(model, None, lora_of(model), 1.0, 0.0)[0]


def wrapped(model):
    class Rewire:
        @staticmethod
        def attach():
            def call(executor, *args, **kwargs):
                return 0 * executor(*args, **kwargs)

            return call

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "rewire", Rewire.attach())
    return clone


def called_otherwise(model):
    clone = model.clone()
    clone.set_model_unet_function_wrapper(lambda call, given: call(given["input"], given["timestep"], **given["c"]))
    return clone


def replaced(model):
    clone = model.clone()
    clone.add_object_patch("diffusion_model", torch.compile(model.model.diffusion_model, backend="eager"))
    return clone


def controlled(model):
    return attach_control(model, invert(model, clip_latent()), SOURCE, PROMPTS, ControlSettings())


def runs_layers(model):
    """Return a model whose frames are not connected, which STAM/FFAM Patch would refuse."""
    model = patched(PER_FRAME, random_model())
    model.set_model_forward_timestep_embed_patch((ResBlock, lambda layer, x, emb, *_: layer(x, emb)))
    return model


WITHOUT_EFFECT = {
    runs_layers: r"carries runs_layers \(.*\), which runs layers of the UNet that have to run otherwise here",
    bypass_lora: "bypass_lora, which would have no effect.*Replace Load LoRA .Bypass. by Load LoRA",
    wrapped: r"carries wrapped \(.*\), which changes how ComfyUI's sampler calls the UNet",
    called_otherwise: r"carries called_otherwise \(.*\), which changes",
    replaced: "carries a patch of diffusion_model, which changes",
    controlled: "carries Attention Control, which is for the edit",
}


@pytest.mark.parametrize("attach", WITHOUT_EFFECT)
def test_what_would_have_no_effect_is_refused_by_every_node_that_copies_the_model(attach) -> None:
    model = attach(patched(EI2))
    inversion = invert(patched(EI2), clip_latent())
    for node in (
        lambda: run(model, QUICK),
        lambda: tokens.run(model),
        lambda: measure_stability(model, SOURCE, inversion),
    ):
        with pytest.raises(ValueError, match=WITHOUT_EFFECT[attach]):
            node()


def compiled(model):
    clone = model.clone()
    set_torch_compile_wrapper(clone, backend="eager")
    return clone


@pytest.mark.parametrize("attach", [compiled, lambda model: EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False)[0]])
def test_what_makes_sampling_faster_leaves_the_tuning_as_it_is(attach) -> None:
    tune, plain = run(attach(patched(EI2)), QUICK), run(patched(EI2), QUICK)
    assert tune.info == plain.info
    assert all(torch.equal(tune.tensors[key], value) for key, value in plain.tensors.items())


HEEDED = {
    "Deep Shrink": lambda model: PatchModelAddDownscale.execute(model, 1, 2.0, 0.0, 1.0, True, "bicubic", "bicubic"),
    "FreeU": lambda model: FreeU.execute(model, 1.3, 1.4, 0.9, 0.2),
    "FreeU V2": lambda model: FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("node", HEEDED)
def test_what_patches_the_unet_is_part_of_what_is_tuned(node: str, checkpointing: bool) -> None:
    settings = QUICK.changed(gradient_checkpointing=checkpointing, chunking=checkpointing)
    tune = run(patched(EI2, HEEDED[node](random_model())[0]), settings)
    assert tune.info["loss"][0] != run(patched(EI2), settings).info["loss"][0]
    assert all(value.isfinite().all() for value in tune.tensors.values())


def test_guidance_leaves_the_tuning_as_it_is() -> None:
    tune = run(patched(EI2, PerturbedAttentionGuidance.execute(random_model(), 3.0)[0]), QUICK)
    assert tune.info == run(patched(EI2), QUICK).info


class StepCounter:
    """A patch as other nodes make them, which needs what only a sampling has."""

    def __call__(self, h, transformer_options):
        return h * len(transformer_options["sample_sigmas"])


class Kept:
    """A patch with weights that were loaded as the host executes nodes."""

    def __init__(self):
        with torch.inference_mode():
            self.weight = torch.ones(1)

    def __call__(self, h, transformer_options):
        return h * self.weight


@pytest.mark.parametrize("patch", [StepCounter, Kept])
def test_a_patch_that_fails_outside_of_sampling_is_named(patch) -> None:
    model = patched(EI2)
    inversion = invert(model, clip_latent(), direction="none")
    model.set_model_input_block_patch(patch())
    with pytest.raises(ValueError, match=rf"It carries patches of {patch.__name__} \(.*\), made for sampling. Remove"):
        run(model, QUICK)
    if patch is StepCounter:
        with pytest.raises(ValueError, match="It carries patches of StepCounter"):
            measure_stability(model, SOURCE, inversion)


def test_the_host_knows_of_a_tuning_while_it_lasts(monkeypatch) -> None:
    seen = []

    def look() -> None:
        seen.append(comfy.model_management.in_training)
        if len(seen) > 1:
            raise ZeroDivisionError

    monkeypatch.setattr(progress, "throw_exception_if_processing_interrupted", look)
    for before in (False, True):
        monkeypatch.setattr(comfy.model_management, "in_training", before)
        seen.clear()
        with pytest.raises(ZeroDivisionError):
            run(patched(EI2), SETTINGS)
        assert seen == [True, True] and comfy.model_management.in_training is before
