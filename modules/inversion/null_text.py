"""Null-text optimisation (Mokady et al., "Null-text Inversion", CVPR 2023, arXiv 2211.09794) of a clip.

Guidance leads sampling away from the states that a clip was inverted through. An unconditional embedding of its own at
each step leads it back there. One embedding serves all frames (Video-P2P, Liu et al., CVPR 2024, arXiv 2303.04761).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ..diffusion.ddim import ddim_step, state_to_latent

Eps = Callable[[Tensor, Tensor], Tensor]
EpsOfEmbedding = Callable[[Tensor, Tensor, Tensor], Tensor]
OnStep = Callable[[int, float, float], None]


@dataclass(frozen=True)
class NullTextSettings:
    """Settings of a null-text optimisation; the defaults are those of both papers' code.

    Attributes:
        cfg: classifier-free guidance that the embeddings are optimised for, above 1.
        inner_steps: of Adam at each step of sampling, at most; 0 = the embedding stays as it is.
        learning_rate: of Adam at the first step.
        tolerance: error at the first step below which Adam stops early; 0 = never.

    Raises:
        ValueError: at this CFG the embedding has no effect.
    """

    cfg: float = 7.5
    inner_steps: int = 10
    learning_rate: float = 1e-2
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.cfg <= 1:
            raise ValueError(
                f"cfg {self.cfg:g} leaves the negative out, so that there is nothing to optimise. Set cfg to what the "
                "clip is sampled with, above 1."
            )

    def learning_rate_at(self, done: float) -> float:
        """Return the learning rate after a part of the steps.

        Both papers' code has 1e-2 (1 - i / 100) at step i of 50; the same line for any number of steps is ours.
        """
        return self.learning_rate * (1 - done / 2)

    def tolerance_at(self, done: float) -> float:
        """Return the tolerance after a part of the steps: 1e-5 + 2e-5 i at step i of 50 in both papers' code."""
        return self.tolerance * (1 + 100 * done)


@dataclass(frozen=True)
class NullText:
    """Optimised embeddings, and how near the guided walk with them comes to the inversion.

    Attributes:
        embeddings: of each step, shape (steps, tokens, width), on the CPU.
        before, after: error of each step with the embedding that it began with, and with its own; see `GuidedStep`.
        inner_steps: of Adam that each step took.
    """

    embeddings: Tensor
    before: list[float]
    after: list[float]
    inner_steps: list[int]


@dataclass(frozen=True)
class GuidedStep:
    """A guided DDIM step as a function of the unconditional embedding.

    Attributes:
        negative: (state, sigma, embedding) -> predicted noise.
        x: state at sigma.
        eps: noise predicted of it under the prompt.
        target: state of the inversion at sigma_next.
        sigma, sigma_next, cfg: of the step.
    """

    negative: EpsOfEmbedding
    x: Tensor
    eps: Tensor
    target: Tensor
    sigma: Tensor
    sigma_next: Tensor
    cfg: float

    def __call__(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state that the step leads to, and its error (Null-text Inversion, 3).

        The error is the mean squared distance from the inversion's state, of variance-preserving latents.
        """
        eps = torch.lerp(self.negative(self.x, self.sigma, embedding), self.eps, self.cfg)
        x = ddim_step(self.x, eps, self.sigma, self.sigma_next)
        return x, F.mse_loss(*(state_to_latent(state, self.sigma_next) for state in (x, self.target)))


def optimize_null_text(
    positive: Eps,
    negative: EpsOfEmbedding,
    states: Tensor,
    sigmas: Tensor,
    embedding: Tensor,
    settings: NullTextSettings,
    on_step: OnStep = lambda step, before, after: None,
) -> NullText:
    """Optimise the unconditional embedding of each step (Null-text Inversion, algorithm 1).

    Each step begins with the embedding of the one before, and is walked with its own. The paper counts inner steps
    only; the early end and the falling learning rate are those of its code, which Video-P2P's repeats.

    Args:
        positive: (state, sigma) -> noise predicted under the prompt.
        negative: (state, sigma, embedding) -> noise predicted under an embedding of shape (1, tokens, width).
        states: of the inversion, x_0 + sigma * eps, noise first, shape (steps + 1, f, c, h, w). Sampling begins with
            the first.
        sigmas: noise levels, descending, shape (steps + 1,).
        embedding: the first step's before it is optimised, shape (1, tokens, width).
        settings: of the optimisation.
        on_step: called after each step with its number and its error before and after.

    Raises:
        FloatingPointError: the error is no longer finite.
    """
    x, steps, found = states[0], len(sigmas) - 1, list[tuple[Tensor, float, float, int]]()
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        # Predict.
        with torch.no_grad():
            eps = positive(x, sigma)
        step = GuidedStep(negative, x, eps, states[i + 1], sigma, sigma_next, settings.cfg)

        # Optimise.
        embedding, errors = minimize(step, embedding, settings, i / steps)

        # Step.
        with torch.no_grad():
            x, error = step(embedding)
        errors.append(error.item())
        if not math.isfinite(errors[-1]):
            raise FloatingPointError(f"The error of step {i} is {errors[-1]}. Lower learning_rate.")
        found.append((embedding.cpu(), errors[0], errors[-1], len(errors) - 1))
        on_step(i, errors[0], errors[-1])
    embeddings, before, after, inner_steps = map(list, zip(*found, strict=True))
    return NullText(torch.cat(embeddings), before, after, inner_steps)


def minimize(
    step: GuidedStep, embedding: Tensor, settings: NullTextSettings, done: float
) -> tuple[Tensor, list[float]]:
    """Minimise the error of a step by Adam.

    As in both papers' code Adam stops after the step that began below the tolerance, so that it takes one at least.

    Args:
        step: its error is minimised.
        embedding: to begin with.
        settings: of the optimisation.
        done: part of the steps before this one.

    Returns:
        The embedding, and the error before each step of Adam.
    """
    embedding = embedding.detach().clone().requires_grad_()
    adam, errors = torch.optim.Adam([embedding], settings.learning_rate_at(done)), list[float]()
    for _ in range(settings.inner_steps):
        _, error = step(embedding)
        adam.zero_grad()
        error.backward()
        adam.step()
        errors.append(error.item())
        if errors[-1] < settings.tolerance_at(done):
            break
    return embedding.detach(), errors
