"""Sampling of inverted clips through the host's own sampler machinery."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import RescaleCFG
from torch import Tensor

from ..diffusion.ddim import ddim_trajectory, sample_ddim, state_to_latent
from ..diffusion.host.latent import to_positions
from ..diffusion.host.run import ClipSampler, run_sampler, warn_of_frames
from ..inversion.host.invert import (
    INVERSION,
    MASKED,
    check_levels,
    check_unchanged,
    inversion_of,
    start_at,
    warn_of_model,
)
from ..inversion.noise_relation import smooth_edit
from ..motion.flow import Motion
from ..sockets.pictures import read_mask
from .texture import texture_energy

log = logging.getLogger(__name__)
Watch = Callable[[int, Tensor], None]
BACK_OFF = (1.0, 0.5, 0.25, 0.0)


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
        for name, factors in (("frame_strengths", self.frames), ("step_strengths", self.steps)):
            if not all(0 <= factor <= 1 for factor in factors):
                raise ValueError(f"{name} holds {[*factors]}. Each must be from 0 to 1.")
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
    """Raise ValueError where a mask is connected that is none, before anything is sampled."""
    if mask is not None:
        read_mask(mask)


class Relating:
    """Applies the noise relation at the steps of a sampling, and meters the texture.

    Args:
        settings: of the relation; None only meters.
        noises: that the inversion went along, in the order of the steps sampled.
        states: of the inversion at these steps.
        sigmas: their noise levels.
        first, total: number of the first step and of all, for the part in which it acts.

    Attributes:
        used: strength at each step.
        texture: texture energy of what each step predicts, against the source's.
    """

    def __init__(
        self,
        settings: RelationSettings | None,
        noises: Tensor,
        states: Tensor,
        sigmas: Tensor,
        first: int = 0,
        total: int | None = None,
    ):
        self.settings, self.noises, self.states, self.sigmas = settings, noises, states, sigmas
        self.first, self.total = first, total or len(noises)
        self.used: list[float] = []
        self.texture: list[float] = []
        self.weights: Tensor | None = None
        self.motion: Motion | None = None

    def prepare(self, x: Tensor) -> None:
        """Bring what the settings hold to the size and place of the state."""
        settings = self.settings
        if settings is None or self.weights is not None:
            return
        if len(settings.frames) not in (1, len(x)):
            raise ValueError(
                f"frame_strengths has {len(settings.frames)} numbers and the clip {len(x)} frames. Give one for each "
                "frame, or leave it empty."
            )
        weights = x.new_tensor(settings.frames).reshape(-1, 1, 1, 1).expand(len(x), 1, *x.shape[2:])
        self.weights = weights * to_positions(settings.mask, x) if settings.mask is not None else weights
        if settings.motion is not None:
            if len(settings.motion.forward) != len(x) - 1:
                raise ValueError(
                    f"motion is of {len(settings.motion.forward) + 1} frames and the clip has {len(x)}. Take it from "
                    "the frames that were inverted."
                )
            self.motion = settings.motion.resized(*x.shape[-2:]).to(x)

    def __call__(self, step: int, x: Tensor, eps: Tensor) -> Tensor:
        """Return the noise to go along at a step."""
        self.prepare(x)
        sigma, source = self.sigmas[step].to(x), self.noises[step].to(x)
        energy = texture_energy(self.states[step].to(x) - sigma * source).mean()
        related, used, texture = eps, 0.0, (texture_energy(x - sigma * eps).mean() / energy).item()
        floor = min(1.0, texture) * (self.settings.keep_texture if self.settings else 0.0)
        strength, settings = self.strength_at(step), self.settings
        for part in BACK_OFF if strength else ():
            assert settings is not None and self.weights is not None, "it acts"
            used = part * strength
            related = source + smooth_edit(eps - source, used, self.motion, settings.passes, self.weights)
            texture = (texture_energy(x - sigma * related).mean() / energy).item()
            if texture >= floor:
                break
        self.used.append(used)
        self.texture.append(texture)
        return related

    def strength_at(self, step: int) -> float:
        """Return the strength of the relation at a step, 0 where it does not act."""
        settings, done = self.settings, (self.first + step) / self.total
        if settings is None or not settings.start <= done < settings.end:
            return 0.0
        places = numpy.linspace(settings.start, settings.end, len(settings.steps))
        return settings.strength * float(numpy.interp(done, places, settings.steps))


class Reached:
    """What is done with the state that a step led to: outside a mask it becomes the source's.

    Args:
        mask: of pictures, where the clip is edited; None = everywhere.
        states: of the inversion, from the first step sampled on.
        watch: called with each step and its state.
        guide: called with the number of the next step.
    """

    def __init__(self, mask: Tensor | None, states: Tensor, watch: Watch | None, guide: Callable[[int], None]):
        self.mask, self.states, self.watch, self.guide = mask, states, watch, guide

    def __call__(self, level: int, x: Tensor) -> Tensor:
        """Return the state to go on with from a noise level."""
        self.guide(level)
        if self.mask is not None:
            x = torch.lerp(self.states[level].to(x), x, to_positions(self.mask, x))
        if self.watch is not None:
            self.watch(level, x)
        return x


class InvertedClipSampler(ClipSampler):
    """DDIM from an inverted latent: refuses another latent, noise and other noise levels.

    Args:
        inversion: LATENT to start from.
        settings: of the sampling; its guidance is the caller's.
        watch: called with each step and the state it led to.
    """

    def __init__(self, inversion: dict[str, Any], settings: SampleSettings | None = None, watch: Watch | None = None):
        super().__init__(sample_ddim)
        self.settings, self.watch = settings or SampleSettings(), watch
        self.all_sigmas, self.inversion = inversion_of(inversion), inversion
        end = self.settings.end_step or len(self.all_sigmas) - 1
        if not 0 <= self.settings.start_step < end <= len(self.all_sigmas) - 1:
            raise ValueError(
                f"start_step {self.settings.start_step} and end_step {self.settings.end_step} are no part of the "
                f"{len(self.all_sigmas) - 1} steps of the inversion. The first is to be below the second, which ends "
                "with them or is 0. Set both to 0 for all steps."
            )
        self.steps = slice(self.settings.start_step, end)
        self.sigmas = self.all_sigmas[self.settings.start_step : end + 1]
        self.relating: Relating | None = None

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        """Sample, see KSAMPLER."""
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
        check_levels(self.all_sigmas, model_wrap.inner_model.model_sampling.sigmas.cpu())
        check_unchanged(model_wrap.inner_model.process_latent_out(latent_image).cpu(), self.inversion["samples"])
        made, settings = self.inversion[INVERSION], self.settings
        clean = model_wrap.inner_model.process_latent_in(made["source"].float())
        trajectory = ddim_trajectory(clean, made["noises"].float(), self.all_sigmas)
        states = trajectory[settings.start_step :]
        self.relating = Relating(
            settings.relation, made["noises"][self.steps], states, self.sigmas, settings.start_step, len(made["noises"])
        )
        if settings.start_step:
            latent_image = start_at(made, trajectory, settings.start_step).to(latent_image)

        def guide(step: int) -> None:
            done = (settings.start_step + step) / len(made["noises"])
            if settings.cfg_end < 1 and done >= settings.cfg_end:
                model_wrap.set_cfg(1.0)  # the guider is this run's; without guidance the host skips the negative

        guide(0)
        self.extra_options = {
            "on_eps": self.relating,
            "on_state": Reached(settings.mask, states, self.watch, guide),
            "eta": settings.eta,
            "generator": torch.Generator().manual_seed(settings.seed),
        }
        given = model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
        sampled = super().sample(*given)
        if self.steps.stop == len(made["noises"]):
            sampled = state_to_latent(sampled, sigmas[-1])
        texture = self.relating.texture
        log.info("Texture against the source's: %.2f at the first step, %.2f at the last", texture[0], texture[-1])
        return sampled


def sample_clip(
    model: ModelPatcher,
    positive: list,
    negative: list,
    inversion: dict[str, Any],
    settings: SampleSettings,
    watch: Watch | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sample an inverted clip with DDIM and classifier-free guidance.

    Args:
        model: inflated model of the inversion's noise levels.
        positive, negative: conditionings.
        inversion: LATENT from the inversion.
        settings: of the sampling.
        watch: called with each step and the state it led to.

    Returns:
        LATENT, and a report: strength of the relation and texture energy against the source's at each step.

    Raises:
        ValueError: the latent is not an inversion that fits the model.
    """
    inversion_of(inversion, model)
    warn_of_frames(model, len(inversion["samples"]))
    warn_of_model(inversion, model)
    sampler = InvertedClipSampler(inversion, settings, watch)
    if settings.cfg_rescale:
        if "sampler_cfg_function" in model.model_options:
            raise ValueError(
                f"cfg_rescale {settings.cfg_rescale:g} takes the place of the guidance that another node put on the "
                "model (RescaleCFG is one). Set cfg_rescale to 0, or remove that node."
            )
        (model,) = RescaleCFG().patch(model, settings.cfg_rescale)
    samples = run_sampler(model, inversion["samples"], sampler, sampler.sigmas, settings.cfg, positive, negative)
    latent = {**{key: value for key, value in inversion.items() if key != INVERSION}, "samples": samples}
    assert sampler.relating is not None, "made by the sampling"
    return latent, {"relation": sampler.relating.used, "texture": sampler.relating.texture}
