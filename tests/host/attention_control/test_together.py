"""The source's rows in one call with the edit's, against two calls."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from comfy.conds import CONDConstant, CONDCrossAttn, CONDRegular
from comfy.patcher_extension import WrappersMP

from consistent_video.modules.attention_control.host.call import ControlSettings
from consistent_video.modules.attention_control.host.control import attach_control
from consistent_video.modules.attention_control.host.together import APART, ELSEWHERE, fit_together
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import TemporalBank, transformer_blocks
from consistent_video.modules.clip_model.methods import EI2, method
from consistent_video.modules.clip_model.temporal import TemporalConfig
from consistent_video.modules.inversion.host.invert import invert_clip
from consistent_video.modules.sampling.host import SampleSettings, sample_clip
from consistent_video.modules.slices.host import SliceSettings, attach_slices

from ..small import EDIT, EMPTY, FRAMES, TOKENS, clip_latent, control_net, family_model, in_windows, prompt
from .controlled import PLAIN, PROMPTS, WEIGHTED, controlled, counted, sample


def without_room(monkeypatch, model) -> None:
    """Let the host find no memory for two conditionings at once."""
    monkeypatch.setattr(type(model.model), "memory_required", lambda *args, **kwargs: float("inf"))


@pytest.mark.parametrize(("fused", "recipe"), [("replace", "general"), ("fusion", "general"), ("replace", "FateZero")])
def test_conditionings_joined_with_the_source_and_split_agree(model, inversion, monkeypatch, fused, recipe) -> None:
    """Source and both sides are one call where nothing of the source is needed before: not its mask, no other level."""
    rows: list[int] = []
    settings = ControlSettings("refine", 0.8, fused, 0.6, local_blend=True, recipe=recipe)
    model = counted(controlled(model, inversion, settings, WEIGHTED), rows)
    joined = sample(model, inversion)
    of_steps = {"replace": [3] * 5, "fusion": [1, 2] * 3 + [3] * 2, "FateZero": [1, 2] * 4 + [2]}
    assert rows == [FRAMES * sides for sides in of_steps[fused if recipe == "general" else recipe]]
    rows.clear()
    without_room(monkeypatch, model)
    split = sample(model, inversion)
    assert set(rows) == {FRAMES}
    torch.testing.assert_close(split, joined, rtol=1e-3, atol=1e-3)


def hinted() -> list:
    hint = torch.rand(FRAMES, 3, 96, 64, generator=torch.Generator().manual_seed(8))
    return [[EDIT[0][0], {**EDIT[0][1], "control": control_net().copy().set_cond_hint(hint, 1.0, (0.0, 1.0))}]]


@pytest.mark.parametrize(
    ("change", "positive", "rows"),
    [
        (lambda model: model, hinted, [2 * FRAMES, FRAMES]),  # which the negative prompt has not
        (lambda model: model, lambda: EDIT + prompt(9), [4 * FRAMES]),
        (lambda model: attach_slices(model, EMPTY, SliceSettings()), lambda: EDIT, [3 * FRAMES]),
        (partial(in_windows, length=3), lambda: EDIT, [9, 6, 9, 9]),
    ],
    ids=["ControlNet", "two prompts", "slices", "windows"],
)
def test_one_call_gives_what_two_give(model, inversion, monkeypatch, change, positive, rows) -> None:
    found: list[int] = []
    edited, settings = positive(), ControlSettings("refine", 0.8, "replace", 0.6, local_blend=True)
    changed = change(counted(controlled(model, inversion, settings, WEIGHTED), found))
    joined = sample(changed, inversion, positive=edited)
    without_room(monkeypatch, model)
    assert found[: len(rows)] == rows
    split = sample(changed, inversion, positive=edited)
    assert max(found[-len(rows) :]) <= FRAMES
    torch.testing.assert_close(joined, split, rtol=1e-4, atol=1e-4)


def test_other_nodes_are_shown_the_edit_alone(model, inversion) -> None:
    """Those that wrap the evaluation of rows; what they do to the source's would be lost, or spoil it."""
    shown, taken = list[int](), list[int]()
    settings = ControlSettings("refine", 1.0, "replace", 1.0)
    clip_model = counted(controlled(model, inversion, settings), shown, WrappersMP.APPLY_MODEL)
    sample(counted(clip_model, taken), inversion)
    assert shown == [2 * FRAMES] * 5
    assert taken == [3 * FRAMES] * 5


def test_pooled_text_and_modules_go_along(monkeypatch) -> None:
    """SDXL's call takes the pooled text; Video-P2P's control acts on temporal modules."""
    base, found = family_model("SDXL"), list[int]()
    config = TemporalConfig("layer norm without affine", spectral=False)
    weights = TemporalBank(transformer_blocks(base.model.diffusion_model), config).tensors()
    lively = {key: 12 * value if "to_q" in key or "to_k" in key else value for key, value in weights.items()}
    model = attach(inflate(base), method(EI2, 2)[0], config, tensors=lively)
    source, edit, empty = (prompt(seed, 56) for seed in (3, 5, 4))
    inversion = invert_clip(model, source, source, clip_latent(), replace(PLAIN, steps=2))
    settings = ControlSettings("refine", 1.0, "replace", 1.0, recipe="Video-P2P")
    clip_model = counted(attach_control(model, inversion, source, PROMPTS, settings), found)

    def edited(model) -> torch.Tensor:
        return sample_clip(model, edit, empty, inversion, SampleSettings(3.0))[0]["samples"]

    joined, free = edited(clip_model), edited(model)
    assert found == [3 * FRAMES] * 2
    without_room(monkeypatch, model)
    split = edited(clip_model)
    assert found[2:] == [FRAMES] * 6
    assert (joined - split).norm() < 1e-4 * (split - free).norm()


TEXT = torch.zeros(1, TOKENS, 24)


@pytest.mark.parametrize(
    ("options", "edit", "fits"),
    [
        ({}, {}, True),
        *(({key: object()}, {}, False) for key in ELSEWHERE),
        *(({}, {key: object()}, False) for key in APART),
        ({}, {"hooks": None, "strength": 0.5, "mask": TEXT}, True),
        ({}, {"model_conds": {"c_crossattn": CONDCrossAttn(TEXT.repeat(1, 2, 1))}}, False),
        ({}, {"model_conds": {"c_crossattn": CONDCrossAttn(TEXT), "y": CONDRegular(torch.zeros(1, 3))}}, False),
    ],
)
def test_together_is_what_the_host_evaluates_in_one_way(options, edit, fits) -> None:
    """Up to two thirds of the memory that is free, of three conditionings."""
    free = 3 * FRAMES * 1.5
    patcher = SimpleNamespace(get_free_memory=lambda device: free)
    model = SimpleNamespace(memory_required=lambda shape, cond_shapes: shape[0], current_patcher=patcher)
    plain = {"model_conds": {"c_crossattn": CONDCrossAttn(TEXT)}}
    given = [plain], [[{**plain, **edit}], [plain]], torch.zeros(FRAMES, 4, 12, 8), options
    assert not fit_together(model, *given)
    free += 1
    assert fit_together(model, *given) is fits
    assert fit_together(model, given[0], [given[1][0], None], *given[2:]) is fits
    constant = [{"model_conds": {"frames": CONDConstant(FRAMES)}}]
    assert not fit_together(model, constant, [constant], *given[2:])
