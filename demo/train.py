"""Train the demonstration's model from nothing on freshly drawn pictures, export it, measure it.

Run: python -m demo.train --out demo/weights --state .demo-state --comfyui .comfyui
"""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..modules.files.strict_json import to_json
from .captions import list_captions
from .course import Course, Report, run_course
from .evaluate import evaluate
from .model import WEIGHTS, DemoModel, build_model, load_config, load_host, save_weights, tokenize
from .reader import ShapeReader
from .stages import (
    CaptionTable,
    LatentPool,
    Painter,
    autoencoder_loss,
    diffusion_loss,
    reader_loss,
    record,
    set_latent_scale,
)

Log = Callable[[str], None]
# Steps and batch of each course.
COURSES = {"autoencoder": (1584, 64), "reader": (820, 128), "diffusion": (8053, 256), "decoder": (7194, 64)}


def make_parser(says: str | None) -> argparse.ArgumentParser:
    """Return a command line that says where a training reads and writes."""
    parser = argparse.ArgumentParser(description=says, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights, the log and the samples")
    parser.add_argument("--state", type=Path, required=True, help="folder of the checkpoints; kept, a run goes on")
    parser.add_argument("--comfyui", type=Path, default=Path(".comfyui"), help="a ComfyUI tree")
    return parser


def open_log(path: Path) -> Log:
    """Return a function that prints a line and adds it to a file."""

    def log(line: str) -> None:
        print(line, flush=True)
        with path.open("a") as file:
            file.write(line + "\n")

    return log


def open_run(given: argparse.Namespace) -> tuple[Log, torch.device]:
    """Prepare a training as the command line says; return its log and device."""
    given.out.mkdir(parents=True, exist_ok=True)
    given.state.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load_host(given.comfyui, device.type == "cpu")
    torch.manual_seed(given.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return open_log(given.out / "train.log"), device


def tokenize_captions(generator: torch.Generator) -> CaptionTable:
    """Tokenise every caption once."""
    captions = list_captions()
    known = sorted({text for row in captions for text in row})
    place = {text: number for number, text in enumerate(known)}
    index = torch.tensor([[place[text] for text in row] for row in captions])
    return CaptionTable(tokenize(known).int()[index], tokenize([""])[0].int(), generator)


def train_all(
    given: argparse.Namespace, model: DemoModel, reader: ShapeReader, config: dict, log: Log
) -> dict[str, Report]:
    """Run the four courses one after the other.

    The last trains the decoder alone on, for pictures sharper at the same latents: the UNet stays right.
    """
    from diffusers import DDPMScheduler

    device = next(model.unet.parameters()).device
    generator = torch.Generator(device).manual_seed(given.seed)

    def run(name: str, network: nn.Module, get_loss: Callable[[], torch.Tensor], rate: float, ema: float) -> Report:
        return run_course(Course(name, network, get_loss, rate, ema), getattr(given, f"steps_{name}"), given.state, log)

    vae_loss = autoencoder_loss(model.vae, given.batch_autoencoder, generator)
    coder = nn.ModuleList([model.vae.taesd_encoder, model.vae.taesd_decoder]).to(memory_format=torch.channels_last)
    reports = {"autoencoder": run("autoencoder", coder, vae_loss, 8e-4, 0.995)}
    set_latent_scale(model, torch.Generator(device).manual_seed(given.seed), batches=1 if device.type == "cpu" else 8)
    named = reader_loss(reader, model, given.batch_reader, generator)
    reports["reader"] = run("reader", reader, named, 2e-3, 0.995)
    table = tokenize_captions(generator)
    log(f"captions: {table.tokens.shape[0] * table.tokens.shape[1]}")
    pool = LatentPool(model, given.pool, generator)
    log(f"pool: {len(pool.kinds)} latents, deviation {pool.latents.std().item():.3f}")
    painter = Painter(model)
    if device.type == "cuda":
        record(painter, given.batch_diffusion, device)
    noisy = diffusion_loss(painter, pool, table, DDPMScheduler(**config["schedule"]), given.batch_diffusion)
    reports["diffusion"] = run("diffusion", painter, noisy, 6e-4, 0.9995)
    sharper = autoencoder_loss(model.vae, given.batch_decoder, generator, decoder_alone=True)
    reports["decoder"] = run("decoder", model.vae.taesd_decoder, sharper, 6e-4, 0.998)
    return reports


def export(
    folder: Path, model: DemoModel, reader: ShapeReader, seed: int, reports: dict[str, Report]
) -> dict[str, int]:
    """Write the weights and return the parameter counts."""
    networks = {"unet": model.unet, "clip": model.clip, "vae": model.vae, "reader": reader}
    course = {"unet": "diffusion", "clip": "diffusion", "vae": "decoder", "reader": "reader"}
    for name, network in networks.items():
        origin = f"trained from nothing by demo/train.py on pictures drawn by demo/world.py, seed {seed}"
        note = {"origin": origin, "steps": str(reports[course[name]].steps)}
        save_weights(network, folder / f"{name}.safetensors", note)
    return {name: sum(value.numel() for value in network.parameters()) for name, network in networks.items()}


def main() -> None:
    """Train, export and measure."""
    parser = make_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    for course, (steps, batch) in COURSES.items():
        parser.add_argument(f"--steps-{course}", type=int, default=steps)
        parser.add_argument(f"--batch-{course}", type=int, default=batch)
    parser.add_argument("--pool", type=int, default=131072, help="latents held ready for the diffusion stage")
    parser.add_argument("--samples", type=int, default=512, help="pictures sampled for each measurement")
    given = parser.parse_args()
    log, device = open_run(given)
    torch.backends.cudnn.benchmark = True
    if given.out.resolve() != WEIGHTS.resolve():
        shutil.copy(WEIGHTS / "config.json", given.out / "config.json")
    config = load_config()
    model, reader = build_model(config, device), ShapeReader().to(device)
    reports = train_all(given, model, reader, config, log)
    parameters = export(given.out, model, reader, given.seed, reports)
    measured = evaluate(given.out, device, given.samples, given.seed + 1)
    write_provenance(given, reports, parameters, measured)
    log(to_json(measured, indent=2))


def write_provenance(
    given: argparse.Namespace, reports: dict[str, Report], parameters: dict[str, int], measured: dict
) -> None:
    """Write where the weights come from and what was measured on them."""
    courses = {name: asdict(report) | {"batch": getattr(given, f"batch_{name}")} for name, report in reports.items()}
    record = {
        "script": "demo/train.py",
        "pictures": "drawn by demo/world.py during training, none stored",
        "held_out": "pairs with (colour + 3 * shape) % 8 == 6, see demo/world.py",
        "seed": given.seed,
        "torch": str(torch.__version__),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "courses": courses,
        "parameters": parameters,
        "measured": measured,
    }
    (given.out / "provenance.json").write_text(to_json(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
