"""Edit-friendly DDPM inversion in the host: what it brings back, and what it cannot be combined with."""

import pytest
import torch

from consistent_video.modules.attention_control.host.call import ControlSettings
from consistent_video.modules.attention_control.host.control import attach_control
from consistent_video.modules.diffusion.ddim import latent_to_state
from consistent_video.modules.inversion.host.invert import INVERSION, trajectory
from consistent_video.modules.inversion.host.stability import measure_stability

from ..attention_control.controlled import PROMPTS
from ..edits import away, edit, invert, patched, relation
from ..small import SOURCE, SmallV, family_model

DDPM = {"method": "edit-friendly DDPM", "seed": 3}


@pytest.fixture(scope="module")
def found(model, latent):
    return invert(model, latent, **DDPM)


@pytest.mark.parametrize("start_step", [0, 2])
def test_the_clip_comes_back_however_few_the_steps(model, latent, plain, found, start_step: int) -> None:
    back, by_ddim = (edit(model, inversion, 1.0, SOURCE, SOURCE, start_step=start_step) for inversion in (found, plain))
    assert away(back, latent["samples"]) < min(2e-3, away(by_ddim, latent["samples"]) / 5)


def test_it_knows_v_prediction(latent) -> None:
    model = patched(SmallV)
    back = edit(model, invert(model, latent, **DDPM), 1.0, SOURCE, SOURCE)
    assert away(back, latent["samples"]) < 2e-3


def test_its_states_are_the_clip_with_noise_of_their_own(model, latent, found) -> None:
    states, sigmas = trajectory(model.model, found[INVERSION]), found[INVERSION].sigmas
    clean = latent_to_state(model.model.process_latent_in(latent["samples"]), sigmas[-1])
    torch.testing.assert_close(states[-1], clean)
    first, second = (((state - clean) / sigma).flatten() for state, sigma in zip(states[:2], sigmas[:2], strict=True))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.15
    other = invert(model, latent, **{**DDPM, "seed": 4})
    assert not torch.allclose(other["samples"], found["samples"], rtol=0.1)


def test_an_edit_holds_what_the_relation_and_attention_control_say(model, latent, found) -> None:
    plain = edit(model, found)
    assert away(plain, latent["samples"]) > 0.01
    tied = edit(model, found, relation=relation())
    controlled = attach_control(model, found, SOURCE, PROMPTS, ControlSettings("refine", 0.8, "replace", 0.4))
    assert away(tied, plain) > 1e-3 and away(edit(controlled, found), plain) > 1e-3


def test_the_relation_moves_the_start(model, latent, found) -> None:
    related = invert(model, latent, 0.5, "both", **DDPM)
    assert torch.equal(related[INVERSION].noises, found[INVERSION].noises)
    assert not torch.allclose(related["samples"], found["samples"], rtol=1e-2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"label": "current", "refinements": 2}, "label current and refinements 2"), ({"start": "every step"}, "start")],
)
def test_what_only_ddim_inversion_has_is_refused(model, latent, settings, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}.* where method is edit-friendly DDPM.* or method to DDIM"):
        invert(model, latent, **settings, **DDPM)


def test_more_noise_is_refused(model, found) -> None:
    with pytest.raises(ValueError, match="^eta 0.5 adds noise .* Set eta to 0, or invert by DDIM"):
        edit(model, found, eta=0.5)


def test_the_bound_is_on_ddim_inversion(found) -> None:
    with pytest.raises(ValueError, match="method = edit-friendly DDPM.*method to DDIM"):
        measure_stability(patched(base=family_model("SD1.x")), SOURCE, found)
