"""LoRA and tunes on one clip model or several."""

import comfy.hooks
import comfy.sd
import pytest
import torch

from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.modules.tuning.weights import Tune

from ..edits import away, edit, patched
from ..small import EDIT, EMPTY, random_model
from ..tuning.tuned import SETTINGS, lora_of, run


@pytest.fixture(scope="module")
def tunes(base) -> list[Tune]:
    """Two tunes of one model, neither made on the other."""
    return [run(patched(base=base), SETTINGS.changed(steps=2, seed=seed, learning_rate=1e-2)) for seed in (1, 2)]


def with_hooks(conditioning: list, hooks) -> list:
    return [[states, {**values, "hooks": hooks}] for states, values in conditioning]


def test_lora_as_a_hook_is_lora_on_the_model(base, model, inversion, edited) -> None:
    lora = lora_of(base)
    expected = edit(comfy.sd.load_lora_for_models(model, None, lora, 0.1, 0.0)[0], inversion)
    hooks = comfy.hooks.create_hook_lora(lora, 0.1, 0.0)
    sides = {"positive": with_hooks(EDIT, hooks), "negative": with_hooks(EMPTY, hooks)}
    assert away(edit(model, inversion, **sides), expected) < 1e-4 < 1e-2 < away(expected, edited)
    one_side = edit(model, inversion, positive=sides["positive"])
    assert away(one_side, expected) > 1e-2 and away(one_side, edited) > 1e-2
    assert torch.equal(edit(model, inversion), edited)


def test_lora_as_a_hook_goes_with_a_tune(base, inversion, tunes) -> None:
    lora, tuned = lora_of(base), apply_tune(base, tunes[0])
    hooks = comfy.hooks.create_hook_lora(lora, 0.1, 0.0)
    hooked = edit(tuned, inversion, positive=with_hooks(EDIT, hooks), negative=with_hooks(EMPTY, hooks))
    expected = edit(comfy.sd.load_lora_for_models(tuned, None, lora, 0.1, 0.0)[0], inversion)
    assert away(hooked, expected) < 1e-4


def test_two_tunes_in_one_graph_do_not_mix(base, model, inversion, edited, tunes) -> None:
    """The host keeps one set of weights for all clones, and changes it from one to the other."""
    alone = [edit(apply_tune(base, tune), inversion) for tune in tunes]
    assert away(*alone) > 1e-3 and min(away(one, edited) for one in alone) > 1e-3
    models = [apply_tune(base, tune) for tune in tunes]
    for order in ((0, 1), (1, 0), (0, 0, 1)):
        for number in order:
            assert torch.equal(edit(models[number], inversion), alone[number])
        assert torch.equal(edit(model, inversion), edited)


def test_a_tune_does_not_throw_away_another(base, tunes) -> None:
    first = apply_tune(base, tunes[0])
    with pytest.raises(ValueError, match="carries another tune, whose temporal modules"):
        apply_tune(first, tunes[1])
    assert apply_tune(first, run(first, SETTINGS.changed(steps=1)))


def test_one_tune_on_two_checkpoints(base, inversion, tunes) -> None:
    before = {key: value.clone() for key, value in tunes[0].tensors.items()}
    other = random_model()
    alone = [edit(apply_tune(checkpoint, tunes[0]), inversion) for checkpoint in (base, other)]
    assert away(*alone) > 1e-2
    models = [apply_tune(checkpoint, tunes[0]) for checkpoint in (base, other)]
    for number in (1, 0, 1):
        assert torch.equal(edit(models[number], inversion), alone[number])
    assert all(torch.equal(tunes[0].tensors[key], value) for key, value in before.items())
