"""Clips in the host's context windows: they see each other, and each has its own hints of a ControlNet."""

from types import SimpleNamespace

import pytest
import torch
from comfy.context_windows import ContextFuseMethods, ContextSchedule, ContextSchedules, IndexListContextHandler
from comfy.context_windows import get_matching_fuse_method as fuse
from comfy_extras.nodes_model_patch import DiffSynthCnetPatch

from consistent_video.modules.clip_model.host import windows
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, method
from consistent_video.modules.inversion.host.invert import invert_clip
from consistent_video.modules.inversion.inversion import InversionSettings

from ..flows import video_vae
from ..small import EDIT, EMPTY, FRAMES, HEIGHT, SOURCE, WIDTH, clip_latent, control_net, in_windows, sample
from .patched import patched

SCHEDULES = [value for name, value in vars(ContextSchedules).items() if name.isupper()]
FUSED = ContextFuseMethods.LIST_STATIC
ONE_STEP = {"sigmas": (5.0, 0.0)}
LONG = 7


def connected(model):
    """Return a model whose frames see each other by fine-coarse attention alone."""
    return patched(model, EI2, temporal_strength=0.0)


def change(latent: dict, frame: int) -> dict:
    samples = latent["samples"].clone()
    samples[frame] += 5
    return {"samples": samples}


def test_one_window_of_the_whole_clip_is_the_clip(model, latent) -> None:
    """Its memory is in use, unlike where the host sees that it needs no windows."""
    windowed = connected(model)
    whole = ContextSchedule("whole", lambda frames, handler, options: [list(range(frames))])
    handler = IndexListContextHandler(whole, fuse("flat"), FRAMES - 1, causal_window_fix=False)
    windowed.model_options["context_handler"] = handler
    torch.testing.assert_close(sample(windowed, latent), sample(connected(model), latent), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frame", [0, LONG - 1])
@pytest.mark.parametrize("fix", [True, False])
def test_every_window_sees_every_frame_in_one_step(model, frame, fix) -> None:
    clip = clip_latent(LONG)
    apart = {}
    for name, clip_model in {"memory": connected(model), "none": patched(model, EI2, spatial_strength=0.0)}.items():
        windowed = in_windows(clip_model, 3, causal_window_fix=fix)
        before, after = (sample(windowed, each, **ONE_STEP) for each in (clip, change(clip, frame)))
        apart[name] = (after - before).abs().amax(dim=(1, 2, 3))
    assert (apart["memory"] > 1e-3).all()
    assert (apart["none"][LONG - 1 - frame] < 1e-3).all(), "STAM sees its window alone"


@pytest.mark.parametrize(("schedule", "method_of_fusing"), list(zip(SCHEDULES, FUSED, strict=True)))
def test_the_hosts_schedules_and_fuse_methods_work(model, schedule, method_of_fusing, monkeypatch) -> None:
    """And what they make is closer to the clip without windows than where each window is for itself."""
    clip, whole = clip_latent(LONG), connected(model)
    given = {"length": 3, "schedule": schedule, "fuse_method": method_of_fusing}
    expected, seeing = sample(whole, clip), sample(in_windows(whole, **given), clip)
    monkeypatch.setattr(windows, "make_memory", lambda *_: None)
    blind = sample(in_windows(whole, **given), clip)
    assert (seeing - expected).norm() < 0.5 * (blind - expected).norm()


def test_joined_and_split_conditionings_agree(model, monkeypatch) -> None:
    windowed, clip = in_windows(connected(model), 3), clip_latent(LONG)
    joined = sample(windowed, clip)
    monkeypatch.setattr(type(model.model), "memory_required", lambda *args, **kwargs: float("inf"))
    torch.testing.assert_close(sample(windowed, clip), joined, rtol=1e-4, atol=1e-4)


def test_where_the_attention_acts_the_memory_is_filled_and_elsewhere_not(model, monkeypatch) -> None:
    calls = []
    apply_model = type(model.model).apply_model
    monkeypatch.setattr(
        type(model.model), "apply_model", lambda *args, **given: calls.append(1) or apply_model(*args, **given)
    )
    for percents, acting in (((0.0, 1.0), 3), ((0.0, 0.1), 0), ((0.5, 1.0), 1)):
        calls.clear()
        sample(in_windows(patched(model, EI2, percents=percents), 3), clip_latent(LONG))
        assert len(calls) == 3 * (3 + acting), "three windows, and as many that fill; the sampling has three steps"


def test_inversion_frame_by_frame_does_not_depend_on_the_windows(model) -> None:
    alone, clip = attach(inflate(model), *method(PER_FRAME)), clip_latent(LONG)
    settings = InversionSettings(5, 0.0, "none")
    whole, *others = (
        invert_clip(windowed, SOURCE, EMPTY, clip, settings)["samples"]
        for windowed in (alone, *(in_windows(alone, length) for length in (2, 3, 5)))
    )
    for other in others:
        torch.testing.assert_close(other, whole, rtol=1e-4, atol=1e-4 * whole.abs().max().item())


def steered(hints: torch.Tensor, *before: torch.Tensor) -> list:
    control = control_net().set_cond_hint(hints, 1.0, (0.0, 1.0))
    for earlier in before:
        control.set_previous_controlnet(control_net().set_cond_hint(earlier, 1.0, (0.0, 1.0)))
    return [[EDIT[0][0], {"control": control, "control_apply_to_uncond": True}]]


def draw_hints(count: int, seed: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fix", [True, False])
@pytest.mark.parametrize("count", [1, LONG])
def test_every_window_has_the_hints_of_its_frames(model, count, fix) -> None:
    """Frames that do not see each other come out of windows as they do without them."""
    alone, clip, positive = inflate(model), clip_latent(LONG), steered(draw_hints(count), draw_hints(LONG, seed=13))
    windowed = sample(in_windows(alone, 3, causal_window_fix=fix), clip, positive=positive)
    torch.testing.assert_close(windowed, sample(alone, clip, positive=positive), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(windowed, sample(alone, clip), rtol=1e-2)
    assert len(positive[0][1]["control"].cond_hint_original) == count


@pytest.mark.parametrize("length", [0, 3])
@pytest.mark.parametrize("count", [2, LONG - 1, LONG + 1])
def test_another_number_of_hints_is_refused(model, count, length) -> None:
    alone = in_windows(inflate(model), length) if length else inflate(model)
    for positive in (steered(draw_hints(count)), steered(draw_hints(LONG), draw_hints(count))):
        with pytest.raises(ValueError, match=f"ControlNet has {count} hints and the clip {LONG} frames"):
            sample(alone, clip_latent(LONG), positive=positive)


def test_hints_that_a_video_vae_would_mix_are_refused(model) -> None:
    """Those of a ControlNet and of one that is a patch of the model; one hint is for all frames."""
    vae, network = video_vae(), SimpleNamespace(additional_in_dim=0, process_input_latent_image=lambda x: x)
    positive, patched_model = steered(draw_hints(LONG)), inflate(model)
    positive[0][1]["control"].vae = vae
    with pytest.raises(ValueError, match=f"ControlNet has {LONG} hints and encodes them by a video VAE"):
        sample(patched_model, clip_latent(LONG), positive=positive)
    for count in (1, 3):
        patch = DiffSynthCnetPatch(SimpleNamespace(model=network), vae, torch.rand(count, 16, 16, 3), 1.0)
        patch.models = list
        patched_model = inflate(model)
        patched_model.set_model_double_block_patch(patch)
        if count == 1:
            assert sample(patched_model, clip_latent(LONG), **ONE_STEP).isfinite().all()
            continue
        with pytest.raises(ValueError, match="ControlNet has 3 hints and encodes them by a video VAE"):
            sample(patched_model, clip_latent(LONG))
