"""The losses of the courses: autoencoder, reader, diffusion."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .captions import PHRASINGS, get_kind
from .model import DemoModel
from .reader import NAMES, ShapeReader
from .world import Scene, draw, sample_scene

GetLoss = Callable[[], torch.Tensor]
LATENT_NOISE = 0.05  # of the latent's standard deviation, so that the decoder forgives
CHUNK = 256  # pictures encoded at a time
REFRESH_EVERY = 8  # steps between two chunks of fresh pictures in the pool
SNR_CAP = 5.0  # min-SNR weighting


def autocast(device: torch.device) -> torch.autocast:
    """Return bfloat16 autocast on a GPU, and none on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False)


def get_slopes(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the differences of neighbouring pixels, across and down."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def reconstruct_loss(guess: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return absolute plus squared error plus the absolute error of the slopes, so edges stay sharp."""
    slopes = sum(F.l1_loss(a, b) for a, b in zip(get_slopes(guess), get_slopes(truth), strict=True))
    return F.l1_loss(guess, truth) + 2 * F.mse_loss(guess, truth) + 0.5 * slopes


def spread_loss(latents: torch.Tensor) -> torch.Tensor:
    """Return how far the channels of latents (b, c, h, w) are from mean 0 and deviation 1."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return (mean.square() + (deviation - 1).square()).mean()


def autoencoder_loss(vae: nn.Module, batch: int, generator: torch.Generator, decoder_alone: bool = False) -> GetLoss:
    """Return the loss of reconstructing fresh pictures through slightly noisy latents, the encoder fixed if asked."""
    device = generator.device

    def get_loss() -> torch.Tensor:
        pictures, _ = draw(sample_scene(batch, generator))
        with autocast(device):
            with torch.set_grad_enabled(not decoder_alone):
                latents = vae.taesd_encoder(pictures.contiguous(memory_format=torch.channels_last))
            noise = torch.randn(latents.shape, generator=generator, device=device)
            guess = vae.taesd_decoder(latents + LATENT_NOISE * noise)
        loss = reconstruct_loss(guess.float(), pictures)
        return loss if decoder_alone else loss + 0.1 * spread_loss(latents.float())

    return get_loss


@torch.no_grad()
def set_latent_scale(model: DemoModel, generator: torch.Generator, batches: int) -> None:
    """Set vae_scale and vae_shift so that model latents have mean 0 and deviation 1."""
    raw = []
    for _ in range(batches):
        pictures, _ = draw(sample_scene(CHUNK, generator))
        raw.append(model.vae.taesd_encoder(pictures))
    raw = torch.cat(raw)
    scale = raw.std() * model.latent_scale
    model.vae.vae_scale.data.copy_(scale)
    model.vae.vae_shift.data.copy_(-raw.mean() / scale)


def spoil(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur some pictures and add noise of various strength to all of them."""
    device = generator.device
    blurred = F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    chance = torch.rand(len(pictures), 3, 1, 1, generator=generator, device=device)
    pictures = torch.where(chance[:, :1] < 0.4, blurred, pictures)
    noise = torch.randn(pictures.shape, generator=generator, device=device)
    pictures = 0.5 + (0.7 + 0.5 * chance[:, 1:2]) * (pictures - 0.5)
    return (pictures + 0.12 * chance[:, 2:].square() * noise).clamp(0, 1)


def sample_any(count: int, generator: torch.Generator) -> Scene:
    """Draw scenes of which an eighth has a held-out pair; the reader must know all of them."""
    rare = sample_scene(count // 8, generator, held_out=True)
    common = sample_scene(count - len(rare), generator)
    pairs = zip(vars(rare).values(), vars(common).values(), strict=True)
    return Scene(*(torch.cat(pair) for pair in pairs))


def reader_loss(reader: ShapeReader, model: DemoModel, batch: int, generator: torch.Generator) -> GetLoss:
    """Return the loss of naming spoiled pictures, half of them seen through the autoencoder."""

    def get_loss() -> torch.Tensor:
        scene = sample_any(batch, generator)
        pictures, _ = draw(scene)
        with autocast(generator.device):
            pictures = torch.cat([decode_again(model, pictures[::2], generator), pictures[1::2]])
            logits = reader(spoil(pictures, generator))
        order = torch.cat([torch.arange(0, batch, 2), torch.arange(1, batch, 2)]).to(generator.device)
        losses = {name: F.cross_entropy(logits[name].float(), getattr(scene, name)[order]) for name in NAMES}
        return losses.pop("shape") + 0.3 * sum(losses.values())

    return get_loss


@torch.no_grad()
def decode_again(model: DemoModel, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Encode and decode pictures, with noise of various strength on the latents."""
    latents = model.encode(pictures)
    strength = 0.3 * torch.rand(len(latents), 1, 1, 1, generator=generator, device=generator.device)
    noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    return model.decode(latents + strength * noise).float()


class LatentPool:
    """Latents of drawn pictures with the kind of each, some drawn again all the time."""

    def __init__(self, model: DemoModel, size: int, generator: torch.Generator) -> None:
        self.model, self.generator, self.oldest = model, generator, 0
        self.latents = torch.empty(size, 4, 16, 16, device=generator.device)
        self.kinds = torch.empty(size, dtype=torch.long, device=generator.device)
        for _ in range(-(-size // CHUNK)):
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Replace the oldest chunk."""
        scene = sample_scene(min(CHUNK, len(self.kinds)), self.generator)
        pictures, _ = draw(scene)
        with autocast(self.generator.device):
            latents = self.model.encode(pictures.contiguous(memory_format=torch.channels_last))
        end = min(self.oldest + len(scene), len(self.kinds))
        self.latents[self.oldest : end] = latents[: end - self.oldest].float()
        self.kinds[self.oldest : end] = get_kind(scene)[: end - self.oldest]
        self.oldest = end % len(self.kinds)

    def sample(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return random latents and their kinds."""
        index = torch.randint(0, len(self.kinds), (count,), generator=self.generator, device=self.generator.device)
        return self.latents[index], self.kinds[index]


class CaptionTable:
    """The tokens of every caption.

    Args:
        tokens: (kinds, phrasings, 77).
        empty: (77) the tokens of the empty caption.
        generator: for the choice of the phrasing.
    """

    def __init__(self, tokens: torch.Tensor, empty: torch.Tensor, generator: torch.Generator) -> None:
        device = generator.device
        self.tokens, self.empty, self.generator = tokens.to(device), empty.to(device), generator
        self.weights = torch.tensor([3.0] + [1.0] * (PHRASINGS - 1), device=device)

    def sample(self, kinds: torch.Tensor, drop: float) -> torch.Tensor:
        """Return tokens (b, 77) of a random caption of each kind, empty with probability `drop`."""
        phrasing = torch.multinomial(self.weights, len(kinds), replacement=True, generator=self.generator)
        dropped = torch.rand(len(kinds), 1, generator=self.generator, device=kinds.device) < drop
        return torch.where(dropped, self.empty, self.tokens[kinds, phrasing]).long()


class Painter(nn.Module):
    """The text encoder and the UNet as one function of noisy latents, timesteps and tokens."""

    def __init__(self, model: DemoModel) -> None:
        super().__init__()
        self.unet, self.clip = model.unet, model.clip

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.unet(latents, timesteps, self.clip.text_model(tokens)[0])


def record(painter: Painter, batch: int, device: torch.device) -> None:
    """Record forward and backward as CUDA graphs, since launching the small kernels is what takes time."""
    tokens = torch.zeros(batch, 77, dtype=torch.long, device=device)
    inputs = (torch.zeros(batch, 4, 16, 16, device=device), tokens[:, 0].contiguous(), tokens)
    with autocast(device):
        torch.cuda.make_graphed_callables(painter, inputs, allow_unused_input=True)


def diffusion_loss(painter: Painter, pool: LatentPool, table: CaptionTable, schedule, batch: int) -> GetLoss:
    """Return the noise prediction loss with min-SNR weights (Hang et al. 2023, equation 8)."""
    from diffusers.training_utils import compute_snr

    generator, device, count = pool.generator, pool.latents.device, 0

    def get_loss() -> torch.Tensor:
        nonlocal count
        count += 1
        if count % REFRESH_EVERY == 0:
            pool.refresh()
        latents, kinds = pool.sample(batch)
        tokens = table.sample(kinds, drop=0.1)
        t = torch.randint(0, schedule.config.num_train_timesteps, (batch,), generator=generator, device=device)
        eps = torch.randn(latents.shape, generator=generator, device=device)
        snr = compute_snr(schedule, t)
        with autocast(device):
            guess = painter(schedule.add_noise(latents, eps, t), t, tokens)
        error = (guess.float() - eps).square().mean((1, 2, 3))
        return (error * snr.clamp(max=SNR_CAP) / snr).mean()

    return get_loss
