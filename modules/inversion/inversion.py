"""An inverted clip: how it was inverted, and what sampling needs of it."""

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..clip_model.attention.bases import BASES
from ..diffusion.ddim import Label, Solver, state_to_latent, told_level
from ..diffusion.path import PATHS, NoisePath, PathKind
from ..diffusion.seed import seeded
from ..files.record import Between, Part
from .noise_relation import Direction, Reading, smooth_noise, with_std_of

Noise = Literal["implied", "Gaussian"]
Start = Literal["inverted latent", "clean latent", "every step"]
NOISE_ALONE = 1 - 1e-6  # of a flow, from which on nothing of the clip is left but rounding
Method = Literal["DDIM", "edit-friendly DDPM", "STEM", "edit-friendly DDPM, shared noise"]


@dataclass(frozen=True)
class InversionSettings:
    """Settings of an inversion.

    Attributes:
        steps: number of them, each a UNet evaluation, without refinements; midpoint begins with one more.
        gamma, direction, reading: of the interframe noise relation, see `noise_relation.smooth_noise`.
        noise: eps of (24, 25): implied by the inverted latent, or fresh Gaussian noise, after which each frame is
            scaled to the standard deviation of its predicted noise.
        seed: of the fresh noise.
        start: where the relation is applied: to the latent that sampling starts from, x_T + sigma_T (smoothed noise -
            eps_inv) ("inverted latent") or x_0 + sigma_T * smoothed noise ("clean latent"), or at every step.
        label: noise level the UNet is told, see `ddim.sample_ddim_inversion`.
        cfg: classifier-free guidance of the inversion; 1 = none.
        refinements: fixed-point iterations of each step.
        denoise: the part of the noise levels that is walked, 0 = matched to the latent's size.
        set_alpha_to_one: whether the walk ends at noise level 0, see `schedule.ddim_sigmas`.
        method: what is inverted, deterministic sampling or ancestral, whose noise the seed then is of as well; or
            deterministic sampling by a model whose frames attend to the bases of the clip, see `bases_attention`.
        bases: number of them, STEM only.
        solver: of deterministic sampling and its inversion: DDIM's steps, or `midpoint.sample_midpoint`; sampling has
            the inversion's.

    Raises:
        ValueError: the method or the solver has no such settings, or there are no bases.
    """

    steps: Annotated[int, Between(1, 1000)] = 50
    gamma: Part = 0.5
    direction: Direction = "both"
    reading: Reading = "mean"
    noise: Noise = "implied"
    seed: Annotated[int, Between(0, 2**64 - 1)] = 0
    start: Start = "inverted latent"
    label: Label = "next"
    cfg: Annotated[float, Between(1, 100)] = 1.0
    refinements: Annotated[int, Between(0, 1000)] = 0
    denoise: Part = 0.0
    set_alpha_to_one: bool = False
    method: Method = "DDIM"
    bases: Annotated[int, Between(1, 2**31)] = BASES
    solver: Solver = "DDIM"

    def __post_init__(self) -> None:
        given = {"label": (self.label, "next"), "refinements": (self.refinements, 0)}
        wrong = [f"{name} {value}" for name, (value, own) in given.items() if value != own]
        walking = [*wrong, *(["start every step"] if self.start == "every step" else [])]
        if self.is_ancestral and walking:
            raise ValueError(
                f"{' and '.join(walking)} belongs to DDIM inversion and has no meaning where method is {self.method}: "
                "it walks along no predicted noise. Set label to next, refinements to 0 and start to inverted latent, "
                "or method to DDIM."
            )
        if self.solver == "midpoint" and (wrong or self.is_ancestral):
            raise ValueError(
                f"{' and '.join(wrong or [f'method {self.method}'])} does not combine with solver midpoint, which "
                "calls the UNet halfway through each step and adds no noise. Set label to next, refinements to 0 and "
                "method to DDIM or STEM, or solver to DDIM."
            )
        if self.bases < 1:
            raise ValueError(f"bases must be 1 or more, got {self.bases}.")

    @property
    def is_ancestral(self) -> bool:
        """Whether sampling adds noise at each step, that of the clip."""
        return self.method.startswith("edit-friendly DDPM")

    @property
    def shares_noise(self) -> bool:
        """Whether that noise begins alike in all frames."""
        return self.method == "edit-friendly DDPM, shared noise"

    def relates(self, frames: int) -> bool:
        """Whether the noise relation changes anything in a clip of some frames; else it is plain DDIM inversion."""
        return frames > 1 and self.direction != "none" and (self.gamma > 0 or self.reading == "complementary")


class Relation:
    """The interframe noise relation during an inversion; collects the direction of each step, noise or velocity.

    It relates noise; of a flow, the noise that velocities imply.
    """

    def __init__(self, settings: InversionSettings, sigmas: Tensor, kind: PathKind = "noise"):
        self.settings, self.sigmas, self.path = settings, sigmas, PATHS[kind]
        self.generator = seeded(settings.seed)
        self.noises: list[Tensor] = []
        self.clean = self.last = torch.empty(0)

    def __call__(self, step: int, x: Tensor, eps: Tensor) -> Tensor:
        """Take the predicted direction of a step, return the one to go along."""
        if step == 0:
            self.clean = state_to_latent(x, self.sigmas[0])
        self.last = eps
        is_smoothed = self.settings.start == "every step" and self.settings.relates(len(x))
        if is_smoothed and step > 0:  # the clean state has no noise to relate
            sigma = self.sigmas[step].to(x)
            noise = self.smooth(self.path.to_noise(x, eps, sigma), x, sigma)
            eps = self.path.to_direction(x, noise, sigma)
        self.noises.append(eps.to("cpu", torch.float16))
        return eps

    def smooth(self, eps: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Smooth the predicted noise of the state x at sigma."""
        how = self.settings.gamma, self.settings.direction, self.settings.reading
        if self.settings.noise == "implied":
            return smooth_noise(eps, self.path.implied_noise(x, self.clean, sigma), *how)
        fresh = torch.randn(x.shape, generator=self.generator).to(x)
        return with_std_of(smooth_noise(eps, fresh, *how), eps)

    def start_of_sampling(self, x: Tensor, clean: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """Return the state at sigma that sampling starts from, by equation (26).

        Args:
            x, clean: the inverted state there and the clean one, model latents.
            eps: direction that the last step of the inversion to it went along.
            sigma: noise level.
        """
        self.clean, sigma = clean, sigma.to(x)
        noise = self.path.to_noise(x, eps.to(x), sigma)
        smoothed = self.smooth(noise, x, sigma)
        if self.settings.start == "clean latent":
            return self.path.state(clean, smoothed, sigma)
        return x + sigma * (smoothed - noise)


def check_flow(settings: InversionSettings, sigma: Tensor, frames: int) -> None:
    """Raise ValueError where the relation is asked for at the end of a flow, at which it changes nothing.

    Nor does fresh noise suit every step: the velocity that it means at x, (eps - x) / (1 - t), has no bound there.

    Args:
        settings: of the inversion of a flow.
        sigma: where the inversion ends.
        frames: of the clip.
    """
    if not settings.relates(frames):
        return
    if settings.start == "every step" and settings.noise == "Gaussian":
        raise ValueError(
            "noise Gaussian does not combine with start every step for a flow-matching model, whose velocity would "
            "then grow without bound towards noise. Set noise to implied, or start to inverted latent."
        )
    is_implied = settings.noise == "implied" and settings.reading != "sum" and settings.start != "every step"
    if is_implied and sigma > NOISE_ALONE:
        raise ValueError(
            f"gamma {settings.gamma:g} has no effect at denoise {settings.denoise:g}: there a flow model's latent is "
            "noise alone, and implied and predicted noise are equal. Lower denoise (0 = auto), or set direction to "
            "none."
        )


@dataclass(frozen=True, eq=False)
class Inversion:
    """An inverted clip.

    Attributes:
        sigmas: noise levels to sample with, descending, shape (steps + 1,).
        noises: what the inversion went along or, of ancestral sampling, predicted of each state; in the order of
            sampling, shape (steps, f, c, h, w), model latent, float16. Of a flow velocities.
        source: VAE latent that was inverted, shape (f, c, h, w).
        start: VAE latent that sampling starts from, at sigmas[0].
        settings: of the inversion.
        model: digest of the model that it was made with.
        kind: path that its states lie on; of a flow the noise levels are its times, 1 at most and 0 last.
        has_time: whether the model's latents have an axis of time, which those here lack.

    Raises:
        ValueError: the shapes do not fit each other, or the noise levels do not fall.
    """

    sigmas: Tensor
    noises: Tensor
    source: Tensor
    start: Tensor
    settings: InversionSettings
    model: str
    kind: PathKind = "noise"
    has_time: bool = False

    def __post_init__(self) -> None:
        if self.start.shape != self.source.shape or self.noises.shape != (len(self.sigmas) - 1, *self.source.shape):
            raise ValueError(
                f"The inversion's noises {tuple(self.noises.shape)}, source {tuple(self.source.shape)}, start "
                f"{tuple(self.start.shape)} and {len(self.sigmas)} noise levels do not fit each other. Invert again."
            )
        if not ((self.sigmas.diff() < 0).all() and self.sigmas[-1] >= 0):
            raise ValueError(f"The inversion's noise levels {self.sigmas.tolist()!s:.60} do not fall. Invert again.")
        if self.kind == "flow" and not (self.sigmas[0] <= 1 and self.sigmas[-1] == 0):
            raise ValueError(f"The inversion's times {self.sigmas.tolist()!s:.60} are not a flow's. Invert again.")

    @property
    def path(self) -> NoisePath:
        """The path that its states lie on."""
        return PATHS[self.kind]

    @property
    def num_frames(self) -> int:
        """Number of the clip's frames."""
        return len(self.source)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.noises)

    def start_at(self, states: Tensor, step: int) -> Tensor:
        """Return the model latent that sampling starts from at a step after the first, by the inversion's states."""
        if self.settings.start == "every step" or not self.settings.relates(self.num_frames):
            return states[step]
        clean = state_to_latent(states[-1], self.sigmas[-1])
        relation = Relation(self.settings, self.sigmas, self.kind)
        return relation.start_of_sampling(states[step], clean, self.noises[step], self.sigmas[step])

    def call_at(self, states: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return what the UNet was given, and the noise level told, in the step that a step of sampling undoes.

        It is the inversion's first call of the step, before refinements, up to the rounding of `noises`.

        Args:
            states: that the inversion went through, noise first.
            step: of sampling.
        """
        if self.settings.is_ancestral:
            return states[step], self.sigmas[step]
        sigma = self.sigmas[step + 1]
        told = told_level(self.settings.label, sigma, self.sigmas[step])
        return self.path.relabelled(states[step + 1], sigma, told), told

    def check_unchanged(self, samples: Tensor) -> None:
        """Raise ValueError where a VAE latent is not the start any more."""
        if not samples.isfinite().all():
            raise ValueError(
                "inversion holds values that are not finite. Invert again; if it recurs, use a float32 model."
            )
        change = math.inf
        if samples.shape == self.start.shape:
            expected = self.start.float()
            change = ((samples.to(expected) - expected).norm() / expected.norm()).item()
        if change > 0.01:  # less is what half precision does
            raise ValueError(
                f"inversion was changed after it was made: it is {change:.0%} off. Connect the inversion output "
                "itself, not the clip and not a latent that was sampled or edited from it."
            )

    def check_levels(self, table: Tensor, kind: PathKind = "noise") -> None:
        """Raise ValueError where a model walks another path, or noise levels are not in its table, ascending.

        A flow knows all times.
        """
        if kind != self.kind:
            made, other = ("by flow matching", "without it")[:: 1 if self.kind == "flow" else -1]
            raise ValueError(
                f"inversion was made by a model that samples {made}, and model samples {other}. Connect the clip model "
                "that inverted it; ModelSamplingSD3, where one is needed, comes before Inflate UNet."
            )
        if kind == "flow":
            return
        levels = self.sigmas[self.sigmas > 0]
        if (table[:, None] - levels[None]).abs().amin(dim=0).max() > 1e-4:
            raise ValueError(
                f"inversion has noise levels up to {self.sigmas[0]:.4f} that are not the model's (up to "
                f"{table[-1]:.4f}). Invert and sample with models of the same noise schedule."
            )

    def report(self, asked: InversionSettings) -> dict[str, Any]:
        """Return what was done, JSON values, where these settings were asked for."""
        denoise, (height, width) = self.settings.denoise, self.source.shape[-2:]
        equal = "full noise" if self.kind == "flow" else "64 x 64"
        why = f"denoise is {denoise:g}"
        if not asked.denoise:
            why = (
                f"denoise auto is {denoise:g} at {width} x {height} latent positions: a start at a higher noise level "
                f"would know less of the clip's layout than Stable Diffusion's does at {equal}"
                if denoise < 1
                else f"denoise auto is 1 at {width} x {height} latent positions, 64 x 64 or more"
            )
        sigma = round(float(self.sigmas[0]), 4)
        return {"frames": self.num_frames, **asdict(self.settings), "sigma_start": sigma, "starts_there_because": why}
