"""Inverted clips in the samplers of other nodes, which are handed the samples of a LATENT and not what it says of them.

ComfyUI's own would add noise to such a clip without a word, or begin at another noise level than it has.
"""

from __future__ import annotations

from weakref import WeakSet

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...clip_model.host.attach import WRAPPERS
from ...diffusion.host.latent import has_frame_of
from ...diffusion.host.run import ClipSampler
from ..inversion import Inversion

MASKED = "The inversion has a noise mask, which cannot be used with an inverted clip. Remove the node that sets it."
APART = 0.05  # how far a sampler's first noise level may be from an inversion's, as a part of it

_alive: WeakSet[Inversion] = WeakSet()


def remember(inversion: Inversion) -> None:
    """Have an inversion recognised by its frames wherever they are sampled, for as long as anything else holds it."""
    _alive.add(inversion)


def inversions_in(samples: Tensor) -> list[Inversion]:
    """Return the inversions that are known of which some samples have a frame, VAE latents."""
    return [inversion for inversion in list(_alive) if has_frame_of(samples, inversion.start)]


def check_start(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, *rest, **kwargs):
    """Wrap a sampling: refuse one that takes an inverted clip for a picture; this pack's samplers see to it themselves.

    Raises:
        ValueError: noise would be added to an inverted clip, it would start at another level, or be masked.
    """
    found = [] if isinstance(sampler, ClipSampler) else inversions_in(latent_image)
    if found:
        refuse_start(found, bool(noise.count_nonzero()), float(sigmas[0]))
        if denoise_mask is not None:
            raise ValueError(MASKED)
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, *rest, **kwargs)


def refuse_start(found: list[Inversion], adds_noise: bool, sigma: float) -> None:
    """Raise ValueError where the noise of a sampling's start is not that of any inversion that was found in it."""
    if all(inversion.kind == "flow" for inversion in found):
        raise ValueError(
            "latent_image is a clip that a flow-matching model inverted, which this sampler would scale down by 1 - "
            "sigma. Use Smooth Sample, or SamplerCustomAdvanced with the sampler of Smooth Sampler."
        )
    if adds_noise:
        raise ValueError(
            "latent_image is an inverted clip, which is its own noise, and this sampler adds more, in which the clip "
            "would be lost. Use Smooth Sample; or disable add_noise (KSampler (Advanced), SamplerCustom), or connect "
            "DisableNoise (SamplerCustomAdvanced)."
        )
    levels = [float(inversion.sigmas[0]) for inversion in found]
    if not any(abs(sigma - level) <= APART * level for level in levels):
        raise ValueError(
            f"latent_image is an inverted clip with noise of sigma {levels[0]:.4f}, and this sampler starts at sigma "
            f"{sigma:.4f}. Use Smooth Sample, or give the sigmas of Smooth Sampler to SamplerCustom."
        )


WRAPPERS[WrappersMP.OUTER_SAMPLE] = check_start
