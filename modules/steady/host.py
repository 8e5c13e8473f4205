"""Clips as the host's nodes hand them over, images or latents, to be steadied."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from torch import Tensor

from ..clip_model.host.family import ONE_BY_ONE
from ..diffusion.host.latent import INVERSION, image_latents, is_inverted, to_positions
from ..inversion.noise_relation import lookups
from ..judging.scorecard import texture_kept
from ..motion.flow import Motion
from ..sampling.host import check_mask
from ..sampling.texture import BACK_OFF
from ..sockets.pictures import read_images
from .steady import SteadySettings, steady_edit, unsteadiness


def frames_of(latent: Mapping[str, Any], name: str) -> Tensor:
    """Return the samples of a LATENT whose frames were encoded one by one, shape (f, c, h, w).

    Raises:
        ValueError: they are of another shape, not finite, or an inversion.
    """
    samples = image_latents(latent, name, ONE_BY_ONE)
    if is_inverted(latent):
        raise ValueError(f"{name} is an inversion, which is noise. Connect the latent of a clip.")
    return samples.float()


def read_pair(source: Any, edited: Any) -> tuple[Tensor, Tensor]:
    """Return a clip and its edit, both images or both latents, as frames (f, c, h, w) in float32.

    Raises:
        ValueError: they are of two kinds, or differ in frames, channels or size.
    """
    kinds = ["a latent" if isinstance(value, Mapping) else "images" for value in (source, edited)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"source is {kinds[0]} and edited {kinds[1]}. Connect both as images, or both as latents of the same VAE."
        )
    if isinstance(source, Mapping):
        before, after = frames_of(source, "source"), frames_of(edited, "edited")
    else:
        before, after = (
            read_images(images, name).movedim(-1, 1) for images, name in ((source, "source"), (edited, "edited"))
        )
    if before.shape != after.shape:
        raise ValueError(
            f"source has the shape {tuple(before.shape)} and edited {tuple(after.shape)}: frames, channels, height, "
            "width. Both are of the same clip: give as many frames of the same size, latents by the same VAE."
        )
    return before, after


def show_lookups(count: int) -> Callable[[], None]:
    """Return what shows the progress of at most so many lookups, called before each, and stops on an interrupt."""
    bar = ProgressBar(count)

    def between() -> None:
        throw_exception_if_processing_interrupted()
        bar.update(1)

    return between


def steady_clip(
    source: Any, edited: Any, settings: SteadySettings, motion: Motion | None = None, mask: Tensor | None = None
) -> tuple[Any, dict[str, float | None]]:
    """Steady a clip that was edited frame by frame, see `steady_edit`.

    Args:
        source, edited: the clip and its edit, both IMAGE or both LATENT.
        settings: of the blend.
        motion: of the source, at any size; None = frames as they lie.
        mask: where it acts, shape (f or 1, height, width), 0 ... 1; None = everywhere.

    Returns:
        The steadied edit, of the kind that was given, and a report: the strength, the unsteadiness of the edit before
        and after, the part of its texture that is left, and by how much it was changed (mean difference).

    Raises:
        ValueError: the clips are of different kinds or shapes, or motion, mask or the frames' shares of other frames.
    """
    check_mask(mask)
    before, after = read_pair(source, edited)
    motion = None if motion is None else motion.fitted(before)
    share = 1.0 if mask is None else to_positions(mask, after)
    blends = len(BACK_OFF) if settings.keep_texture else 1  # at most
    between = show_lookups(blends * lookups(len(before), settings.passes))
    steadied, strength = steady_edit(before, after, settings, motion, share, between)
    if not isinstance(edited, Mapping):
        steadied = torch.where(steadied == after, after, steadied.clamp(0, 1))
    report = {
        "strength": strength,
        "unsteadiness_before": unsteadiness(before, after, motion),
        "unsteadiness_after": unsteadiness(before, steadied, motion),
        "texture": texture_kept(steadied, after),
        "changed": (steadied - after).abs().mean().item(),
    }
    if not isinstance(edited, Mapping):
        return steadied.movedim(1, -1).contiguous(), report
    kept = {key: value for key, value in edited.items() if key != INVERSION}
    return {**kept, "samples": steadied.reshape(edited["samples"].shape).to(edited["samples"].dtype)}, report
