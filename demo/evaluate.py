"""Measure the shipped model: pictures sampled from held-out captions, named by the judges."""

import argparse
import json
from pathlib import Path

import torch

from ..modules.files.strict_json import to_json
from .captions import caption
from .model import WEIGHTS, DemoModel, load_config, load_host, load_model, tokenize
from .palette import WORDS
from .reader import ShapeReader, find_object, read_colour
from .sheet import save_sheet
from .world import Scene, draw, get_centroid, sample_scene

CHUNK = 128


@torch.no_grad()
def sample_pictures(
    model: DemoModel, texts: list[str], steps: int, cfg: float, seed: int, schedule: dict
) -> torch.Tensor:
    """Sample one picture for each text by DDIM with classifier-free guidance; the noise is drawn on the CPU.

    Returns:
        (b, 3, 128, 128) in [0, 1].
    """
    from diffusers import DDIMScheduler

    device = next(model.unet.parameters()).device
    ddim = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    ddim.set_timesteps(steps)
    text = model.embed(tokenize([""] * len(texts) + texts).to(device))
    x = torch.randn(len(texts), 4, 16, 16, generator=torch.Generator().manual_seed(seed)).to(device)
    for t in ddim.timesteps:
        guess = model.predict(torch.cat([x, x]), t.to(device).expand(2 * len(x)), text)
        free, bound = guess.chunk(2)
        x = ddim.step(free + cfg * (bound - free), t, x).prev_sample
    return model.decode(x)


def get_names(scene: Scene) -> dict[str, list[str]]:
    """Return the names of every attribute of each picture."""
    return {name: [known[i] for i in getattr(scene, name).tolist()] for name, known in WORDS.items()}


def judge(pictures: torch.Tensor, scene: Scene, reader: ShapeReader) -> dict[str, float]:
    """Return the share of pictures in which each attribute is read as the scene says."""
    readings = {name: reader.read(pictures, name) for name in ("shape", "texture", "background", "style")}
    readings["colour"] = read_colour(pictures)
    truth = get_names(scene)
    right = {name: sum(a == b for a, b in zip(readings[name], truth[name], strict=True)) for name in truth}
    return {name: round(count / len(pictures), 4) for name, count in right.items()}


@torch.no_grad()
def judge_judges(model: DemoModel, reader: ShapeReader, count: int, generator: torch.Generator) -> dict:
    """Return how well the judges name drawn pictures with held-out pairs, and the autoencoder's error."""
    scene = sample_scene(count, generator, held_out=True)
    pictures, mask = draw(scene)
    again = torch.cat([model.decode(model.encode(part)) for part in pictures.split(CHUNK)])
    apart = (find_object(pictures)[1] - get_centroid(mask)).norm(dim=-1)
    psnr = -10 * (again - pictures).square().mean((1, 2, 3)).log10()
    return {
        "reader_on_drawn": judge(pictures, scene, reader),
        "reader_on_decoded": judge(again, scene, reader),
        "centroid_error_pixels": round(apart.mean().item(), 3),
        "autoencoder_psnr_db": round(psnr.mean().item(), 2),
        "latent_deviation": round(model.encode(pictures[:CHUNK]).std().item(), 3),
    }


def evaluate(folder: Path, device: torch.device, count: int, seed: int, steps: int = 50, cfg: float = 7.5) -> dict:
    """Sample and judge pictures for captions with held-out and with known pairs; samples.png shows the former."""
    model, config = load_model(folder, device), load_config(folder)
    reader = ShapeReader.load(folder / "reader.safetensors").to(device)
    generator = torch.Generator(device).manual_seed(seed)
    result = judge_judges(model, reader, count, generator)
    result |= {"sampled_pictures": count, "ddim_steps": steps, "cfg": cfg, "seed": seed}
    for name, held_out in (("known_pairs", False), ("held_out_pairs", True)):
        scene = sample_scene(count, generator, held_out)
        texts = caption(scene)
        parts = [
            sample_pictures(model, texts[i : i + CHUNK], steps, cfg, seed + i, config["schedule"])
            for i in range(0, count, CHUNK)
        ]
        result[name] = judge(torch.cat(parts), scene, reader)
    save_sheet(folder / "samples.png", torch.cat(parts)[:64], texts[:64])
    return result


def main() -> None:
    """Evaluate a folder of weights and write what was measured into its provenance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--comfyui", type=Path, default=Path(".comfyui"))
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load_host(given.comfyui, device.type == "cpu")
    measured = evaluate(given.weights, device, given.count, given.seed)
    path = given.weights / "provenance.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(to_json(known | {"measured": measured}, indent=2) + "\n")
    print(to_json(measured, indent=2))


if __name__ == "__main__":
    main()
