"""Train the demo model's ControlNet on edges of freshly drawn pictures, export it, measure it.

    python -m demo.control --out demo/weights --state .demo-state --comfyui .comfyui

The rest of the model stays as it is. The edges are those of ComfyUI's node Canny with its own values.
"""

import json
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from ..modules.files.strict_json import to_json
from .captions import caption, get_kind
from .course import Course, run_course
from .evaluate import CHUNK, sample_pictures
from .model import DemoModel, build_control, load_config, load_model, save_weights
from .reader import find_object
from .stages import CaptionTable, autocast
from .train import make_parser, open_run, tokenize_captions
from .world import draw, sample_scene

LOW, HIGH = 0.4, 0.8  # Canny's thresholds
DROPPED = 0.3  # of the captions, so that it learns from the edges
WEIGHT_CAP = 20.0  # of the noise's error, where 1 / SNR is that of the picture
FILE = "control.safetensors"


def find_edges(pictures: Tensor) -> Tensor:
    """Return the edges of pictures (b, 3, h, w) in [0, 1], of their shape, 0 or 1."""
    from kornia.filters import canny

    return canny(pictures, LOW, HIGH)[1].expand_as(pictures)


class EdgePool:
    """Latents of drawn pictures with their edges and kinds."""

    @torch.no_grad()
    def __init__(self, model: DemoModel, size: int, generator: torch.Generator) -> None:
        self.generator = generator
        latents, edges, kinds = [], [], []
        for begin in range(0, size, CHUNK):
            scene = sample_scene(min(CHUNK, size - begin), generator)
            pictures, _ = draw(scene)
            latents.append(model.encode(pictures))
            edges.append(find_edges(pictures)[:, :1].bool())
            kinds.append(get_kind(scene))
        self.latents, self.edges, self.kinds = torch.cat(latents), torch.cat(edges), torch.cat(kinds)

    def sample(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return random latents, edges (b, 3, h, w) and kinds."""
        index = torch.randint(len(self.kinds), (count,), generator=self.generator, device=self.kinds.device)
        return self.latents[index], self.edges[index].expand(-1, 3, -1, -1).float(), self.kinds[index]


def control_loss(
    model: DemoModel, net: nn.Module, pool: EdgePool, table: CaptionTable, schedule, batch: int
) -> Callable[[], Tensor]:
    """Return the loss of predicting the picture, the ControlNet's outputs added to the UNet.

    Where objects lie is decided at the high noise levels, and there the noise hardly tells how well they are found.
    """
    from diffusers.training_utils import compute_snr

    generator, device = pool.generator, pool.latents.device

    def get_loss() -> Tensor:
        latents, edges, kinds = pool.sample(batch)
        t = torch.randint(schedule.config.num_train_timesteps, (batch,), generator=generator, device=device)
        eps = torch.randn(latents.shape, generator=generator, device=device)
        noisy, snr = schedule.add_noise(latents, eps, t), compute_snr(schedule, t)
        with autocast(device):
            with torch.no_grad():
                text = model.embed(table.sample(kinds, DROPPED))
            guess = model.unet(noisy, t, text, control=net(noisy, edges, t, text))
        error = (guess.float() - eps).square().mean((1, 2, 3))
        return (error * (1 / snr).clamp(max=WEIGHT_CAP)).mean()

    return get_loss


class Steered(nn.Module):
    """The UNet with a ControlNet's outputs for some edges, as a UNet."""

    def __init__(self, unet: nn.Module, net: nn.Module, edges: Tensor) -> None:
        super().__init__()
        self.unet, self.net, self.edges = unet, net, edges

    def forward(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        edges = self.edges.repeat(len(latents) // len(self.edges), 1, 1, 1)
        return self.unet(latents, timesteps, text, control=self.net(latents, edges, timesteps, text))


@torch.no_grad()
def measure(model: DemoModel, net: nn.Module, count: int, seed: int, config: dict) -> dict[str, float]:
    """Return how far the objects of sampled pictures lie over the drawn ones, intersection over union, with the
    ControlNet and without it; prompts of held-out pairs."""
    device = next(model.unet.parameters()).device
    scene = sample_scene(count, torch.Generator(device).manual_seed(seed), held_out=True)
    pictures, _ = draw(scene)
    wanted = find_object(pictures)[0] > 0.5
    found = {}
    for name, unet in (("with", Steered(model.unet, net, find_edges(pictures))), ("without", model.unet)):
        steered = DemoModel(unet, model.clip, model.vae, model.latent_scale)
        mask = find_object(sample_pictures(steered, caption(scene), 20, 3.0, seed, config["schedule"]))[0] > 0.5
        union = (mask | wanted).sum((1, 2)).clamp(min=1)
        found[name] = round(((mask & wanted).sum((1, 2)) / union).mean().item(), 4)
    return found


def main() -> None:
    """Train, export and measure."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pool", type=int, default=1024, help="pictures")
    parser.add_argument("--samples", type=int, default=64, help="pictures sampled for the measurement")
    parser.add_argument("--seed", type=int, default=3)
    given = parser.parse_args()
    log, device = open_run(given)
    from diffusers import DDPMScheduler

    config, model = load_config(given.out), load_model(given.out, device)
    for network in (model.unet, model.clip, model.vae):
        network.requires_grad_(False)
    net = build_control(config, model.unet).to(device)
    generator = torch.Generator(device).manual_seed(given.seed)
    pool, table = EdgePool(model, given.pool, generator), tokenize_captions(generator)
    loss = control_loss(model, net, pool, table, DDPMScheduler(**config["schedule"]), given.batch)
    course = Course("control", net, loss, 1e-3, 0.995)
    report = run_course(course, given.steps, given.state, log)
    origin = "begun as the first half of demo/train.py's UNet, trained by demo/control.py on pictures by demo/world.py"
    save_weights(net, given.out / FILE, {"origin": origin, "steps": str(report.steps)})
    provenance = json.loads((given.out / "provenance.json").read_text())
    provenance["courses"]["control"] = asdict(report) | {"batch": given.batch, "seed": given.seed}
    provenance["parameters"]["control"] = sum(value.numel() for value in net.parameters())
    provenance["control"] = {"object_overlap": measure(model, net, given.samples, given.seed + 1, config)}
    provenance["control"] |= {"sampled_pictures": given.samples, "ddim_steps": 20, "cfg": 3.0, "device": device.type}
    (given.out / "provenance.json").write_text(to_json(provenance, indent=2) + "\n")
    log(to_json(provenance["control"], indent=2))


if __name__ == "__main__":
    main()
