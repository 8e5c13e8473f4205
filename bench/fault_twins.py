"""Every node in two fresh servers with one seed: what comes out is the same to the bit."""

import copy
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ..modules.tuning.weights import hash_tensors
from ..scripts.environment import comfyui_tree
from ..scripts.graph import inputs_of
from ..scripts.host import Host, device_arguments
from . import fault_probe
from .fault_graphs import PACK, PROVIDERS, fill, node
from .fault_row import Row

Json = dict[str, Any]
AROUND: dict[str, Json] = {  # nodes of ComfyUI, beside PROVIDERS
    "noisy": node("ImageAddNoise", image=["picture", 0], seed=1, strength=0.2),
    "edited": node("ImageInvert", image=["noisy", 0]),
    "latent": node("VAEEncode", pixels=["noisy", 0], vae=["demo", 2]),
    "guided": node(
        "CFGGuider", model=["STAMFFAMPatch", 0], positive=["text", 0], negative=["text", 0], cfg=3.0
    ),
    "still": node("DisableNoise"),
}  # fmt: skip
SOCKETS: dict[str, list[Any]] = {
    "MODEL": ["STAMFFAMPatch", 0],
    "CLIP": ["demo", 1],
    "VAE": ["demo", 2],
    "CONDITIONING": ["text", 0],
    "LATENT": ["latent", 0],
    "IMAGE": ["noisy", 0],
    "MASK": ["mask", 0],
    "COMFY_MATCHTYPE_V3": ["noisy", 0],
    "INVERSION": ["INRBidirectionalDDIMInversion", 0],
    "CONSISTENT_VIDEO_TUNE": ["OneShotTune", 1],
    "CONSISTENT_VIDEO_PROMPT_TOKENS": ["TunePromptTokens", 0],
    "CONSISTENT_VIDEO_MOTION": ["ClipMotion", 0],
    "CONSISTENT_VIDEO_NOISE_RELATION": ["InterframeNoiseRelation", 0],
    "CONSISTENT_VIDEO_TUNING_OPTIONS": ["TuningOptions", 0],
    "CONSISTENT_VIDEO_TUNING_PREVIEW": ["TuningPreview", 0],
}
OPTIONAL = ("motion", "relation", "mask", "options", "preview", "images")  # that are connected all the same
GIVEN: dict[str, Json] = {  # other inputs than `fill` gives
    "InflateUNet": {"model": ["demo", 0]},
    "STAMFFAMPatch": {"model": ["InflateUNet", 0]},
    "ApplyTune": {"model": ["InflateUNet", 0]},
    "ExportTuneAVideo": {"model": ["demo", 0], "tune": ["as Tune-A-Video", 1]},
    "ImportTuneAVideo": {"model": ["demo", 0]},
    "INRBidirectionalDDIMInversion": {"gamma": 0.5, "noise": "Gaussian"},
    "InversionStability": {"inversion": ["plain", 0]},
    "SmoothSample": {"eta": 1.0},
    "SmoothSampler": {"eta": 1.0},
    "TuningPreview": {"every": 1, "preview_steps": 1},
    "SteadyFrames": {"edited": ["edited", 0]},
    "EditScorecard": {"edited": ["edited", 0]},
    "CompareGrid": {"edit_1": ["edited", 0]},
}
LOADED = {"LoadTune": "SaveTune", "LoadPromptTokens": "SavePromptTokens", "LoadInversion": "SaveInversion",
          "ImportTuneAVideo": "ExportTuneAVideo"}  # fmt: skip
DRAWING = {"INRBidirectionalDDIMInversion": "inversion", "OneShotTune": "tune", "TunePromptTokens": "prompt_tokens",
           "SmoothSample": "latent", "SmoothSampler": "sampler"}  # fmt: skip
SHOWN = " shown"  # ends the name of an output's digest
FEEDS = ("LoadDemoModel",)  # which all others are made from
MEASURED = r"(?i)\b[\d.]+ ?(s|ms|gib|mib|min)\b|\"[^\"]*(seconds|gib)[^\"]*\": ?[\d.]+"  # by a clock, or of memory


def serve_probed(base: Path, *arguments: str) -> Host:
    """Return a server with a folder of its own and the nodes of `fault_probe`."""
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    shutil.copy(str(fault_probe.__file__), base / "custom_nodes" / "fault_probe.py")
    return Host(comfyui_tree(), base, (*device_arguments(), *arguments))


def kinds_of(infos: Json) -> list[str]:
    """Return the pack's kinds of nodes of a server."""
    return [kind.removeprefix(PACK) for kind in infos if kind.startswith(PACK)]


def make_node(kind: str, infos: Json, seed: int, **given: Any) -> Json:
    """Return a node of the pack, connected to what a twin prompt holds."""
    kinds = {name: str(socket) for name, socket, _ in inputs_of(infos[PACK + kind])}
    inputs = fill(infos[PACK + kind], SOCKETS)
    inputs |= {name: SOCKETS[kinds[name]] for name in OPTIONAL if name in kinds}
    inputs |= {"seed": seed} if "seed" in kinds else {}
    inputs |= {"filename_prefix": kind} if "filename_prefix" in kinds else {}
    for name, _, options in inputs_of(infos[PACK + kind]):
        if kind in LOADED and "options" in options:
            inputs[name] = next(each for each in options["options"] if each.startswith(LOADED[kind]))
    return node(PACK + kind, **inputs | GIVEN.get(kind, {}) | given)


def twin_prompt(infos: Json, seed: int, kinds: Iterable[str]) -> Json:
    """Return a graph of nodes of the pack, named by their kinds, in which each of their outputs ends in a digest.

    What has no bits to compare is compared by what is sampled with it, videos by their frames.

    Args:
        infos: the server's nodes.
        seed: of all that draw.
        kinds: of nodes; those that feed them are there too, without digests.
    """
    needed = [kind for kind in kinds_of(infos) if kind not in LOADED and not infos[PACK + kind]["output_node"]]
    graph = copy.deepcopy(PROVIDERS | AROUND) | {kind: make_node(kind, infos, seed) for kind in {*needed, *kinds}}
    graph["plain"] = make_node("INRBidirectionalDDIMInversion", infos, seed, gamma=0.0, noise="implied")
    graph["Tune-A-Video"] = make_node("STAMFFAMPatch", infos, seed, preset="Tune-A-Video")
    graph["as Tune-A-Video"] = make_node("OneShotTune", infos, seed, model=["Tune-A-Video", 0])
    for kind in kinds:
        for number, socket in enumerate(infos[PACK + kind]["output"]):
            name, source = f"{kind}.{infos[PACK + kind]['output_name'][number]}", [kind, number]
            sampled: Json | None = None
            if socket == "MODEL":
                sampled = make_node("SmoothSample", infos, seed, model=source)
            elif socket == "CONTROL_NET":
                given = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "image": ["noisy", 0]}
                prompts = {"positive": ["text", 0], "negative": ["text", 0]}
                graph[f"{name} on"] = node("ControlNetApplyAdvanced", control_net=source, **prompts, **given)
                sampled = make_node("SmoothSample", infos, seed, positive=[f"{name} on", 0])
            elif socket == "SAMPLER":
                given = {"noise": ["still", 0], "guider": ["guided", 0], "latent_image": SOCKETS["INVERSION"]}
                sampled = node("SamplerCustomAdvanced", sampler=source, sigmas=[kind, 1], **given)
            elif socket == "VIDEO":
                sampled = node("GetVideoComponents", video=source)
            if kind not in FEEDS:
                graph |= {f"{name} sampled": sampled} if sampled else {}
                shown = [f"{name} sampled", 0] if sampled else source
                graph[name + SHOWN] = node("FaultsDigest", value=shown)
    return graph


def read_outputs(host: Host, seed: int, kinds: Iterable[str] = ()) -> dict[str, str]:
    """Run nodes of the pack in a server and return what tells each of their outputs, and each file, from others.

    Args:
        host: with the nodes of `fault_probe`.
        seed: of all that draw.
        kinds: of nodes; none for all of them, those last that load what others saved.

    Raises:
        GraphError: a node failed.
    """
    makers = [kind for kind in kinds_of(host.object_info()) if kind not in LOADED]
    found = {}
    for group in [kinds] if kinds else [makers, LOADED]:
        run = host.run(twin_prompt(host.object_info(), seed, group))  # the nodes list the files there are now
        for name in run.outputs:
            if name.endswith(SHOWN):
                text = run.text(name).replace(str(host.base), "")
                found[name.removesuffix(SHOWN)] = re.sub(MEASURED, "#", text)
    for path in sorted((host.base / "models").rglob("*.safetensors")):
        found[path.relative_to(host.base).as_posix()] = hash_tensors(load_file(path).values())
    return found


def try_twins(seed: int) -> Iterator[Row]:
    """Run every node in two fresh servers with one seed, and those that draw with another as well."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in "ab":
            with serve_probed(Path(folder) / name) as host:
                kinds = kinds_of(host.object_info())
                found.append(read_outputs(host, seed))
                if name == "b":
                    other = read_outputs(host, seed + 1, DRAWING)
    names = found[0].keys() | found[1].keys()
    apart = sorted(name for name in names if found[0].get(name) != found[1].get(name))
    without = sorted(kind for kind in kinds if kind not in FEEDS and not any(n.startswith(f"{kind}.") for n in names))
    failed = [f"{name} differs" for name in apart] + [f"{kind} was not run" for kind in without]
    files = sum("/" in name for name in names)
    fault = f"{len(kinds)} nodes, by {len(names) - files} outputs and {files} files, in two fresh servers with one seed"
    yield Row(fault, len(names), "the same to the bit, but for measured times and memory", tuple(failed))
    drawn = [f"{kind}.{output}" for kind, output in DRAWING.items()]
    same = [f"{name} is the same" for name in drawn if other[name] == found[1][name]]
    yield Row("those that draw, with another seed", len(drawn), "something else", tuple(same))
