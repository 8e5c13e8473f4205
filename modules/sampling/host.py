"""Sampling of inverted clips through the host's own sampler machinery."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import CFGGuider
from torch import Tensor

from ..clip_model.host.evolved import sets_guidance
from ..clip_model.host.family import guidance_of, require_unet, warn_of_guidance
from ..clip_model.host.settings import KEY
from ..diffusion.ddim import SamplingOptions, kind_of_path, sample_ddim, state_to_latent
from ..diffusion.ddpm import step_noise
from ..diffusion.host.latent import as_frames, prediction_by, to_positions
from ..diffusion.host.run import ClipSampler, run_sampler, warn_of_frames
from ..diffusion.midpoint import sample_midpoint
from ..diffusion.seed import seeded
from ..inversion.host.foreign import MASKED
from ..inversion.host.identity import model_digest
from ..inversion.host.invert import INVERSION, inversion_of, trajectory
from ..inversion.inversion import Inversion
from ..inversion.noise_relation import check_factors, frame_shares, smooth_edit
from ..motion.flow import Motion
from ..sockets.pictures import read_mask
from .guidance import rescaled_guidance
from .texture import back_off, texture_energy

log = logging.getLogger(__name__)
Watch = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class RelationSettings:
    """The interframe noise relation at each sampling step; ours, see `noise_relation.smooth_edit`.

    Attributes:
        strength: weight w of the neighbours, 0 ... 1.
        start, end: part of the steps in which it acts, 0 ... 1.
        motion: of the source clip; None = the neighbours as they lie.
        mask: where it acts, shape (f or 1, height, width), 0 ... 1; None = everywhere.
        frames: share of the relation in each frame's result, or one for all, 0 ... 1.
        steps: factors of the strength, 0 ... 1, evenly spread from start to end with straight lines between.
        keep_texture: least part of a step's texture energy, without the relation and at most the source's, that the
            relation may leave; the strength backs off to it. 0 = never.
        passes: how often neighbours are blended at each step, to reach frames farther away.
    """

    strength: float = 0.5
    start: float = 0.0
    end: float = 1.0
    motion: Motion | None = None
    mask: Tensor | None = None
    frames: tuple[float, ...] = (1.0,)
    steps: tuple[float, ...] = (1.0,)
    keep_texture: float = 0.0
    passes: int = 1

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ValueError(
                f"start {self.start:g} and end {self.end:g} of the relation leave no steps. Set end above start."
            )
        check_factors(frame_strengths=self.frames, step_strengths=self.steps)
        check_mask(self.mask)


@dataclass(frozen=True)
class SampleSettings:
    """Settings of the sampling of an inverted clip.

    Attributes:
        cfg, cfg_rescale: classifier-free guidance, and how far its contrast is brought back (0 ... 1).
        cfg_end: part of the steps that are guided; the others are sampled at CFG 1, by the prompt alone. Guidance in a
            limited interval is Kynkäänniemi et al.'s (NeurIPS 2024).
        eta: 0 = deterministic, 1 = ancestral; seed: of its noise.
        start_step: first step, from the inversion as it is there; end_step: step to end before, 0 = to the end.
        relation: the noise relation at each step, None = none.
        mask: where the clip is edited, shape (f or 1, height, width), 0 ... 1; elsewhere it keeps the source's states.
    """

    cfg: float = 7.5
    cfg_rescale: float = 0.0
    cfg_end: float = 1.0
    eta: float = 0.0
    seed: int = 0
    start_step: int = 0
    end_step: int = 0
    relation: RelationSettings | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_mask(self.mask)


def check_mask(mask: Tensor | None) -> None:
    """Raise ValueError where a mask is connected that is none or selects nothing, before anything is sampled."""
    if mask is not None and not read_mask(mask).any():
        raise ValueError("mask selects nothing: it is black everywhere. White is where it acts; invert it if needed.")


class Relating:
    """Applies the noise relation at the steps of a sampling, and meters the texture.

    Attributes:
        used: strength at each step.
        texture: texture energy of what each step predicts, against the source's.
    """

    def __init__(self, settings: RelationSettings | None, inversion: Inversion, states: Tensor, first: int = 0):
        self.settings, self.inversion, self.states, self.first = settings, inversion, states, first
        self.used: list[float] = []
        self.texture: list[float] = []
        self.weights: Tensor | None = None
        self.motion: Motion | None = None

    def prepare(self, x: Tensor) -> None:
        """Bring what the settings hold to the size and place of the state."""
        settings = self.settings
        if settings is None or self.weights is not None:
            return
        shares = frame_shares(settings.frames, x)
        self.weights = shares * to_positions(settings.mask, x) if settings.mask is not None else shares
        self.motion = None if settings.motion is None else settings.motion.fitted(x)

    def __call__(self, step: int, x: Tensor, eps: Tensor) -> Tensor:
        """Return the noise to go along at a step, counted from the first that is sampled."""
        self.prepare(x)
        step += self.first
        settings, strength = self.settings, self.strength_at(step)

        # Meter the texture without the relation.
        sigma, source = self.inversion.sigmas[step].to(x), self.inversion.noises[step].to(x)
        energy = texture_energy(self.states[step].to(x) - sigma * source).mean()
        related, used, texture = eps, 0.0, (texture_energy(x - sigma * eps).mean() / energy).item()
        floor = min(1.0, texture) * (settings.keep_texture if settings else 0.0)

        # Relate, with less strength where too little texture is left.
        if strength:
            assert settings is not None and self.weights is not None, "it acts"
            related_by = partial(
                smooth_edit, eps - source, motion=self.motion, passes=settings.passes, share=self.weights
            )
            related, used, texture = back_off(
                lambda weight: source + related_by(weight),
                strength,
                lambda eps: (texture_energy(x - sigma * eps).mean() / energy).item(),
                floor,
            )
        self.used.append(used)
        self.texture.append(texture)
        return related

    def strength_at(self, step: int) -> float:
        """Return the strength of the relation at a step of the inversion, 0 where it does not act."""
        settings, done = self.settings, step / self.inversion.steps
        if settings is None or not settings.start <= done < settings.end:
            return 0.0
        places = numpy.linspace(settings.start, settings.end, len(settings.steps))
        return settings.strength * float(numpy.interp(done, places, settings.steps))


@contextmanager
def ending_guidance(guider: CFGGuider, end: float) -> Iterator[Callable[[float], None]]:
    """Let a guider guide until a part of the steps is done; its CFG is as before when the context ends.

    Yields:
        What to call before each step with the part that is done.

    Raises:
        ValueError: the guidance is to end, and it is not that of CFGGuider, or another node sets it.
    """
    if end < 1 and type(guider).predict_noise is not CFGGuider.predict_noise:
        raise ValueError(
            f"cfg_end {end:g} ends the guidance of CFGGuider, and {type(guider).__name__} guides in another way. "
            "Connect CFGGuider, or set cfg_end to 1."
        )
    if end < 1 and sets_guidance(guider.model_patcher):
        raise ValueError(
            f"cfg_end {end:g} ends the guidance of the sampler, and Custom CFG in Sample Settings of "
            "AnimateDiff-Evolved takes its place. Remove it there, or set cfg_end to 1."
        )
    cfg = guider.cfg

    def reach(done: float) -> None:
        if end < 1 and done >= end:
            guider.cfg = 1.0  # ComfyUI then skips the negative

    try:
        yield reach
    finally:
        guider.cfg = cfg  # a guider may be sampled with again


class InvertedClipSampler(ClipSampler):
    """From an inverted clip by the solver of its inversion: refuses another latent, noise and other noise levels.

    Args:
        inversion: what to start from.
        settings: of the sampling; its guidance is the caller's.
        watch: called with each step and the state it led to.

    Attributes:
        report: of the last sampling: strength of the relation and texture energy against the source's at each step.
    """

    def __init__(self, inversion: Inversion, settings: SampleSettings | None = None, watch: Watch | None = None):
        made = inversion.settings
        super().__init__(sample_midpoint if made.solver == "midpoint" else sample_ddim, solver=made.solver)
        self.inversion, self.settings, self.watch = inversion, settings or SampleSettings(), watch
        start, end = self.settings.start_step, self.settings.end_step or inversion.steps
        if not 0 <= start < end <= inversion.steps:
            raise ValueError(
                f"start_step {start} and end_step {self.settings.end_step} are not part of the {inversion.steps} steps "
                "of the inversion. The first is to be below the second, which ends with them or is 0. Set both to 0 "
                "for all steps."
            )
        if self.settings.eta and inversion.kind == "flow":
            raise ValueError(
                f"eta {self.settings.eta:g} adds noise; sampling of a flow-matching model has none. Set eta to 0."
            )
        if end < inversion.steps and inversion.kind == "flow":
            raise ValueError(
                f"end_step {end} leaves a flow-matching model's clip unfinished, which ComfyUI's samplers would scale "
                "down. Set end_step to 0."
            )
        if self.settings.eta and (made.is_ancestral or made.solver == "midpoint"):
            raise ValueError(
                f"eta {self.settings.eta:g} adds noise at each step, and the inversion ({made.method}, solver "
                f"{made.solver}) holds each step's own, or has none. Set eta to 0, or invert by DDIM."
            )
        self.sigmas = inversion.sigmas[start : end + 1]
        self.report: dict[str, list[float]] = {}

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        """Sample, see KSAMPLER."""
        if KEY not in extra_args["model_options"]["transformer_options"]:
            raise ValueError("The guider's model is an image model. Connect the clip model that inverted the clip.")
        if noise.count_nonzero():
            raise ValueError("An inverted clip is its own noise: connect DisableNoise to the noise input.")
        if denoise_mask is not None:
            raise ValueError(MASKED)
        if len(sigmas) != len(self.sigmas) or not torch.allclose(sigmas.cpu(), self.sigmas):
            raise ValueError(
                f"sigmas ({len(sigmas) - 1} steps from {float(sigmas[0]):.4f}) are not those of the inversion "
                f"({len(self.sigmas) - 1} steps from {float(self.sigmas[0]):.4f}). Connect the sigmas output of the "
                "same node."
            )
        warn_of_guidance(model_wrap.model_patcher, getattr(model_wrap, "cfg", 1))
        inversion, settings, model = self.inversion, self.settings, model_wrap.inner_model
        inversion.check_levels(model.model_sampling.sigmas.cpu(), kind_of_path(prediction_by(model.model_sampling)))
        inversion.check_unchanged(as_frames(model.process_latent_out(latent_image)).cpu())
        states = trajectory(model, inversion)
        if settings.start_step:
            latent_image = inversion.start_at(states, settings.start_step).to(latent_image)
        relating = Relating(settings.relation, inversion, states, settings.start_step)
        with ending_guidance(model_wrap, settings.cfg_end) as reach:

            def on_state(level: int, x: Tensor) -> Tensor:
                step = settings.start_step + level
                reach(step / inversion.steps)
                if settings.mask is not None:
                    x = torch.lerp(states[step].to(x), x, to_positions(settings.mask, x))
                if self.watch is not None:
                    self.watch(level, x)
                return x

            reach(settings.start_step / inversion.steps)
            generator, first = seeded(settings.seed), settings.start_step
            options = SamplingOptions(relating, on_state, settings.eta, generator)
            if inversion.settings.is_ancestral:
                own = partial(step_noise, states[first:], inversion.noises[first:], self.sigmas)
                options = replace(options, eta=1.0, noise_of=own)
            self.extra_options = {"options": options}
            given = model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
            try:
                sampled = super().sample(*given)
            finally:
                self.extra_options = {}  # a circle through `on_state`, which would keep the model and the states
        if self.sigmas[-1] == inversion.sigmas[-1]:
            sampled = state_to_latent(sampled, sigmas[-1])
        texture = relating.texture
        self.report = {"relation": relating.used, "texture": texture}
        log.info("Texture against the source's: %.2f at the first step, %.2f at the last", texture[0], texture[-1])
        return sampled


def with_rescaled_guidance(model: ModelPatcher, rescale: float) -> ModelPatcher:
    """Return a clone whose guidance is `guidance.rescaled_guidance`; ValueError where another node put one there."""
    if "sampler_cfg_function" in model.model_options:
        raise ValueError(
            f"cfg_rescale {rescale:g} takes the place of the guidance that another node put on the model (RescaleCFG "
            "is one). Set cfg_rescale to 0, or remove that node."
        )

    def guide(given: dict[str, Any]) -> Tensor:
        x, positive, negative = given["input"], given["cond_denoised"], given["uncond_denoised"]
        return x - rescaled_guidance(x, positive, negative, given["sigma"], given["cond_scale"], rescale)

    clone = model.clone()
    clone.set_model_sampler_cfg_function(guide)
    return clone


def sample_clip(
    model: ModelPatcher,
    positive: list,
    negative: list,
    latent: dict[str, Any],
    settings: SampleSettings,
    watch: Watch | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sample an inverted clip with classifier-free guidance, by the solver that inverted it.

    Args:
        model: inflated model of the inversion's noise levels.
        positive, negative: conditionings.
        latent: LATENT from the inversion.
        settings: of the sampling.
        watch: called with each step and the state it led to.

    Returns:
        LATENT, and a report: strength of the relation and texture energy against the source's at each step.

    Raises:
        ValueError: the latent is not an inversion that fits the model.
    """
    inversion = inversion_of(latent, model)
    warn_of_frames(model, inversion.num_frames)
    if inversion.model != model_digest(model):
        log.warning(
            "The inversion was made with another model, tune or patch than the one it is sampled with; it works, and "
            "keeps less of the clip. Invert again with this one."
        )
    sampler = InvertedClipSampler(inversion, settings, watch)
    if settings.cfg_rescale:
        require_unet(model, "cfg_rescale", "Set cfg_rescale to 0.")
        model = with_rescaled_guidance(model, settings.cfg_rescale)
    samples = run_sampler(model, latent["samples"], sampler, sampler.sigmas, settings.cfg, positive, negative)
    kept = {key: value for key, value in latent.items() if key != INVERSION}
    guidance = guidance_of(model)
    return {**kept, "samples": samples}, {**sampler.report, **({"guidance": guidance} if guidance else {})}
