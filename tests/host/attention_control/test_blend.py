"""Where an edit keeps to the source: fusion and local blend."""

from dataclasses import replace
from unittest import mock

import torch
from torch.nn import functional as F

from consistent_video.modules.attention_control.host import call as control_call
from consistent_video.modules.attention_control.host.call import ControlSettings

from ..small import FRAMES
from .controlled import STEPS, controlled, sample


def fixed_mask(mask: torch.Tensor):
    """Let every mask be this one, shape (f, 1, 2, 1), in its larger blocks."""
    resize = lambda height, width: F.interpolate(mask, size=(height, width))  # noqa: E731
    return mock.patch.object(control_call, "threshold_mask", lambda maps, threshold, h, w, how: resize(h, w).to(maps))


def test_fusion_keeps_to_the_source_outside_of_the_mask(model, inversion) -> None:
    """A mask of all is no self-attention control, one of nothing is replacing."""
    fusion, nothing = (ControlSettings("refine", 0.6, "fusion", end) for end in (0.6, 0.0))
    replacing = replace(fusion, self_attention="replace")
    results = {}
    for value in (0.0, 0.5, 1.0):
        with fixed_mask(torch.full((FRAMES, 1, 2, 1), value)):
            results[value] = sample(controlled(model, inversion, fusion), inversion)
    expected = sample(controlled(model, inversion, replacing), inversion)
    torch.testing.assert_close(results[0.0], expected, rtol=1e-4, atol=1e-4)
    expected = sample(controlled(model, inversion, nothing), inversion)
    torch.testing.assert_close(results[1.0], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(results[0.5], results[0.0], atol=1e-2)


def test_local_blend_keeps_the_source_outside_of_the_mask(model, inversion, latent) -> None:
    settings = ControlSettings("refine", 0.8, "replace", 0.5, local_blend=True)
    half = torch.zeros(FRAMES, 1, 2, 1)
    half[:, :, 1] = 1
    with fixed_mask(half):
        ours = sample(controlled(model, inversion, settings), inversion).cpu()
    middle = ours.shape[-2] // 2
    source = latent["samples"]
    torch.testing.assert_close(ours[..., :middle, :], source[..., :middle, :], rtol=1e-4, atol=1e-4)
    assert (ours - source)[..., middle:, :].abs().mean() > 0.1
    with fixed_mask(torch.ones(FRAMES, 1, 2, 1)):
        everywhere = sample(controlled(model, inversion, settings), inversion)
    unblended = sample(controlled(model, inversion, replace(settings, local_blend=False)), inversion)
    torch.testing.assert_close(everywhere, unblended, rtol=1e-4, atol=1e-4)


def test_the_mask_is_made_of_both_prompts_words_over_the_steps(model, inversion) -> None:
    """The maps given to the mask are sums over layers of one size and over the steps so far."""
    given = []
    make = control_call.threshold_mask

    def note(maps, threshold, height, width, resize):
        given.append((maps.clone(), threshold))
        return make(maps, threshold, height, width, resize)

    settings = ControlSettings("none", 0.0, "replace", 0.0, local_blend=True, threshold=0.4)
    with mock.patch.object(control_call, "threshold_mask", note):
        sample(controlled(model, inversion, settings), inversion)
    assert len(given) == 2 * (STEPS - 1) and {threshold for _, threshold in given} == {0.4}
    for maps in (given[::2], given[1::2]):
        totals = [one.sum().item() for one, _ in maps]
        assert totals == sorted(totals) and totals[0] > 0
    assert len({tuple(maps.shape[-2:]) for maps, _ in given}) == 1
