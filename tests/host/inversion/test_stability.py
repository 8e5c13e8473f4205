"""The stability of inversions in the host: the bound holds, and what is measured is the host's own way back."""

import json
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, FULL, method
from consistent_video.modules.demo_model.host import load_demo_model
from consistent_video.modules.inversion.host.invert import INVERSION, invert_clip, trajectory
from consistent_video.modules.inversion.host.stability import WayBack, measure_stability
from consistent_video.modules.inversion.inversion import InversionSettings
from consistent_video.modules.inversion.stability import Stability
from consistent_video.modules.prompt_tokens.adapter import PromptAdapter
from consistent_video.modules.prompt_tokens.host.tokens import apply_prompt_tokens
from consistent_video.modules.sampling.host import SampleSettings, sample_clip
from consistent_video.nodes.report import InversionStability

from ..small import EDIT, EMPTY, FRAMES, SOURCE, UNET, SmallV, clip_latent, family_model, random_model, sample

PLAIN = InversionSettings(2, 0.0, "none", denoise=1.0)


@pytest.fixture(scope="module")
def model():
    return attach(inflate(family_model("SD1.x")), *method(EI2, 2, "area"))


@pytest.fixture(scope="module")
def inversion(model):
    with torch.inference_mode():
        return invert_clip(model, SOURCE, SOURCE, clip_latent(), PLAIN)


def measure(made_with, inversion, sampled=None, iterations: int = 3, **back) -> Stability:
    with torch.inference_mode():
        return measure_stability(made_with, SOURCE, inversion, WayBack(sampled, **back), iterations)


@pytest.fixture(scope="module")
def found(model, inversion) -> Stability:
    return measure(model, inversion)


def way_back(model, inversion, prompt, **settings) -> list[float]:
    """How far the host's own sampling is from the inversion at each noise level, model latent, ascending."""
    states, clean_first = trajectory(model.model, inversion[INVERSION]), []
    with torch.inference_mode():
        sample_clip(
            model,
            prompt,
            EMPTY,
            inversion,
            SampleSettings(1.0, **settings),
            lambda level, x: clean_first.append((level, x.clone())),
        )
    apart = {level: (x.cpu() - states[level]).norm().item() for level, x in clean_first}
    return [apart[level] for level in sorted(apart, reverse=True)]


@pytest.mark.parametrize("prompt", [SOURCE, EDIT])
def test_what_is_measured_is_the_hosts_own_way_back(model, inversion, prompt) -> None:
    measured = measure(model, inversion, prompt, 1).measured
    assert measured[:-1] == pytest.approx(way_back(model, inversion, prompt), rel=1e-2)


def test_with_eta_it_is_the_hosts_own_way_back_with_the_same_noise(model, inversion, found) -> None:
    noisy = measure(model, inversion, None, 1, eta=0.7, seed=3)
    assert noisy.measured[:-1] == pytest.approx(way_back(model, inversion, SOURCE, eta=0.7, seed=3), rel=1e-2)
    assert noisy.measured[0] > found.measured[0] and noisy.down[1] < noisy.sigmas[1] == found.down[1]
    assert all(m <= b for m, b in zip(noisy.measured, noisy.bound, strict=True))


def test_the_way_back_may_be_by_another_model(model, inversion, found) -> None:
    other = attach(inflate(family_model("SD1.x")), *method(FULL))
    before = sample(model, clip_latent())
    apart = measure(model, inversion, None, 1, model=other)
    assert apart.measured[:-1] == pytest.approx(way_back(other, inversion, SOURCE), rel=1e-2)
    assert min(apart.kappa) > 0 and apart.bound[0] > apart.bound_without[0]
    assert max(measure(model, inversion, None, 1, model=model).kappa) < 1e-4 * max(apart.kappa)
    assert torch.equal(sample(model, clip_latent()), before)


def test_the_bound_holds_and_the_mismatch_is_below_its_part(found) -> None:
    assert all(m <= b for m, b in zip(found.measured, found.bound, strict=True)) and found.measured[0] > 0
    for apart, lipschitz, moved in zip(found.mismatch, found.lipschitz, found.moved, strict=True):
        assert 0 < apart <= lipschitz * moved * (1 + 1e-6)
    assert found.kappa == [0.0] * PLAIN.steps and found.bound == found.bound_without and found.start < 1


def test_kappa_is_what_the_adapter_changes(model, inversion, found) -> None:
    generator = torch.Generator().manual_seed(8)
    width = UNET["context_dim"]
    tokens = PromptAdapter(torch.randn(3, width, generator=generator), torch.randn(FRAMES, 2, width), {})
    other = measure(model, inversion, apply_prompt_tokens(SOURCE, tokens, FRAMES), 1)
    assert min(other.kappa) > 0 and other.bound[0] > other.bound_without[0] and other.measured[0] > found.measured[0]
    assert all(m <= b for m, b in zip(other.measured, other.bound, strict=True))
    same = measure(model, inversion, SOURCE, 1)
    assert max(same.kappa) < 1e-4 * max(other.kappa)


def test_more_iterations_find_no_less(model, inversion, found) -> None:
    more = measure(model, inversion, iterations=6)
    assert all(few <= many * 1.02 for few, many in zip(found.lipschitz, more.lipschitz, strict=True))


def test_it_knows_v_prediction() -> None:
    model = inflate(random_model(SmallV))
    with torch.inference_mode():
        inversion = invert_clip(model, SOURCE, SOURCE, clip_latent(), PLAIN)
    found = measure(model, inversion, iterations=2)
    assert found.measured[:-1] == pytest.approx(way_back(model, inversion, SOURCE), rel=1e-2)
    assert all(m <= b for m, b in zip(found.measured, found.bound, strict=True))


@pytest.mark.parametrize("to_one", [False, True])
def test_the_bound_holds_on_the_demo_model(to_one: bool) -> None:
    model, text, _ = load_demo_model()
    clip = attach(inflate(model), *method(EI2, 4, "area"))
    latent = {"samples": torch.randn(3, 4, 8, 10, generator=torch.Generator().manual_seed(1))}
    with torch.inference_mode():
        prompt = text.encode_from_tokens_scheduled(text.tokenize("a red circle on a white background"))
        settings = InversionSettings(2, 0.0, "none", set_alpha_to_one=to_one)
        inversion = invert_clip(clip, prompt, prompt, latent, settings)
        found = measure_stability(clip, prompt, inversion, iterations=2)
    assert all(m <= b for m, b in zip(found.measured, found.bound, strict=True)) and found.measured[0] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gamma": 0.5, "direction": "both"}, "gamma = 0.5 with direction = both"),
        ({"label": "current", "refinements": 2}, "label = current, refinements = 2"),
    ],
)
def test_other_inversions_are_refused(model, changes, words: str) -> None:
    with torch.inference_mode():
        inversion = invert_clip(model, SOURCE, SOURCE, clip_latent(), InversionSettings(2, **{"gamma": 0.0, **changes}))
    with pytest.raises(ValueError, match=f"{words}.*set gamma to 0, label to next"):
        measure(model, inversion)


def test_a_clip_is_no_inversion(model) -> None:
    with pytest.raises(ValueError, match="inversion is a latent that was not inverted"):
        measure(model, clip_latent())


def test_an_interrupt_leaves_the_host_as_it_was(model, inversion, monkeypatch) -> None:
    before = sample(model, clip_latent())

    def interrupt() -> None:
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        measure(model, inversion)
    monkeypatch.undo()
    assert torch.equal(sample(model, clip_latent()), before)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_the_node_reports_it(model, inversion, found, monkeypatch) -> None:
    monkeypatch.setattr(InversionStability, "hidden", SimpleNamespace(unique_id="1"))
    with torch.inference_mode():
        report, plot, data = InversionStability.execute(model, SOURCE, inversion, 3).args
    assert "The bound holds at every step" in report and report.count("\n|") == 2 + PLAIN.steps
    assert plot.shape == (1, 480, 800, 3)
    data = json.loads(data)
    assert data["bound"] == pytest.approx(found.bound) and data["lipschitz"] == pytest.approx(found.lipschitz)
    assert data["sigmas"] == pytest.approx(inversion[INVERSION].sigmas.flip(0).tolist())
