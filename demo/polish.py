"""Train the decoder alone on, for pictures sharper at the same latents, and measure everything again.

    python -m demo.polish --out demo/weights --state .demo-state --minutes 2.5

The encoder stays as it is, so the UNet that was trained on its latents stays right.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from ..modules.files.strict_json import to_json
from .course import Course, run_course
from .evaluate import evaluate
from .model import load_model, save_weights
from .stages import LATENT_NOISE, autocast, reconstruct_loss
from .train import make_parser, open_run
from .world import draw, sample_scene


def decoder_loss(vae: nn.Module, batch: int, generator: torch.Generator) -> Callable[[], torch.Tensor]:
    """Return the loss of decoding the slightly noisy latents of fresh pictures, the encoder fixed."""
    device = generator.device

    def get_loss() -> torch.Tensor:
        pictures, _ = draw(sample_scene(batch, generator))
        with autocast(device):
            with torch.no_grad():
                latents = vae.taesd_encoder(pictures.contiguous(memory_format=torch.channels_last))
            noise = torch.randn(latents.shape, generator=generator, device=device)
            guess = vae.taesd_decoder(latents + LATENT_NOISE * noise)
        return reconstruct_loss(guess.float(), pictures)

    return get_loss


def main() -> None:
    """Polish, export and measure."""
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=512, help="pictures sampled for each measurement")
    parser.add_argument("--seed", type=int, default=2)
    given = parser.parse_args()
    log, device = open_run(given)
    model = load_model(given.out, device)
    decoder = model.vae.taesd_decoder.to(memory_format=torch.channels_last)
    loss = decoder_loss(model.vae, given.batch, torch.Generator(device).manual_seed(given.seed))
    course = Course("decoder", decoder, loss, 6e-4, 0.998)
    report = run_course(course, None, given.minutes, given.state, time.monotonic() + 60 * given.minutes, log)
    provenance = json.loads((given.out / "provenance.json").read_text())
    origin = "trained from nothing by demo/train.py and demo/polish.py on pictures drawn by demo/world.py"
    save_weights(model.vae, given.out / "vae.safetensors", {"origin": origin, "steps": str(report.steps)})
    provenance["script"] = "demo/train.py, then demo/polish.py"
    provenance["courses"]["decoder"] = asdict(report) | {"batch": given.batch, "seed": given.seed}
    provenance["measured"] = evaluate(given.out, device, given.samples, 1)
    (given.out / "provenance.json").write_text(to_json(provenance, indent=2) + "\n")
    log(to_json(provenance["measured"], indent=2))


if __name__ == "__main__":
    main()
