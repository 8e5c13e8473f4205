"""Checkpointing and chunking: the same gradients from far less memory."""

from inspect import signature
from random import Random

import comfy.model_management
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

from consistent_video.modules.clip_model import chunks
from consistent_video.modules.clip_model.attention.spatial import attend_across_frames
from consistent_video.modules.clip_model.host import calls
from consistent_video.modules.clip_model.methods import EI2, FULL, PRESETS
from consistent_video.modules.tuning.host import learned, private_copy, session
from consistent_video.modules.tuning.host.checkpoints import KINDS
from consistent_video.modules.tuning.settings import TuneSettings

from ..small import clip_latent, random_model, sample
from .tuned import SETTINGS, lively_model, patched, run


def first_gradients(name: str, **changes) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step, which AdamW's first mean is a tenth of."""
    settings = SETTINGS.changed(steps=1, max_grad_norm=0, **changes)
    state = run(patched(name, lively_model()), settings).state
    return {key: 10 * value for key, value in state.items() if key.endswith("exp_avg")}


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in PRESETS), (EI2, "bf16"), (FULL, "fp16")])
def test_checkpointing_leaves_the_gradients_as_they_are(name: str, precision: str) -> None:
    plain, checkpointed = (
        first_gradients(name, precision=precision, gradient_checkpointing=given) for given in (False, True)
    )
    assert_same_gradients(plain, checkpointed)


@pytest.mark.parametrize(("precision", "seed"), [("fp32", 1), ("bf16", 2)])
def test_any_layers_may_be_computed_again(precision: str, seed: int, monkeypatch) -> None:
    plain, random = first_gradients(EI2, precision=precision), Random(seed)

    def choose_some(unet, *_) -> set[torch.nn.Module]:
        return {layer for layer in unet.modules() if isinstance(layer, KINDS) and random.random() < 0.5}

    monkeypatch.setattr(session, "checkpointed_layers", choose_some)
    assert_same_gradients(plain, first_gradients(EI2, precision=precision))


@pytest.mark.parametrize(("precision", "checkpointing"), [("fp32", False), ("fp32", True), ("bf16", True)])
def test_what_is_not_kept_leaves_the_gradients_as_they_are(precision: str, checkpointing: bool, monkeypatch) -> None:
    """Against a UNet whose convolutions are PyTorch's and whose features the host concatenates."""
    given = {"precision": precision, "gradient_checkpointing": checkpointing}
    less = first_gradients(EI2, **given)
    monkeypatch.setattr(learned, "leave_apart", lambda x, skip, _: (x, skip))
    monkeypatch.setattr(private_copy, "forget_inputs", lambda _: None)
    assert_same_gradients(first_gradients(EI2, **given), less)


def test_weights_that_another_node_computes_anew_are_left_to_pytorch() -> None:
    unet = random_model().model.diffusion_model
    unet.out[2].weight_function = [lambda weight: 2 * weight]
    private_copy.forget_inputs(unet)
    convolutions = [layer for layer in unet.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer for layer in convolutions if "forward" not in vars(layer)] == [unet.out[2]] and len(convolutions) > 5


def assert_same_gradients(plain: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """Assert that gradients are those expected, and that there are any."""
    assert plain.keys() == others.keys() and len(plain) >= 20
    assert sum(value.norm() > 1e-6 for value in plain.values()) > 0.4 * len(plain)  # the fewest behind a zero layer
    rounding = 1e-7 * max(value.norm() for value in plain.values())  # some are zero but for it
    for key, value in plain.items():
        assert (others[key] - value).norm() <= 1e-5 * value.norm() + rounding, key


@pytest.mark.parametrize(
    ("name", "precision", "size", "checkpointing"),
    [*((name, "fp32", 2**14, False) for name in PRESETS), (EI2, "fp32", 2**14, True), (EI2, "bf16", 2**26, True)],
)
def test_chunking_leaves_the_gradients_as_they_are(
    name: str, precision: str, size: int, checkpointing: bool, monkeypatch
) -> None:
    plain = first_gradients(name, precision=precision)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", size)
    less = {"chunking": True, "gradient_checkpointing": checkpointing}
    assert_same_gradients(plain, first_gradients(name, precision=precision, **less))


def test_chunking_in_parts_leaves_gradients_of_half_precision_close(monkeypatch) -> None:
    plain = first_gradients(EI2, precision="bf16")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2**14)
    others = first_gradients(EI2, precision="bf16", chunking=True, gradient_checkpointing=True)
    whole, found = (torch.cat([value.flatten() for value in given.values()]) for given in (plain, others))
    assert 0 < (found - whole).norm() < 0.05 * whole.norm()


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", None)])
def test_norms_take_and_give_the_half_precision_of_a_tuning(precision: str, dtype, monkeypatch) -> None:
    normalise, seen = private_copy.normalise_in, []

    def note(kept, norm, x):
        out = normalise(kept, norm, x)
        seen.append((kept, out.dtype, out.device.type, norm.__self__))
        return out

    monkeypatch.setattr(private_copy, "normalise_in", note)
    unet = random_model().model.diffusion_model
    norms = sum(isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)) for module in unet.modules())
    run(patched(EI2), SETTINGS.changed(steps=1, precision=precision))
    device = comfy.model_management.get_torch_device().type
    assert {given[:3] for given in seen} == ({(dtype, dtype, device)} if dtype else set())
    assert len({id(norm) for *_, norm in seen}) == (norms if dtype else 0)


def test_checkpointing_computes_the_layers_twice(monkeypatch) -> None:
    called, kinds = [], (ResBlock, SpatialTransformer)
    for kind in kinds:

        def counted(self, *args, forward=kind.forward, **kwargs):
            called.append(id(self))
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", counted)
    layers = sum(isinstance(module, kinds) for module in random_model().model.diffusion_model.modules())
    run(patched(EI2), SETTINGS.changed(steps=1))
    assert len(called) == len(set(called)) == layers
    called.clear()
    run(patched(EI2), SETTINGS.changed(steps=1, gradient_checkpointing=True))
    counts = [called.count(layer) for layer in dict.fromkeys(called)]
    assert counts == [1] + [2] * (layers - 2) + [1], "nothing is learned before the first; the last is needed at once"


def count_saved_bytes(settings: TuneSettings) -> int:
    """Return what a tuning holds for its backward passes, in bytes."""
    sizes = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(patched(EI2), settings)
    return sum(sizes)


def test_checkpointing_holds_far_less() -> None:
    whole, half, less = (
        count_saved_bytes(SETTINGS.changed(steps=1, gradient_checkpointing=share > 0, checkpointing_share=share))
        for share in (0.0, 0.5, 1.0)
    )
    assert 0 < less < 0.3 * whole and less < half < 0.8 * whole


def test_chunking_holds_less() -> None:
    whole, less = (count_saved_bytes(SETTINGS.changed(steps=1, chunking=given)) for given in (False, True))
    assert 0 < less < 0.75 * whole


@pytest.mark.parametrize("checkpointing", [False, True])
def test_keys_and_values_side_by_side_are_rebuilt_but_in_checkpoints(checkpointing: bool, monkeypatch) -> None:
    asked = []

    def note(*args):
        asked.append(signature(attend_across_frames).bind(*args).arguments["rebuild"])
        return attend_across_frames(*args)

    monkeypatch.setattr(calls, "attend_across_frames", note)
    run(patched(EI2), SETTINGS.changed(steps=1, gradient_checkpointing=checkpointing))
    assert set(asked) == {True, not checkpointing} and (asked.count(True) == 1 or not checkpointing), "the last layer's"
    asked.clear()
    sample(patched(EI2), clip_latent(), 3.0)
    assert set(asked) == {False}, "without gradients there is no backward"
