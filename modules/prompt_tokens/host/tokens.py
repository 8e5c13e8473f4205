"""Prompt adapters in the host: learned on a private copy of a model, and applied to conditionings."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ...clip_model.host.features import Features
from ...tuning.curvature import central_difference, hessian_vector_product, power_iteration
from ...tuning.host.progress import TuningProgress, show_text
from ...tuning.host.rescue import Keep, on_private_copy
from ...tuning.host.tune_inputs import TuneInputs
from ...tuning.learning_rate import Curvature, Smoothness
from ...tuning.losses.consistency import LEAST_FRAMES, least_norm, smoothness_bound, temporal_consistency_loss
from ...tuning.objective import Draw
from ...tuning.settings import TuneSettings
from ..adapter import PromptAdapter
from .session import PromptSettings, PromptTuning

log = logging.getLogger(__name__)
LEVELS = (1 / 6, 1 / 2, 5 / 6)  # of the training timesteps, at which the curvature is estimated
ITERATIONS = 5  # of power iteration
STEP = 1e-2  # of central differences, against the size of what is learned


@dataclass(frozen=True)
class LearnedTokens:
    """What came of a tuning.

    Attributes:
        adapter: the tokens.
        low_rank: low-rank adapters as a LoRA file holds them; empty = none.
        curvatures, smoothness: of its loss before and after, of the temporal consistency loss; empty and None where
            they were not wanted.
    """

    adapter: PromptAdapter
    low_rank: dict[str, Tensor]
    curvatures: list[Curvature]
    smoothness: Smoothness | None


def tune_prompt(
    model: ModelPatcher,
    inputs: TuneInputs,
    settings: TuneSettings,
    prompt: PromptSettings,
    progress: TuningProgress,
    keep: Keep[PromptAdapter] | None = None,
    with_advice: bool = True,
    embeddings: Tensor | None = None,
) -> LearnedTokens:
    """Learn prompt tokens on one clip; the UNet stays as it is.

    Args:
        model: inflated model, with what is attached to it; neither it nor its base is changed.
        inputs: what it is tuned with; `resume` is a prompt adapter.
        settings: of the tuning.
        prompt: what is learned.
        progress: shows it, and measures the memory.
        keep: saves what was learned before an interruption or a failure, and returns where; None = it is lost.
        with_advice: also estimate a learning rate for gradient descent.
        embeddings: of the frames, shape (f, e), that their tokens are projected from; None = they are not.

    Raises:
        ValueError: the model is not inflated or cannot be tuned, or the inputs do not fit.
        FloatingPointError: the loss is no longer finite.
        torch.cuda.OutOfMemoryError: saying what to change.
    """
    with on_private_copy(
        partial(PromptTuning, prompt=prompt, embeddings=embeddings), model, inputs, settings, keep
    ) as tuning:
        curvatures, smoothness = list[Curvature](), None
        if with_advice:
            part = settings.flat()["consistency_part"]
            features = Features(tuning.copy.model.diffusion_model, part)
            if tuning.precision != "fp32":
                log.warning("The curvature is measured in %s, which makes it look larger.", tuning.precision)
            show_text("measuring the curvature of the loss, before and after", progress.node_id)
            curvatures += tuning.fitting(partial(measure_curvatures, tuning))
        tuning.run(progress)
        if with_advice:
            curvatures += tuning.fitting(partial(measure_curvatures, tuning))
            smoothness = tuning.fitting(partial(measure_smoothness, tuning, features))
        return LearnedTokens(tuning.tune(), tuning.low_rank(), curvatures, smoothness)


def measure_curvatures(tuning: PromptTuning) -> list[Curvature]:
    """Estimate the curvature of a tuning's loss where it stands, at some noise levels, without moving it."""
    tuner = tuning.tuner
    table, done = tuner.objective.clip.sigma_table, tuner.done
    with tuner.whole_step():
        draws = [tuner.draw(int(level * len(table))) for level in LEVELS]
        return [Curvature(done, float(table[drawn.t]), curvature(tuning, drawn)) for drawn in draws]


def measure_smoothness(tuning: PromptTuning, captured: Features) -> Smoothness:
    """Measure how smooth the temporal consistency loss is on a clip's features, at the middle noise level."""
    tuner = tuning.tuner
    with tuner.whole_step(), torch.no_grad():
        drawn = tuner.draw(len(tuner.objective.clip.sigma_table) // 2)
        captured.begin()
        tuner.objective.forward(drawn)
        features = [block.float() for block in captured.take()]
    frames, blocks = len(features[0]), len(features)
    norm = min(least_norm(block) for block in features)
    found = max(features_curvature(block) for block in features)
    return Smoothness(frames, norm, smoothness_bound(norm, frames) / blocks, found / blocks)  # the loss is their mean


def features_curvature(features: Tensor) -> float:
    """Return the largest curvature of the temporal consistency loss by one block's features."""
    if len(features) < LEAST_FRAMES:
        return 0.0
    start = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
    return power_iteration(
        lambda v: hessian_vector_product(temporal_consistency_loss, features, v), start, 4 * ITERATIONS
    )[0]


def curvature(tuning: PromptTuning, drawn: Draw) -> float:
    """Return the largest curvature of a draw's whole loss by what is learned."""
    parameters = [parameter for parameter in tuning.learned.parameters() if parameter.requires_grad]
    here = parameters_to_vector(parameters).detach().clone()
    start = torch.randn(here.shape, generator=torch.Generator().manual_seed(0)).to(here)
    gradient = gradient_of(tuning, drawn, parameters)
    try:
        return power_iteration(
            lambda v: central_difference(gradient, here, v, STEP * here.norm().item()), start, ITERATIONS
        )[0]
    finally:
        vector_to_parameters(here, parameters)


def gradient_of(tuning: PromptTuning, drawn: Draw, parameters: list[Any]) -> Callable[[Tensor], Tensor]:
    """Return the gradient of a draw's whole loss as a function of what is learned, as one vector."""

    def gradient(at: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        vector_to_parameters(at, parameters)
        _, total = tuning.tuner.objective.evaluate(drawn, tuning.tuner.done)
        return parameters_to_vector(torch.autograd.grad(total, parameters)).detach()

    return gradient


def apply_prompt_tokens(
    conditioning: list, adapter: PromptAdapter, num_frames: int, shared: float = 1.0, frame: float = 1.0
) -> list:
    """Return a conditioning with learned tokens before each prompt's own, a row for each frame.

    Args:
        conditioning: of any prompt; it is not changed.
        adapter: what was learned.
        num_frames: of the clip to sample.
        shared, frame: strengths, see `PromptAdapter.context`.

    Raises:
        ValueError: the tokens belong to another kind of model, or the prompts to a clip of other length.
    """
    learned = len(adapter.frame)
    if learned != num_frames and adapter.frame.shape[1]:
        log.warning(
            "The clip has %d frames and the prompt tokens were learned on %d; those of the frames are interpolated.",
            num_frames,
            learned,
        )
    return [[adapter.context(states, num_frames, shared, frame), dict(values)] for states, values in conditioning]
