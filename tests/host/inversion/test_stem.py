"""STEM inversion in the host: what its bases are in the limit, and what it goes together with."""

import json

import pytest
import torch

from consistent_video.modules.clip_model.methods import EI2, FULL, PER_FRAME
from consistent_video.modules.inversion.host.identity import model_digest
from consistent_video.modules.inversion.host.invert import INVERSION
from consistent_video.modules.inversion.host.stability import measure_stability
from consistent_video.nodes.inversion import INRBidirectionalDDIMInversion

from ..edits import FRAMES, HEIGHT, STEPS, WIDTH, away, edit, invert, patched
from ..small import EMPTY, SOURCE, family_model, in_windows

TOKENS = FRAMES * HEIGHT * WIDTH  # on the largest map


@pytest.fixture(scope="module")
def found(model, latent):
    return invert(model, latent, method="STEM", bases=9)


@pytest.mark.parametrize(("preset", "cfg"), [(PER_FRAME, 1.0), (EI2, 3.0)])
def test_with_a_basis_for_each_token_it_is_ddim_with_full_attention_to_the_bit(latent, preset: str, cfg: float) -> None:
    how = {"steps": 2, "cfg": cfg}
    full = invert(patched(preset=FULL, temporal="none" if preset == PER_FRAME else "STAM"), latent, **how)
    stem, fewer = (
        invert(patched(preset=preset), latent, **how, method="STEM", bases=bases) for bases in (TOKENS, TOKENS - 1)
    )
    assert torch.equal(stem["samples"], full["samples"])
    assert torch.equal(stem[INVERSION].noises, full[INVERSION].noises)
    assert away(fewer["samples"], full["samples"]) > 1e-6


def test_of_one_frame_it_then_is_plain_ddim_inversion(latent) -> None:
    model, one = patched(preset=PER_FRAME), {"samples": latent["samples"][:1]}
    stem = invert(model, one, steps=2, method="STEM", bases=HEIGHT * WIDTH)
    assert torch.equal(stem["samples"], invert(model, one, steps=2)["samples"])


def test_the_bases_are_seen_in_the_inversion_alone(model, latent, plain, found) -> None:
    assert away(found["samples"], plain["samples"]) > 5e-4
    assert found[INVERSION].model == plain[INVERSION].model == model_digest(model)
    assert torch.equal(invert(model, latent)["samples"], plain["samples"])
    back = edit(model, found, 1.0, SOURCE)
    assert 0 < away(back, edit(model, plain, 1.0, SOURCE)) < 0.01


def test_the_relation_moves_its_start(model, latent, found) -> None:
    related = invert(model, latent, 0.5, "both", method="STEM", bases=9)
    assert torch.equal(related[INVERSION].noises, found[INVERSION].noises)
    assert away(related["samples"], found["samples"]) > 0.01


def test_the_node_reports_it(model, latent, found) -> None:
    widgets = {"steps": STEPS, "denoise": 1.0, "gamma": 0.0, "direction": "both", "label": "next"}
    inverted, _, report = INRBidirectionalDDIMInversion.execute(
        model, SOURCE, latent, EMPTY, **widgets, method="STEM", bases=9
    ).args
    assert torch.equal(inverted["samples"], found["samples"])
    assert json.loads(report).items() >= {"method": "STEM", "bases": 9}.items()
    with pytest.raises(ValueError, match="^bases must be 1 or more, got 0"):
        invert(model, latent, method="STEM", bases=0)


def test_what_it_cannot_go_together_with_is_refused(model, latent, found) -> None:
    with pytest.raises(ValueError, match="^method STEM finds bases of the whole clip, .* model 3 of 4 frames"):
        invert(in_windows(model, 3), latent, method="STEM")
    replaced = model.clone()
    replaced.set_model_attn1_replace(in_windows, "middle", 0)
    with pytest.raises(ValueError, match="^model carries in_windows .* so does method STEM. Connect the model before"):
        invert(replaced, latent, method="STEM")
    adding = model.clone()
    adding.set_model_attn1_patch(lambda q, k, v, options: (q, k.repeat(1, 2, 1), v.repeat(1, 2, 1)))
    with pytest.raises(ValueError, match="got 96 keys for 48 tokens.*which method STEM does not know"):
        invert(adding, latent, method="STEM")
    with pytest.raises(ValueError, match="method = STEM.*method to DDIM"):
        measure_stability(patched(base=family_model("SD1.x")), SOURCE, found)
    assert torch.equal(invert(in_windows(model, FRAMES), latent, method="STEM", bases=9)["samples"], found["samples"])
