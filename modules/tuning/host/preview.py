"""What the edit would look like, drawn while a model is tuned."""

from collections.abc import Callable
from dataclasses import dataclass

import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from PIL.Image import Image
from torch import Tensor

from ...clip_model.host.bank import TemporalBank
from ...demo_model.host import DemoLatents, load_demo_vae
from ...diffusion.ddim import (
    InversionOptions,
    Prediction,
    latent_to_state,
    sample_ddim,
    sample_ddim_inversion,
    state_to_latent,
)
from ...diffusion.schedule import ddim_sigmas, matched_denoise

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PreviewSettings:
    """A quick edit.

    Attributes:
        positive: conditioning of the edited prompt.
        negative: of the other side of the guidance; the clip is inverted with it.
        every: steps of the tuning between two previews.
        steps: of its inversion and of its sampling.
        cfg: classifier-free guidance.
        denoise: the part of the noise levels that is walked, 0 = matched to the latent's size.
    """

    positive: list
    negative: list
    every: int = 125
    steps: int = 4
    cfg: float = 7.5
    denoise: float = 0.0


class Preview:
    """Draws the edit with the model as it is.

    Args:
        settings: of the edit.
        copy: the model, for its kind of latent and its device.
        bank: the temporal modules that are tuned, which are left as they are.
        x_0: clean model latent of the clip.
        sigma_table: sigma of each training timestep.
        prediction: what the UNet predicts.
        positive, negative: denoisers under each conditioning.
    """

    def __init__(
        self,
        settings: PreviewSettings,
        copy: ModelPatcher,
        bank: TemporalBank | None,
        x_0: Tensor,
        sigma_table: Tensor,
        prediction: Prediction,
        positive: Denoiser,
        negative: Denoiser,
    ):
        self.settings, self.bank, self.x_0, self.prediction = settings, bank, x_0, prediction
        denoise = settings.denoise or matched_denoise(sigma_table, *x_0.shape[-2:])
        self.sigmas = ddim_sigmas(sigma_table, settings.steps, denoise).to(x_0)
        self.positive, self.negative = positive, negative
        self.previewer = find_previewer(copy)

    def guided(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Predict x_0 with classifier-free guidance."""
        return torch.lerp(self.negative(x, sigma), self.positive(x, sigma), self.settings.cfg)

    @torch.no_grad()
    def draw(self) -> list[Image]:
        """Return the frames of the edit."""
        if self.bank is not None:
            self.bank.eval()  # in training a forward would move the power iteration on
        try:
            flipped = self.sigmas.flip(0)
            clean = latent_to_state(self.x_0, flipped[0])
            options = InversionOptions(self.prediction)
            noise = sample_ddim_inversion(self.negative, clean, flipped, options=options)
            edit = state_to_latent(sample_ddim(self.guided, noise, self.sigmas), self.sigmas[-1])
        finally:
            if self.bank is not None:
                self.bank.train()
        return [self.previewer.decode_latent_to_preview(edit[i : i + 1]) for i in range(len(edit))]


class DemoPreviewer(latent_preview.TAESDPreviewerImpl):
    """Decodes the demo model's latents in full: no previewer of the host fits them, and the decoder is tiny."""

    def decode_latent_to_preview(self, x0: Tensor) -> Image:
        """Return the picture of the first of some model latents."""
        return super().decode_latent_to_preview(DemoLatents().process_out(x0))


def find_previewer(model: ModelPatcher) -> latent_preview.LatentPreviewer:
    """Return the host's previewer of a model's latents, its quickest one where previews are off."""
    latents = model.model.latent_format
    if isinstance(latents, DemoLatents):
        return DemoPreviewer(load_demo_vae().first_stage_model.to(model.load_device, torch.float32))
    chosen = latent_preview.get_previewer(model.load_device, latents)
    if chosen is not None:
        return chosen
    return latent_preview.Latent2RGBPreviewer(
        latents.latent_rgb_factors, latents.latent_rgb_factors_bias, latents.latent_rgb_factors_reshape
    )
