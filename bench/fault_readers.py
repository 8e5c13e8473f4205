"""What reads the files that users bring: whole files of each kind, and how they are read and used."""

import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import folder_paths
import torch
import transformers
from safetensors.torch import save
from torch import Tensor
from torchvision.models import alexnet
from torchvision.models.optical_flow import raft_small

from ..modules.clip_model.methods import EI2, method
from ..modules.files.host import IMPORTS, INVERSIONS, LPIPS, OPTICAL_FLOW, PROMPT_TOKENS
from ..modules.inversion.file import save_inversion
from ..modules.inversion.inversion import Inversion, InversionSettings
from ..modules.judging.clip import ClipModel
from ..modules.judging.host.judges import read_network
from ..modules.judging.lpips import load_lpips
from ..modules.motion.raft import empty, load_raft
from ..modules.prompt_tokens.adapter import PromptAdapter, save_prompt_adapter
from ..modules.tuning.host.tune_a_video import read_unet
from ..modules.tuning.tune_a_video import TEMPORAL, check_file, compare_frozen, file_names, file_shapes, to_tune
from ..modules.tuning.weights import Tune, save_tune
from ..nodes.shelves import ADAPTERS, INVERTED, TUNES
from .fault_damage import BYTES, JSON, OURS, PICKLE, SAFETENSORS, Damage

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SECONDS, MEMORY = 20.0, 256 * 2**20  # that reading a small file may take; larger ones their size twice besides
BLOCK = "diffusion_model.middle_block.1.transformer_blocks.0"
UNET = {
    "b.attn1.to_q.weight": (4, 4),
    "b.attn2.to_q.weight": (4, 4),
    "b.norm1.weight": (4,),
    "b.conv.bias": (3,),
}


@dataclass(frozen=True)
class Reader:
    """A kind of file and what reads it.

    Attributes:
        begins: what every message begins with.
        files: whole ones by name, of which one is damaged.
        read: reads them, and uses what it has read as far as that needs no model; takes their folder.
        damages: what is done to a file, by the ending of its name.
        share: of all inputs, in parts.
    """

    begins: str
    files: Mapping[str, bytes]
    read: Callable[[Path], Any]
    damages: Mapping[str, Mapping[str, Damage]]
    share: int = 16


def draw(*shape: int) -> Tensor:
    """Return random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def make_tune() -> Tune:
    """Return a small tune with snapshots and a state."""
    spatial, temporal = method(EI2)
    assert spatial is not None and temporal is not None
    tensors = {f"{BLOCK}.attn1.to_q.diff": draw(4, 4), f"{BLOCK}.attn_temp.to_v.weight": draw(4, 4)}
    info = {"spatial": asdict(spatial), "spatial_strength": 1.0, "temporal": temporal.noted(), "temporal_strength": 0.5}
    info |= {"percents": [0.0, 0.8], "frames": 3, "tunes": ["ab"], "loss": [0.3, 0.2, 0.1], "prompt": "a swan"}
    return Tune(tensors, info, {step: {k: v.half() for k, v in tensors.items()} for step in (0, 2)}, make_state())


def make_state() -> dict[str, Tensor]:
    """Return a state after three steps, as every tuning has it."""
    state = {"learned.x": draw(3), "optimizer.0.step": torch.tensor(3.0), "scaler.scale:number": torch.tensor(2.0)}
    state["losses"], state["rises"] = draw(3).double(), torch.tensor([2])
    return {**state, "generator": torch.Generator().manual_seed(5).get_state()}


def make_inversion() -> Inversion:
    """Return a small inversion."""
    sigmas, clip = torch.tensor([5.0, 2.0, 0.1]), draw(3, 4, 2, 5)
    return Inversion(sigmas, draw(2, 3, 4, 2, 5).half(), clip, 5 * clip, InversionSettings(2, denoise=0.8), "ab")


def make_adapter() -> PromptAdapter:
    """Return small prompt tokens."""
    return PromptAdapter(draw(2, 6), draw(3, 1, 6), {"loss": [0.3, 0.2, 0.1], "frames": 3}, make_state())


def saved(save_to: Callable[[Path], None]) -> bytes:
    """Return what is saved, as a file's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        save_to(Path(folder) / "file.safetensors")
        return (Path(folder) / "file.safetensors").read_bytes()


def pickled(weights: dict[str, Tensor]) -> bytes:
    """Return weights as PyTorch saves them."""
    made = io.BytesIO()
    torch.save(weights, made)
    return made.getvalue()


def use_tune(folder: Path) -> None:
    """Read a tune and take it at its half and at its end."""
    tune = TUNES.read("a.safetensors")
    for progress in (0.5, 1.0) if tune.snapshots else (1.0,):
        _ = tune.at(progress).made, tune.digest()


def use_inversion(folder: Path) -> None:
    """Read an inversion and take what an edit takes of it."""
    inversion = INVERTED.read("a.safetensors")
    states = torch.stack([inversion.source.float()] * len(inversion.sigmas))
    inversion.start_at(states, inversion.steps - 1)
    inversion.call_at(states, 0)
    inversion.report(inversion.settings)


def use_adapter(folder: Path) -> None:
    """Read prompt tokens and put them before a prompt."""
    adapter = ADAPTERS.read("a.safetensors")
    adapter.context(torch.zeros(1, 7, adapter.shared.shape[-1]), 5)


def use_unet(name: str) -> None:
    """Read a UNet of Tune-A-Video as Import Tune-A-Video does, for a model of few weights."""
    unet = {key: draw(*shape) for key, shape in UNET.items()}
    names = file_names({f"x.{key}": key for key in UNET}, UNET)
    weights = read_unet(name)
    check_file(weights, names, file_shapes(unet), name)
    compare_frozen(weights, unet, names)
    to_tune(weights, unet, names, "eps", name)


def unet_file() -> dict[str, Tensor]:
    """Return what `use_unet` reads."""
    shapes = file_shapes({key: draw(*shape) for key, shape in UNET.items()})
    names = file_names({f"x.{key}": key for key in UNET}, UNET)
    assert len(shapes) == len(UNET) + len(TEMPORAL)
    return {names[key]: draw(*shape) for key, shape in shapes.items()}


def clip_files() -> dict[str, bytes]:
    """Return a small CLIP model's folder, whole."""
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = ["<|startoftext|>", "<|endoftext|>", "a", "a</w>"]
    text = {**shape, "vocab_size": len(words), "max_position_embeddings": 11, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**shape, "image_size": 16, "patch_size": 8}
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    kind = {"tokenizer_class": "CLIPTokenizer", "bos_token": words[0], "eos_token": words[1], "unk_token": words[1]}
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng(devices=[]):
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
        transformers.CLIPModel(config).save_pretrained(name)
        transformers.CLIPImageProcessor(**sizes).save_pretrained(name)
        made = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    texts = {"vocab.json": json.dumps({word: i for i, word in enumerate(words)}), "merges.txt": "#version: 0.2\n"}
    texts["tokenizer_config.json"] = json.dumps({**kind, "pad_token": words[1], "model_max_length": 11})
    return made | {name: text.encode() for name, text in texts.items()}


def use_raft(folder: Path) -> None:
    """Read weights of RAFT."""
    load_raft(read_network(OPTICAL_FLOW, "a.bin"), "a.bin")


def use_lpips(folder: Path) -> None:
    """Read weights for LPIPS."""
    load_lpips(read_network(LPIPS, "a.bin"), "a.bin")


def use_clip(folder: Path) -> None:
    """Read a CLIP folder, of which a frame and a prompt are embedded."""
    ClipModel(folder, torch.device("cpu"))


@cache
def make_readers() -> dict[str, Reader]:
    """Return every reader of files that users bring."""
    name, ours, foreign = "a.safetensors", {".safetensors": OURS}, {".safetensors": SAFETENSORS, ".bin": PICKLE}
    flow = {key: torch.zeros_like(value, device="cpu") for key, value in empty(raft_small).state_dict().items()}
    with torch.device("meta"):
        network = alexnet().features.state_dict()
    features = {f"features.{key}": torch.zeros_like(value, device="cpu") for key, value in network.items()}
    clip = clip_files()
    tune, inversion, adapter = make_tune(), make_inversion(), make_adapter()
    unet = unet_file()
    return {
        "tune": Reader(name, {name: saved(lambda path: save_tune(tune, path, with_state=True))}, use_tune, ours),
        "inversion": Reader(name, {name: saved(lambda path: save_inversion(inversion, path))}, use_inversion, ours),
        "tokens": Reader(name, {name: saved(lambda path: save_prompt_adapter(adapter, path))}, use_adapter, ours),
        "Tune-A-Video, safetensors": Reader(name, {name: save(unet)}, lambda _: use_unet(name), foreign),
        "Tune-A-Video, bin": Reader("a.bin", {"a.bin": pickled(unet)}, lambda _: use_unet("a.bin"), foreign),
        "RAFT": Reader("a.bin", {"a.bin": pickled(flow)}, use_raft, foreign, 1),
        "LPIPS": Reader("a.bin", {"a.bin": pickled(features)}, use_lpips, foreign, 1),
        "CLIP folder": Reader("clip", clip, use_clip, {**foreign, ".json": JSON, ".txt": BYTES}, 1),
    }


@contextmanager
def folders_at(folder: Path) -> Iterator[None]:
    """Let all models folders of the pack be one."""
    names = ("consistent_video", IMPORTS, INVERSIONS, PROMPT_TOKENS, OPTICAL_FLOW, LPIPS)
    changes: dict[str, Any] = {name: ([str(folder)], set()) for name in names}
    with mock.patch.dict(folder_paths.folder_names_and_paths, changes):
        yield


def peak() -> int:
    """Return the highest resident size so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if resource is not None else 0


def attempt(
    work: Callable[[], Any], begins: str, size: int = 0, error: type[Exception] = ValueError
) -> tuple[str, str]:
    """Do what may be refused; returns what the user sees and what is wrong with that, each empty where nothing is."""
    began, before, wrong = time.monotonic(), peak(), ""
    try:
        work()
        seen = ""
    except KeyboardInterrupt:
        raise
    except BaseException as raised:  # libraries in other languages raise their own
        seen = str(raised)
        if type(raised) is not error or not seen.startswith(begins):
            wrong = f"{type(raised).__name__}: {seen:.200}"
    if (seconds := time.monotonic() - began) > SECONDS:
        wrong = wrong or f"took {seconds:.0f} s"
    if (grown := peak() - before) > MEMORY + 2 * size:
        wrong = wrong or f"took {grown / 2**20:.0f} MiB"
    return seen, wrong
