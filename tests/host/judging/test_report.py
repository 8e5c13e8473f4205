"""The covariate shift of a clip model in the host, against features captured by hand in the host's own sampler."""

import json
from contextlib import contextmanager
from unittest import mock

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import LCM
from torch import Tensor

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import AS_PRESET, EI2, PER_FRAME, TUNE_A_VIDEO_PRESET, method
from consistent_video.modules.diffusion.host.run import run_sampler
from consistent_video.modules.judging.covariate_shift import Shift
from consistent_video.modules.judging.host.report import measure_clip, sigma_at
from consistent_video.nodes.report import CovariateShiftReport

from ..small import EMPTY, FRAMES, SOURCE, TOKENS, Small, SmallV, clip_latent, prompt, random_model

SEED, SHARP = 11, 100
LAYER_NORM, CENTERING = "layer norm without affine", "instance centering"


def clip_model(
    name: str = EI2, kind: type[Small] = Small, norm: str = AS_PRESET, sharp: float = 1, **options
) -> ModelPatcher:
    """Return a clip model; `sharp` multiplies its temporal queries and keys, SHARP for far from uniform."""
    model, chosen = inflate(random_model(kind)), method(name, 2, "area", norm=norm)
    attached = attach(model, *chosen, **options)
    if sharp == 1:
        return attached
    tensors = clip_settings(attached).temporal.tensors()
    scaled = {key: sharp * value if ".to_q." in key or ".to_k." in key else value for key, value in tensors.items()}
    return attach(model, *chosen, tensors=scaled, **options)


@pytest.fixture(scope="module")
def model() -> ModelPatcher:
    return clip_model(sharp=SHARP)


@pytest.fixture(scope="module")
def latent() -> dict[str, Tensor]:
    return clip_latent()


@contextmanager
def captured(model: ModelPatcher):
    """Yield the features before and after each temporal module, in lists by block path."""
    bank = clip_settings(model).temporal
    features: dict[str, list[tuple[Tensor, Tensor]]] = {}
    forwards = []
    for path, module in zip(bank.paths, bank.bank, strict=True):

        def forward(x, *others, path=path, own=module.forward):
            out = own(x, *others)
            features.setdefault(path, []).append((x.clone(), out.clone()))
            return out

        forwards.append(mock.patch.object(module, "forward", forward))
    for forward in forwards:
        forward.start()
    try:
        yield features
    finally:
        for forward in forwards:
            forward.stop()


def shift_of(before: Tensor, after: Tensor) -> Shift:
    """Return the shift of one clip's features, shape (f, l, d), position by position."""
    moved = mean = wide = narrow = 0.0
    for n in range(before.shape[1]):
        z, out = before[:, n].double(), after[:, n].double()
        moved += (out.mean(0) - z.mean(0)).norm().item()
        mean += z.mean(0).norm().item()
        wide += torch.linalg.matrix_norm(torch.cov(out.T, correction=0), ord=2).item()
        narrow += torch.linalg.matrix_norm(torch.cov(z.T, correction=0), ord=2).item()
    return Shift(moved / mean, wide / narrow)


def check_shifts(found: dict[str, Shift], expected: dict[str, Shift]) -> None:
    assert list(found) == list(expected)
    for path, shift in found.items():
        assert shift.mean_shift == pytest.approx(expected[path].mean_shift, rel=1e-3, abs=1e-7), path
        assert shift.covariance_ratio == pytest.approx(expected[path].covariance_ratio, rel=1e-3), path


def hooks_of(model: ModelPatcher) -> list:
    modules = [*clip_settings(model).temporal.modules(), *model.model.diffusion_model.modules()]
    return [hook for module in modules for hook in module._forward_hooks]


@pytest.mark.parametrize("kind", [Small, SmallV])
@pytest.mark.parametrize("percent", [0.0, 0.3, 1.0])
def test_values_are_those_of_the_hosts_own_sampler(latent, kind, percent) -> None:
    """Euler's first step from the same noise sees the same features."""
    model = clip_model(TUNE_A_VIDEO_PRESET, kind, norm=CENTERING, sharp=SHARP)
    shifts, info = measure_clip(model, SOURCE, latent, percent, SEED)
    table = model.get_model_object("model_sampling").sigmas.cpu()
    sigma = table[0] if percent == 1 else table[round(999 * (1 - percent))]
    assert info["sigma"] == pytest.approx(float(sigma), rel=2e-2, abs=1e-4)
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(SEED))
    euler, noisy = (
        comfy.samplers.sampler_object("euler"),
        latent["samples"] + noise * sigma_at(model, percent) / 0.18215,
    )
    sigmas = torch.tensor([sigma_at(model, percent), 0.0])
    with captured(model) as features:
        comfy.sample.sample_custom(
            model, torch.zeros_like(noisy), 1.0, euler, sigmas, SOURCE, EMPTY, noisy, disable_pbar=True
        )
    assert all(len(calls) == 1 for calls in features.values())
    check_shifts(shifts, {path: shift_of(*calls[0]) for path, calls in features.items()})


def test_there_is_a_row_for_every_block(model, latent) -> None:
    shifts, _ = measure_clip(model, SOURCE, latent, 0.5, SEED)
    assert list(shifts) == [block.path for block in transformer_blocks(model.model.diffusion_model)]
    assert len(set(shifts.values())) == len(shifts)
    assert all(shift.mean_shift > 0 and shift.covariance_ratio != 1 for shift in shifts.values())


@pytest.mark.parametrize("sharp", [1, SHARP])
def test_layer_norm_shifts_and_instance_centering_does_not(sharp) -> None:
    """EI²'s claim: the same matrices, and frames that resemble each other."""
    still = clip_latent()["samples"].mean(0, keepdim=True).repeat(FRAMES, 1, 1, 1)
    found, weights = {}, {}
    for norm in (LAYER_NORM, CENTERING):
        model = clip_model(norm=norm, sharp=sharp)
        weights[norm] = clip_settings(model).temporal.tensors()
        found[norm] = measure_clip(model, SOURCE, {"samples": still}, 0.5, SEED)[0]
    assert all(torch.equal(value, weights[CENTERING][key]) for key, value in weights[LAYER_NORM].items())
    for path, shift in found[LAYER_NORM].items():
        assert shift.mean_shift > 0.2, path
        assert shift.mean_shift > 10 * found[CENTERING][path].mean_shift, path
    assert sharp == 1 or min(shift.mean_shift for shift in found[CENTERING].values()) > 1e-2  # attention does work


def test_no_strength_no_shift(latent) -> None:
    whole, half = (
        measure_clip(clip_model(norm=LAYER_NORM, temporal_strength=strength), SOURCE, latent, 0.5, SEED)[0]
        for strength in (1.0, 0.5)
    )
    first = next(iter(whole))  # later blocks see other features
    assert half[first].mean_shift == pytest.approx(whole[first].mean_shift / 2, rel=1e-3)


def test_the_seed_and_the_point_of_sampling_count(model, latent) -> None:
    whole = measure_clip(model, SOURCE, latent, 0.5, SEED)
    assert measure_clip(model, SOURCE, latent, 0.5, SEED) == whole
    assert measure_clip(model, SOURCE, latent, 0.5, SEED + 1)[0] != whole[0]
    assert measure_clip(model, SOURCE, latent, 0.6, SEED)[0] != whole[0]
    assert measure_clip(model, EMPTY, latent, 0.5, SEED)[0] != whole[0]
    assert [sigma_at(model, percent) for percent in (0.0, 1.0)] == pytest.approx([14.6146, 0.0292], abs=1e-4)


@pytest.mark.parametrize(("tokens", "rows"), [(TOKENS, [2 * FRAMES]), (11, [FRAMES, FRAMES])])
def test_every_conditioning_counts(model, latent, tokens, rows) -> None:
    """The host joins prompts of equal length to one call and splits others; the positions of all count."""
    other = [[torch.cat([EMPTY[0][0], prompt(9)[0][0]], dim=1)[:, :tokens], {}]]
    with captured(model) as features:
        shifts, _ = measure_clip(model, [*SOURCE, *other], latent, 0.5, SEED)
    assert all([len(before) for before, _ in calls] == rows for calls in features.values())
    expected = {}
    for path, calls in features.items():
        clips = [
            pair for before, after in calls for pair in zip(before.split(FRAMES), after.split(FRAMES), strict=True)
        ]
        expected[path] = shift_of(*(torch.cat(part, dim=1) for part in zip(*clips, strict=True)))
    check_shifts(shifts, expected)


def test_nothing_is_changed(model, latent) -> None:
    torch.manual_seed(SEED + 1)
    before, random_state = latent["samples"].clone(), torch.get_rng_state()
    weights = {key: value.clone() for key, value in clip_settings(model).temporal.state_dict().items()}
    measure_clip(model, SOURCE, latent, 0.5, SEED)
    assert torch.equal(latent["samples"], before) and torch.equal(torch.get_rng_state(), random_state)
    after = clip_settings(model).temporal.state_dict()
    assert all(torch.equal(value.cpu(), after[key].cpu()) for key, value in weights.items())
    assert not hooks_of(model)


@pytest.mark.parametrize("error", [InterruptProcessingException, RuntimeError])
@pytest.mark.parametrize("part", ["ff", "temporal"])
def test_no_hook_stays_after_an_interrupt(model, latent, error, part) -> None:
    block = transformer_blocks(model.model.diffusion_model)[3]
    if part == "ff":
        module = model.model.diffusion_model.get_submodule(block.path).ff
    else:
        module = clip_settings(model).temporal.at(block.place, block.index)
    with mock.patch.object(module, "forward", side_effect=error) as called, pytest.raises(error):
        measure_clip(model, SOURCE, latent, 0.5, SEED)
    assert called.called and not hooks_of(model)
    assert measure_clip(model, SOURCE, latent, 0.5, SEED)[0]


def test_values_that_are_not_finite_are_refused(latent) -> None:
    tensors = clip_settings(clip_model()).temporal.tensors()
    broken = {key: value * float("inf") if "middle" in key else value for key, value in tensors.items()}
    model = clip_model(tensors=broken)
    with pytest.raises(ValueError, match="middle_block.*not finite"):
        measure_clip(model, SOURCE, latent, 0.5, SEED)
    assert not hooks_of(model)


@pytest.mark.parametrize("options", [{"name": PER_FRAME}, {"temporal_strength": 0.0}])
def test_a_model_without_temporal_modules_is_refused(latent, options) -> None:
    with pytest.raises(ValueError, match="no temporal modules.*STAM/FFAM Patch.*Apply Tune"):
        measure_clip(clip_model(**options), SOURCE, latent, 0.5, SEED)


def test_a_point_where_the_modules_do_not_act_is_refused(latent) -> None:
    model = clip_model(percents=(0.2, 0.7))
    for percent in (0.0, 0.19, 0.71, 1.0):
        with pytest.raises(ValueError, match=f"percent {percent:g} lies outside start_percent 0.2 to end_percent"):
            measure_clip(model, SOURCE, latent, percent, SEED)
    for percent in (0.2, 0.5, 0.7):
        assert measure_clip(model, SOURCE, latent, percent, SEED)[0]


def test_modules_that_were_not_run_are_noticed(model, latent) -> None:
    late = [[SOURCE[0][0], {"start_percent": 0.8, "end_percent": 1.0}]]
    with pytest.raises(ValueError, match="No prompt of positive acts at sigma"):
        measure_clip(model, late, latent, 0.5, SEED)
    assert measure_clip(model, late, latent, 0.9, SEED)[0]
    other = model.clone()
    patches = other.model_options["transformer_options"]["patches"]["forward_timestep_embed_patch"]
    run = lambda layer, x, emb, context, options, *_: layer(x, context, options)  # noqa: E731
    patches.insert(0, (SpatialTransformer, run))
    with pytest.raises(ValueError, match="runs layers of the UNet that STAM/FFAM Patch has to"):
        measure_clip(other, SOURCE, latent, 0.5, SEED)


def test_what_does_not_fit_is_refused(model, latent) -> None:
    with pytest.raises(ValueError, match="clip of 1 frame"):
        measure_clip(model, SOURCE, {"samples": latent["samples"][:1]}, 0.5, SEED)
    with pytest.raises(ValueError, match="Inflate UNet"):
        measure_clip(random_model(), SOURCE, latent, 0.5, SEED)
    with pytest.raises(ValueError, match="latent has 5 frames and Inflate UNet says num_frames = 2"):
        measure_clip(inflate(model, 2), SOURCE, latent, 0.5, SEED)
    with pytest.raises(ValueError, match="image latents"):
        measure_clip(model, SOURCE, {"samples": torch.zeros(1, 4, 3, 8, 8)}, 0.5, SEED)
    distilled = model.clone()
    sampling = type("ModelSampling", (comfy.model_sampling.ModelSamplingDiscrete, LCM), {})
    distilled.add_object_patch("model_sampling", sampling(model.model.model_config))
    with pytest.raises(ValueError, match="LCM"):
        measure_clip(distilled, SOURCE, latent, 0.5, SEED)


def test_one_call_of_the_unet_and_none_of_the_negative(model, latent) -> None:
    apply_model, rows = type(model.model).apply_model, []

    def counted(self, x, *args, **kwargs):
        rows.append(len(x))
        return apply_model(self, x, *args, **kwargs)

    with mock.patch.object(type(model.model), "apply_model", counted):
        measure_clip(model, SOURCE, latent, 0.5, SEED)
    assert rows == [FRAMES]


def test_the_node_reports_table_plot_and_data(model, latent) -> None:
    with torch.inference_mode():
        table, plot, data = CovariateShiftReport.execute(model, SOURCE, latent, 0.25, SEED).args
    shifts, info = measure_clip(model, SOURCE, latent, 0.25, SEED)
    data = json.loads(data)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [row[0] for row in rows[2:]] == [*shifts, "mean", "worst"]
    assert plot.ndim == 4 and plot.shape[-1] == 3
    assert {key: data[key] for key in info} == info
    assert (data["frames"], data["percent"], data["seed"], data["tuned"]) == (FRAMES, 0.25, SEED, True)
    assert data["temporal"] == {"norm": CENTERING, "spectral": True, "zero_init": False}
    assert {path: Shift(**values) for path, values in data["blocks"].items()} == shifts
    assert data["worst"]["mean_shift"] == max(shift.mean_shift for shift in shifts.values())
    for name, mean, ratio in rows[2:]:
        row = data["blocks"].get(name) or data[name]
        assert [float(mean), float(ratio)] == pytest.approx([row["mean_shift"], row["covariance_ratio"]], rel=1e-3)


def test_sampling_afterwards_is_as_before(model, latent) -> None:
    sigmas, euler = torch.tensor([2.0, 0.5, 0.0]), comfy.samplers.sampler_object("euler")
    before = run_sampler(model, latent["samples"], euler, sigmas, 1.0, SOURCE, EMPTY)
    measure_clip(model, SOURCE, latent, 0.5, SEED)
    assert torch.equal(run_sampler(model, latent["samples"], euler, sigmas, 1.0, SOURCE, EMPTY), before)
