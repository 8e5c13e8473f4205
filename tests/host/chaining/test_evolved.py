"""What AnimateDiff-Evolved and Advanced-ControlNet attach, by their names: it fits a clip, or is refused in words."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfy.controlnet import ControlNet

from consistent_video.modules.attention_control.host.call import ControlSettings
from consistent_video.modules.clip_model.host.attach import inflate
from consistent_video.modules.clip_model.host.evolved import PARAMS, SETTINGS, STATE, TOLD
from consistent_video.modules.clip_model.methods import PER_FRAME

from ..attention_control.controlled import controlled
from ..edits import FRAMES, away, edit, invert, patched
from ..small import EDIT, control_net, in_windows
from .test_graphs import HINTS

AGAIN = {"iteration_opts": SimpleNamespace(iterations=2)}
INJECTED = {"image_injection": SimpleNamespace(is_empty=lambda: False)}
GUIDED = {"custom_cfg": object()}
AS_IT_IS = {
    "iteration_opts": SimpleNamespace(iterations=1),
    "image_injection": SimpleNamespace(is_empty=lambda: True),
    "custom_cfg": None,
}


class Choosing(ControlNet):
    """A ControlNet that chooses its hints by the frames that it is told, as those of Advanced-ControlNet do."""

    sub_idxs = None

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        told = transformer_options[TOLD]
        assert told["full_length"] == FRAMES and told["context_length"] == len(told["sub_idxs"])
        hints, self.cond_hint_original = self.cond_hint_original, self.cond_hint_original[told["sub_idxs"]]
        self.cond_hint = None
        try:
            return super().get_control(x_noisy, t, cond, batched_number, transformer_options)
        finally:
            self.cond_hint_original = hints


def steered(hints: Any, kind: type[ControlNet] = ControlNet, **attributes: Any) -> list:
    control = control_net().set_cond_hint(hints, 0.1, (0.0, 1.0))
    control.__class__ = kind
    vars(control).update(attributes)
    return [[EDIT[0][0], {"control": control, "control_apply_to_uncond": True}]]


def evolved(model, **settings: Any):
    clone = model.clone()
    clone.set_attachments(SETTINGS, SimpleNamespace(**settings))
    return clone


def windowed(model):
    """Return a model as it is while AnimateDiff-Evolved samples it in windows."""
    clone = model.clone()
    clone.set_attachments(PARAMS, SimpleNamespace(context_options=SimpleNamespace(context_length=2)))
    clone.model_options["transformer_options"][STATE] = SimpleNamespace(is_using_sliding_context=lambda: True)
    return clone


def test_a_controlnet_that_chooses_its_hints_is_told_the_frames_of_each_window(base, inversion) -> None:
    alone = patched(base=base, preset=PER_FRAME)
    whole = edit(alone, inversion, positive=steered(HINTS))
    found = edit(in_windows(alone, 2), inversion, positive=steered(HINTS, Choosing))
    assert away(found, whole) < 1e-4 < 1e-2 < away(edit(alone, inversion), whole)


def test_hints_that_are_no_pictures_or_have_frames_of_their_own_are_left_to_their_controlnet(model, inversion) -> None:
    sparse = steered(HINTS[:2], sparse_settings=object())
    assert edit(model, inversion, positive=sparse).isfinite().all()
    reference = steered(SimpleNamespace(condhint=HINTS), get_control=lambda *_: None)
    assert torch.equal(edit(model, inversion, positive=reference), edit(model, inversion))


@pytest.mark.parametrize("settings", [AGAIN, INJECTED])
def test_what_begins_from_other_latents_is_refused(model, latent, inversion, settings: dict) -> None:
    other = evolved(model, **settings)
    for run in (lambda: invert(other, latent), lambda: edit(other, inversion)):
        with pytest.raises(
            ValueError, match="in Sample Settings of AnimateDiff-Evolved, which begin from other latents"
        ):
            run()


def test_custom_cfg_is_refused_where_it_would_take_the_place_of_ours(model, latent, inversion) -> None:
    other = evolved(model, **GUIDED)
    with pytest.raises(ValueError, match=r"model of the inversion carries Custom CFG.*before Use Evolved Sampling"):
        invert(other, latent)
    with pytest.raises(ValueError, match=r"cfg_end 0.5 ends the guidance of the sampler, and Custom CFG"):
        edit(other, inversion, cfg_end=0.5)
    assert edit(other, inversion).isfinite().all()


def test_sample_settings_that_change_nothing_change_nothing(model, latent, inversion, edited) -> None:
    other = evolved(model, **AS_IT_IS)
    assert torch.equal(invert(other, latent, steps=3)["samples"], inversion["samples"])
    assert torch.equal(edit(other, inversion), edited)


def test_windows_of_animatediff_evolved_are_told_of_and_refused_in_others(model, base, inversion, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        edit(windowed(inflate(base)), inversion)
        assert "own window" not in caplog.text, "its frames see each other in no case"
        edit(windowed(model), inversion)
        assert "Frames attend to those of their own window alone in Context Options" in caplog.text
    with pytest.raises(ValueError, match=r"both Context Options of AnimateDiff-Evolved and Context Windows \(Manual\)"):
        edit(in_windows(windowed(model), 2), inversion)
    assert edit(in_windows(windowed(model), FRAMES), inversion).isfinite().all(), "the host splits nothing"


def test_attention_control_is_refused_in_windows_of_animatediff_evolved(model, latent) -> None:
    made = invert(model, latent, steps=5)
    other = windowed(controlled(model, made, ControlSettings()))
    with pytest.raises(ValueError, match="Attention Control does not know the frames of Context Options"):
        edit(other, made)
