"""Null-text optimisation against a loop of its own: variance-preserving latents, gradients and Adam by hand."""

import math

import pytest
import torch
from torch import Tensor

from consistent_video.modules.inversion.null_text import NullText, NullTextSettings, optimize_null_text

FRAMES, SIZE, TOKENS, WIDTH = 3, (2, 1, 2), 3, 5
SIGMAS = torch.tensor([9.0, 4.0, 1.5, 0.4, 0.1], dtype=torch.float64)
STEPS = len(SIGMAS) - 1
ALPHA_BARS = 1 / (1 + SIGMAS**2)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SPACE = math.prod(SIZE)
MIX, READ = 0.3 * draw(SPACE, SPACE, seed=1), 0.4 * draw(SPACE, TOKENS * WIDTH, seed=2)
PROMPT, START = draw(SPACE, seed=3), draw(1, TOKENS, WIDTH, seed=4)
LATENTS = draw(STEPS + 1, FRAMES, SPACE, seed=5)  # of the inversion, variance-preserving


def noise_under_prompt(z: Tensor) -> Tensor:
    return z @ MIX.T + PROMPT


def noise_under(z: Tensor, embedding: Tensor) -> Tensor:
    return z @ MIX.T + READ @ embedding.flatten()


def optimize(settings: NullTextSettings, **how) -> NullText:
    """Optimise on the linear model in the pack's form of states."""

    def flat(x: Tensor, sigma: Tensor) -> Tensor:
        return (x / (1 + sigma**2).sqrt()).flatten(1)

    return optimize_null_text(
        lambda x, sigma: noise_under_prompt(flat(x, sigma)).view_as(x),
        lambda x, sigma, embedding: noise_under(flat(x, sigma), embedding).view_as(x),
        (LATENTS / ALPHA_BARS.sqrt().view(-1, 1, 1)).view(STEPS + 1, FRAMES, *SIZE),
        SIGMAS,
        START,
        settings,
        **how,
    )


def by_hand(cfg: float, inner: int, rate: float, least: float) -> tuple[list[Tensor], list[list[float]]]:
    """The embedding of each step, and the errors that each went through."""
    z, embedding, found, errors = LATENTS[0], START.flatten(), [], []
    for i in range(STEPS):
        a, b = ALPHA_BARS[i], ALPHA_BARS[i + 1]
        along = (1 - b).sqrt() - (b * (1 - a) / a).sqrt()  # how far the step goes along the noise

        def step(e, z=z, a=a, b=b, along=along):
            eps = cfg * noise_under_prompt(z) + (1 - cfg) * noise_under(z, e)
            return (b / a).sqrt() * z + along * eps

        first = second = torch.zeros_like(embedding)
        errors.append([])
        for n in range(1, inner + 1):
            apart = step(embedding) - LATENTS[i + 1]
            gradient = 2 / apart.numel() * along * (1 - cfg) * (apart @ READ).sum(dim=0)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            change = first / (1 - 0.9**n) / ((second / (1 - 0.999**n)).sqrt() + 1e-8)
            embedding = embedding - rate * (1 - i / (2 * STEPS)) * change
            errors[-1].append(apart.square().mean().item())
            if errors[-1][-1] < least * (1 + 100 * i / STEPS):
                break
        z = step(embedding)
        errors[-1].append((z - LATENTS[i + 1]).square().mean().item())
        found.append(embedding.view(TOKENS, WIDTH))
    return found, errors


@pytest.mark.parametrize("least", [0.0, 0.9])
def test_it_is_the_papers_loop(least: float) -> None:
    found = optimize(NullTextSettings(3.0, 7, 0.05, least))
    embeddings, errors = by_hand(3.0, 7, 0.05, least)
    torch.testing.assert_close(found.embeddings, torch.stack(embeddings))
    assert found.before == pytest.approx([one[0] for one in errors])
    assert found.after == pytest.approx([one[-1] for one in errors])
    assert found.inner_steps == [len(one) - 1 for one in errors]
    assert (min(found.inner_steps) < 7) == (least > 0) and max(found.inner_steps) == 7
    assert all(after < before for before, after in zip(found.before, found.after, strict=True))


def test_without_inner_steps_the_embedding_stays() -> None:
    settings, told = NullTextSettings(3.0, 0), []
    found = optimize(settings, on_step=lambda *step: told.append(step))
    assert torch.equal(found.embeddings, START.expand(STEPS, -1, -1))
    assert found.before == found.after and found.inner_steps == [0] * STEPS
    assert told == [(i, *[found.after[i]] * 2) for i in range(STEPS)]
    assert found.after == pytest.approx([one[-1] for one in by_hand(3.0, 0, 0.0, 0.0)[1]])


@pytest.mark.parametrize("i", [0, 1, 20, 49])
def test_at_50_steps_learning_rate_and_tolerance_are_the_codes(i: int) -> None:
    settings = NullTextSettings()
    assert (settings.cfg, settings.inner_steps) == (7.5, 10)
    assert settings.learning_rate_at(i / 50) == pytest.approx(1e-2 * (1 - i / 100))
    assert settings.tolerance_at(i / 50) == pytest.approx(1e-5 + i * 2e-5)


def test_an_error_that_is_not_finite_is_said() -> None:
    with pytest.raises(FloatingPointError, match=r"error of step 0 is (nan|inf)\. Lower learning_rate"):
        optimize(NullTextSettings(learning_rate=1e200))


def test_guidance_of_1_has_nothing_to_optimise() -> None:
    with pytest.raises(ValueError, match="cfg 1 leaves the negative out.* Set cfg to what the clip is sampled with"):
        NullTextSettings(1.0)
