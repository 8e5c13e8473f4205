"""What conditionings and guiders bring along, graphs in any order, and what remains of them."""

import gc
import weakref
from typing import Any

import comfy.sd
import psutil
import pytest
import torch
from comfy_extras.nodes_custom_sampler import DisableNoise, SamplerCustomAdvanced
from comfy_extras.nodes_freelunch import FreeU
from comfy_extras.nodes_mask import SolidMask
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from comfy_extras.nodes_post_processing import BatchMasksNode
from torch import Tensor

from consistent_video.modules.clip_model.methods import PER_FRAME
from consistent_video.modules.inversion.host.invert import inversion_of
from consistent_video.modules.sampling.host import InvertedClipSampler, SampleSettings
from nodes import ConditioningCombine, ConditioningSetMask

from ..edits import FRAMES, HEIGHT, WIDTH, away, edit, patched, relation
from ..small import EDIT, EMPTY, SOURCE, control_net, prompt
from ..tuning.tuned import lora_of

HINTS = torch.rand(FRAMES, 3, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(12))
RUNS, GROWTH = 10, 64 * 2**20


def steered(*nets: tuple[float, Tensor]) -> list:
    """Return the edited prompt with a chain of ControlNets of some strengths and hints."""
    last = None
    for strength, hints in nets:
        control = control_net().set_cond_hint(hints, strength, (0.0, 1.0))
        last = control.set_previous_controlnet(last)
    return [[EDIT[0][0], {"control": last, "control_apply_to_uncond": True}]]


def test_controlnets_add_up_in_a_chain(model, inversion, edited) -> None:
    one, other = (edit(model, inversion, positive=steered((0.1, hints))) for hints in (HINTS, HINTS.flip(0)))
    both = edit(model, inversion, positive=steered((0.1, HINTS), (0.1, HINTS.flip(0))))
    assert min(away(both, one), away(both, other), away(one, edited)) > 1e-2
    assert torch.equal(edit(model, inversion, positive=steered((0.0, HINTS), (0.1, HINTS.flip(0)))), other)
    turned = edit(model, inversion, positive=steered((0.1, HINTS.flip(0)), (0.1, HINTS)))
    assert away(turned, both) < 1e-4, "their order does not matter"


def test_each_frame_follows_its_own_hint_of_each_net(base, inversion) -> None:
    alone, changed = patched(base=base, preset=PER_FRAME), HINTS.clone()
    changed[2] = 1 - changed[2]
    before = edit(alone, inversion, positive=steered((0.1, HINTS), (0.1, HINTS)))
    for nets in (((0.1, changed), (0.1, HINTS)), ((0.1, HINTS), (0.1, changed))):
        after = edit(alone, inversion, positive=steered(*nets))
        apart = [away(*pair) for pair in zip(after, before, strict=True)]
        assert apart[2] > 1e-3 and max(apart[:2] + apart[3:]) < 1e-5


def guided_perpendicularly(model, inversion, **settings: Any) -> Tensor:
    guider = Guider_PerpNeg(model)
    guider.set_conds(EDIT, SOURCE, EMPTY)
    guider.set_cfg(4.0, 1.0)
    (noise,) = DisableNoise.execute().args
    made = inversion_of(inversion)
    sampler = InvertedClipSampler(made, SampleSettings(**settings))
    return SamplerCustomAdvanced.execute(noise, guider, sampler, made.sigmas, inversion).args[0]["samples"]


def test_perp_neg_guides_a_clip(model, inversion, edited) -> None:
    guided = guided_perpendicularly(model, inversion)
    assert guided.isfinite().all() and away(guided, edited) > 1e-2
    assert away(guided_perpendicularly(model, inversion, relation=relation()), guided) > 1e-3
    with pytest.raises(ValueError, match="cfg_end 0.5 ends the guidance of CFGGuider"):
        guided_perpendicularly(model, inversion, cfg_end=0.5)


def in_frames(conditioning: list, shares: list[float]) -> list:
    """Return a conditioning that counts in each frame as much as its share, by the host's nodes."""
    masks = [SolidMask.execute(share, 8 * WIDTH, 8 * HEIGHT).args[0] for share in shares]
    given = {f"mask{number}": mask for number, mask in enumerate(masks)}
    (mask,) = BatchMasksNode.execute(given).args
    return ConditioningSetMask().append(conditioning, mask, "default", 1.0)[0]


def test_prompts_travel_over_the_frames_by_masks(base, model, inversion) -> None:
    first, last = EDIT, prompt(8)
    travel = ConditioningCombine().combine(in_frames(first, [1, 1, 0.5, 0]), in_frames(last, [0, 0, 0.5, 1]))[0]
    alone = patched(base=base, preset=PER_FRAME)
    found, one, other = (edit(alone, inversion, positive=positive) for positive in (travel, first, last))
    assert max(away(found[:2], one[:2]), away(found[3], other[3])) < 1e-4
    assert min(away(found[2], one[2]), away(found[2], other[2])) > 1e-3
    together = edit(model, inversion, positive=travel)
    assert together.isfinite().all() and away(together, edit(model, inversion, positive=first)) > 1e-2


def chained(base):
    """Return a clip model with LoRA before and FreeU after the frame attention."""
    lora = comfy.sd.load_lora_for_models(base, None, lora_of(base), 0.1, 0.0)[0]
    return FreeU.execute(patched(base=lora), 1.2, 1.2, 1.0, 1.0).args[0]


def test_graphs_in_either_order_and_again_give_the_same(base, model, inversion, edited) -> None:
    other = edit(chained(base), inversion, positive=steered((0.1, HINTS)))
    made = chained(base)  # as the host keeps the results of nodes
    for _ in range(2):
        assert torch.equal(edit(model, inversion), edited)
        assert torch.equal(edit(made, inversion, positive=steered((0.1, HINTS))), other)
    assert torch.equal(edit(made, inversion, positive=steered((0.1, HINTS))), other)
    assert torch.equal(edit(model, inversion), edited)


def test_a_clip_model_goes_with_its_last_user(base, inversion) -> None:
    """Memory must not wait for the garbage collector."""
    made = patched(base=base)
    alive = weakref.ref(made)
    gc.collect()
    gc.disable()
    try:
        edit(made, inversion, relation=relation(), end_step=1)
        del made
        assert alive() is None
    finally:
        gc.enable()


def count_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(kept), Tensor) for kept in gc.get_objects())


def test_nothing_remains_of_a_graph_that_was_run(base, inversion) -> None:
    process = psutil.Process()

    def run_graph() -> None:
        edit(chained(base), inversion, positive=steered((0.1, HINTS)), relation=relation(), end_step=1)

    for _ in range(2):
        run_graph()
    tensors, size = count_tensors(), process.memory_info().rss
    for _ in range(RUNS):
        run_graph()
    assert count_tensors() <= tensors
    assert process.memory_info().rss - size < GROWTH
