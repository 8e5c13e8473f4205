"""Guidance and prompts of an edit in the host."""

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_model_advanced import RescaleCFG
from torch import Tensor

from consistent_video.modules.clip_model.host.attach import inflate
from consistent_video.modules.inversion.host.invert import INVERSION

from ..edits import FRAMES, HEIGHT, WIDTH, away, edit, invert, relation, walk
from ..small import EDIT, EMPTY, TOKENS, UNET, control_net, random_model


def test_the_contrast_of_guidance_is_taken_back_as_the_host_does(model, plain, edited) -> None:
    rescaled = edit(model, plain, cfg_rescale=0.7)
    (by_hand,) = RescaleCFG().patch(model, 0.7)
    assert away(rescaled, edit(by_hand, plain)) < 1e-5
    assert away(rescaled, edited) > 0.01 and torch.equal(edit(model, plain), edited)


def test_guidance_ends_where_it_is_told_to(model, plain) -> None:
    guided, ended = walk(model, plain), walk(model, plain, cfg_end=0.4)
    assert [torch.equal(one, other) for one, other in zip(guided, ended, strict=True)] == [True, True, *[False] * 3]
    x, euler = model.model.process_latent_out(guided[1]), comfy.samplers.sampler_object("euler")
    left = plain[INVERSION].sigmas[2:]
    given = torch.zeros_like(x), 1.0, euler, left, EDIT, EMPTY, x
    rest = comfy.sample.sample_custom(model, *given, disable_pbar=True)
    assert away(ended[-1], model.model.process_latent_in(rest)) < 1e-5


@pytest.mark.parametrize("cfg_end", [0.0, 1.0])
def test_guidance_may_be_off_or_on_throughout(model, plain, edited, cfg_end: float) -> None:
    assert torch.equal(edit(model, plain, cfg_end=cfg_end), edited if cfg_end else edit(model, plain, cfg=1.0))


def test_without_guidance_the_negative_is_not_computed(model, plain) -> None:
    rows, seen = list[int](), model.clone()

    def count(call, given: dict) -> Tensor:
        rows.append(len(given["input"]))
        return call(given["input"], given["timestep"], **given["c"])

    seen.set_model_unet_function_wrapper(count)
    walk(seen, plain, cfg_end=0.4)
    assert rows == [2 * FRAMES] * 2 + [FRAMES] * 3


def test_each_frame_follows_its_own_prompt(latent) -> None:
    alone = inflate(random_model())
    inversion = invert(alone, latent)
    prompts = torch.randn(FRAMES, TOKENS, UNET["context_dim"], generator=torch.Generator().manual_seed(8))
    together = edit(alone, inversion, positive=[[prompts, {}]])
    whole = [edit(alone, inversion, positive=[[prompts[n : n + 1], {}]]) for n in range(FRAMES)]
    for n in range(FRAMES):
        assert away(together[n], whole[n][n]) < 1e-4
        assert away(together[n], whole[n - 1][n]) > 0.01


def test_controlnet_and_relation_go_together(model, plain) -> None:
    hints = torch.rand(FRAMES, 3, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(12))

    def steered(strength: float) -> Tensor:
        control = control_net().set_cond_hint(hints, strength, (0.0, 1.0))
        positive = [[EDIT[0][0], {"control": control, "control_apply_to_uncond": True}]]
        return edit(model, plain, positive=positive, relation=relation())

    without = edit(model, plain, relation=relation())
    assert torch.equal(steered(0.0), without)
    assert steered(1.0).isfinite().all() and away(steered(1.0), without) > 0.01


def test_a_guidance_of_another_node_is_not_thrown_away(model, plain) -> None:
    (other,) = RescaleCFG().patch(model, 0.5)
    with pytest.raises(ValueError, match="cfg_rescale 0.7 takes the place of the guidance"):
        edit(other, plain, cfg_rescale=0.7)
    assert away(edit(other, plain), edit(model, plain)) > 1e-3
