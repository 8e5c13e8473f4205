"""The midpoint solver in the host: what it brings back, in how many calls, and what it combines with."""

from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from consistent_video.modules.attention_control.host.call import ControlSettings
from consistent_video.modules.attention_control.host.control import attach_control
from consistent_video.modules.diffusion.midpoint import levels_called
from consistent_video.modules.inversion.host.invert import INVERSION, trajectory
from consistent_video.modules.inversion.host.null_text import check_inversion
from consistent_video.modules.inversion.host.stability import check_plain

from ..attention_control.controlled import PROMPTS, watched
from ..edits import FRAMES, STEPS, away, edit, invert, left_half, patched, relation, walk
from ..small import SOURCE, SmallV, in_windows

MIDPOINT = {"solver": "midpoint"}


@pytest.fixture(scope="module")
def found(model, latent) -> dict[str, Any]:
    return invert(model, latent, **MIDPOINT)


def seen_by(model, called: list[tuple[Tensor, float]]):
    """Return a model that adds the state and the noise level of each of its calls to a list."""

    def see(executor, inner, conds, x, timestep, options):
        called.append((x.clone(), float(timestep[0])))
        return executor(inner, conds, x, timestep, options)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "test", see)
    return model


@pytest.mark.parametrize("kind", [None, SmallV])
def test_the_clip_comes_back_nearer_than_by_ddim_in_as_many_calls(model, latent, kind) -> None:
    model, called = patched(kind) if kind else model, list[tuple[Tensor, float]]()
    lost = []
    for steps, how in ((STEPS, MIDPOINT), (STEPS + 1, {})):
        inversion = invert(seen_by(model, called), latent, steps=steps, **how)
        lost.append(away(edit(seen_by(model, called), inversion, 1.0, SOURCE, SOURCE), latent["samples"]))
        assert len(called) == 2 * (STEPS + 1)
        if how:
            levels = inversion[INVERSION].sigmas
            expected = [*levels_called(levels.flip(0)).tolist(), *levels_called(levels).tolist()]
            assert [level for _, level in called] == pytest.approx(expected)
        called.clear()
    assert lost[0] < lost[1] / 3


@pytest.mark.parametrize("first", [0, 2])
def test_sampling_goes_along_the_inversions_states_from_any_step(model, plain, found, first: int) -> None:
    apart = []
    for inversion in (found, plain):
        states = trajectory(model.model, inversion[INVERSION])[first + 1 :]
        back = walk(model, inversion, cfg=1.0, positive=SOURCE, negative=SOURCE, start_step=first)
        apart.append(max(away(x, state) for x, state in zip(back, states, strict=True)))
    assert apart[0] < apart[1] / 3


def test_relation_masks_and_gamma_steer_an_edit(model, latent, found) -> None:
    plain = edit(model, found)
    tied, masked = edit(model, found, relation=relation()), edit(model, found, mask=left_half())
    assert away(tied, plain) > 1e-3 and away(masked, plain) > 1e-3
    assert away(masked[..., 4:], latent["samples"][..., 4:]) < 1e-3, "where the mask is black, it is the source"
    related = invert(model, latent, 0.5, "both", **MIDPOINT)
    assert torch.equal(related[INVERSION].noises, found[INVERSION].noises)
    assert away(related["samples"], found["samples"]) > 1e-3


def test_windows_move_with_its_steps(latent) -> None:
    alone = in_windows(patched(preset="per frame"), FRAMES - 1)
    inversion = invert(alone, latent, **MIDPOINT)
    assert alone.model_options["context_handler"]._step == STEPS
    whole = patched(preset="per frame")
    assert away(edit(alone, inversion), edit(whole, invert(whole, latent, **MIDPOINT))) < 1e-3


def test_attention_control_knows_the_source_at_each_call(model, found) -> None:
    sources, along = list[Tensor](), list[tuple[Tensor, float]]()
    control = attach_control(model, found, SOURCE, PROMPTS, ControlSettings("refine", 1.0, "replace", 1.0))
    assert away(edit(watched(control, sources.append), found), edit(model, found)) > 1e-3
    edit(seen_by(model, along), found, 1.0, SOURCE, SOURCE)
    scaled = model.model.model_sampling.calculate_input
    for x, (own, level) in zip(sources, along, strict=True):
        assert away(x, scaled(torch.tensor(level), own)) < 0.1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label": "current", "refinements": 2}, "label current and refinements 2 does"),
        ({"method": "edit-friendly DDPM"}, "method edit-friendly DDPM does"),
    ],
)
def test_what_belongs_to_ddim_is_refused(model, latent, settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words} not combine with solver midpoint.* or solver to DDIM"):
        invert(model, latent, **settings, **MIDPOINT)


def test_what_samples_by_steps_of_ddim_is_refused(model, found) -> None:
    with pytest.raises(ValueError, match="^eta 0.5 adds noise .*solver midpoint.* Set eta to 0"):
        edit(model, found, eta=0.5)
    with pytest.raises(ValueError, match="made with solver midpoint.*solver of the inversion to DDIM"):
        check_inversion(found[INVERSION])
    with pytest.raises(ValueError, match="solver = midpoint.*solver to DDIM"):
        check_plain(found[INVERSION])
    for settings, part in (
        (ControlSettings(local_blend=True), "local_blend"),
        (ControlSettings(recipe="FateZero"), "recipe FateZero"),
    ):
        with pytest.raises(ValueError, match=f"^{part} belongs to steps of DDIM.*Invert with solver DDIM"):
            attach_control(model, found, SOURCE, PROMPTS, settings)
