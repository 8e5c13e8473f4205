"""What the inspection of a model finds: this pack's parts, others' patches, conflicts and memory."""

import json
from types import SimpleNamespace

import comfy.sd
import pytest
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_context_windows import ContextWindowsManualNode, WanContextWindowsManualNode
from comfy_extras.nodes_freelunch import FreeU
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3, RescaleCFG
from comfy_extras.nodes_sag import SelfAttentionGuidance

from consistent_video.modules.attention_control.host.call import ControlSettings
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.conflicts import CONFLICTS
from consistent_video.modules.clip_model.host.evolved import PARAMS
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, spatial_attention
from consistent_video.modules.judging.host.inspect import inspect_model
from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.host.planner import GIB, sampling_peak
from consistent_video.nodes.report import InspectVideoModel

from ..attention_control.controlled import controlled
from ..edits import invert, patched
from ..flows import make
from ..small import FRAMES, clip_latent, random_model
from ..tuning.tuned import SETTINGS, lora_of, run


def kinds(model: ModelPatcher) -> dict[str, dict]:
    return {one["kind"]: one for one in inspect_model(model)[1]["others"]}


def conflicts(model: ModelPatcher) -> dict[str, dict]:
    return {one["name"]: one for one in inspect_model(model)[1]["conflicts"]}


def replaced(model: ModelPatcher, name: str, *place) -> ModelPatcher:
    clone = model.clone()
    clone.set_model_patch_replace(
        lambda q, k, v, options: optimized_attention(q, k, v, options["n_heads"]), name, *place
    )
    return clone


def test_an_image_model_is_told_to_be_inflated() -> None:
    model = random_model()
    same, report, data = InspectVideoModel.execute(model).args
    assert same is model and "Inflate UNet" in report
    found = json.loads(data)
    assert found["clip"] is None and found["others"] == [] and found["conflicts"] == []
    assert found["model"]["weights"] == found["model"]["computes_in"] == "float32"


def test_what_this_pack_attached_is_told() -> None:
    patch = patched(spatial="key-frame")
    report, data = inspect_model(patch)
    assert data["clip"]["attention"]["kind"] == "key-frame" and "not tuned" in report
    tuned = apply_tune(random_model(), run(patched(), SETTINGS.changed(steps=1)), 0.5, 0.25)
    report, data = inspect_model(tuned)
    assert data["clip"]["temporal_tuned"] and data["clip"]["temporal_strength"] == 0.25
    assert (data["clip"]["tunes"], data["clip"]["tuned_frames"]) == (1, FRAMES)
    assert "fine-coarse, r 2, area, strength 1" in report and "not tuned" not in report


def test_attention_control_is_told() -> None:
    model = patched()
    followed = controlled(model, invert(model, clip_latent()), ControlSettings(cross_end=0.4))
    report, data = inspect_model(followed)
    assert data["attention_control"]["cross_end"] == 0.4 and "cross_end 0.4" in report
    assert data["others"] == []
    assert "cross-attention replaced" in conflicts(replaced(followed, "attn2", "middle", 0))
    assert "cross-attention replaced" not in conflicts(replaced(model, "attn2", "middle", 0))


def test_what_other_nodes_attached_is_told_by_their_names() -> None:
    model = patched()
    lora = lora_of(model)
    (model,) = RescaleCFG().patch(comfy.sd.load_lora_for_models(model, None, lora, 0.5, 0.0)[0], 0.7)
    model = FreeU.execute(model, 1.1, 1.2, 0.9, 0.2).args[0]
    model.set_model_unet_function_wrapper(lambda call, given: call(given["input"], given["timestep"], **given["c"]))
    model.add_object_patch("first_stage", 3)
    found = kinds(model)
    assert found.keys() == {
        "patches output_block_patch",
        "sampler_cfg_function",
        "model_function_wrapper",
        "weight patches (LoRA and the like)",
        "object patches",
    }
    assert found["patches output_block_patch"]["by"] == ["FreeU (comfy_extras.nodes_freelunch)"]
    assert found["sampler_cfg_function"]["by"] == ["RescaleCFG (comfy_extras.nodes_model_advanced)"]
    assert found["weight patches (LoRA and the like)"]["count"] == len(lora) / 2
    assert found["object patches"]["by"] == ["first_stage"]
    assert "guidance replaced" in conflicts(model)


def runs_transformers(model: ModelPatcher) -> ModelPatcher:
    clone = model.clone()
    clone.set_model_forward_timestep_embed_patch((SpatialTransformer, lambda layer, x, *rest: x))
    return clone


def in_windows(model: ModelPatcher, length: int = 4) -> ModelPatcher:
    given = length, 2, "standard_static", 1, False, "pyramid", 0, False
    return ContextWindowsManualNode.execute(model, *given, causal_window_fix=False).args[0]


def on_devices(model: ModelPatcher) -> ModelPatcher:
    clone = model.clone()
    clone.set_additional_models("multigpu", [model.clone()])
    return clone


def with_context_options(model: ModelPatcher) -> ModelPatcher:
    clone = model.clone()
    clone.set_attachments(PARAMS, SimpleNamespace(context_options=SimpleNamespace(context_length=16)))
    return clone


def transformer() -> ModelPatcher:
    return attach(make("SD3"), spatial_attention("first-frame", 2), None)


CAUSES = {
    "self-attention replaced": lambda: SelfAttentionGuidance.execute(patched(), 0.5, 2.0).args[0],
    "blocks replaced": lambda: replaced(transformer(), "dit", "double_block", 0),
    "layers run by another node": lambda: runs_transformers(patched()),
    "several devices": lambda: on_devices(patched()),
    "tokens rearranged": lambda: HyperTile.execute(patched(), 32, 2, 0, False)[0],
    "windows of other lengths": lambda: in_windows(inflate(patched(), 3)),
    "windows along another axis": lambda: WanContextWindowsManualNode.execute(
        transformer(), 21, 5, "standard_static", 1, False, "pyramid", False
    ).args[0],
    "windows of AnimateDiff-Evolved": lambda: with_context_options(patched()),
    "cross-attention replaced": lambda: replaced(
        controlled(patched(), invert(patched(), clip_latent()), ControlSettings()), "attn2", "middle", 0
    ),
    "parts for noise in a flow": lambda: ModelSamplingSD3().patch(patched(), 3.0)[0],
    "noise levels moved": lambda: ModelSamplingSD3().patch(
        attach(patched(), spatial_attention("full", 2), None, percents=(0.1, 1.0)), 3.0
    )[0],
    "guidance replaced": lambda: RescaleCFG().patch(patched(), 0.7)[0],
}


@pytest.mark.parametrize("name", [conflict.name for conflict in CONFLICTS])
def test_every_conflict_is_found_where_it_is_and_nowhere_else(name: str) -> None:
    model = CAUSES[name]()
    assert conflicts(model).keys() == {name}
    assert conflicts(model)[name]["what"] in inspect_model(model)[0]


@pytest.mark.parametrize(
    "attached", [patched, lambda: in_windows(patched()), lambda: patched(preset=PER_FRAME), transformer]
)
def test_a_model_without_conflicts_has_none(attached) -> None:
    assert not conflicts(attached())


def test_blocks_that_the_host_does_not_let_others_replace_are_not_told() -> None:
    z_image = attach(make("Z-Image"), spatial_attention("full", 2), None)
    for model in (z_image, patched()):
        assert not conflicts(replaced(model, "dit", "double_block", 0))


def test_what_connects_no_frames_does_not_mind_others() -> None:
    assert not conflicts(runs_transformers(replaced(patched(preset=PER_FRAME), "attn1", "middle", 0)))


def test_another_sampling_is_told() -> None:
    distilled = ModelSamplingDiscrete().patch(patched(), "lcm", False)[0]
    assert "LCM" in inspect_model(distilled)[0]


def test_memory_is_that_of_the_planner() -> None:
    model, latent = patched(preset=EI2), clip_latent(32)
    expected = sampling_peak(model, tuple(latent["samples"].shape))
    freed = FreeU.execute(model, 1.1, 1.2, 0.9, 0.2).args[0]
    assert inspect_model(freed, latent)[1]["sampling"]["gib"] == round(expected / GIB, 2)
    windowed = inspect_model(in_windows(model), clip_latent(64))
    assert windowed[1]["sampling"]["gib"] < inspect_model(model, clip_latent(64))[1]["sampling"]["gib"]
    assert "in each window" in windowed[0]
    with pytest.raises(ValueError, match="16 channels"):
        inspect_model(model, {"samples": clip_latent()["samples"].repeat(1, 4, 1, 1)})
