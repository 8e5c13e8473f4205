"""Hostile graphs, made from every node's schema and sent to a ComfyUI server."""

import copy
import json
import random
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..scripts.environment import comfyui_tree
from ..scripts.graph import inputs_of
from ..scripts.host import Host, device_arguments
from ..scripts.project import PACK as FOLDER
from ..scripts.workflow import default_value, is_widget
from .fault_row import Row

PACK = "ConsistentVideo_"
LONG = "x" * 1_000_000
NODE, OTHER, SHOW = "node", "other", "show"
IN_WORDS = ("ValueError", "FloatingPointError", "OutOfMemoryError", "OSError")  # of the pack's own

Json = dict[str, Any]
Fault = tuple[str, str, str, Json]  # kind, node type, input, prompt


def node(kind: str, **inputs: Any) -> Json:
    """Return a node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


PROVIDERS: dict[str, Json] = {  # of what sockets take
    "demo": node(PACK + "LoadDemoModel"),
    "inflated": node(PACK + "InflateUNet", model=["demo", 0], num_frames=0),
    "picture": node("EmptyImage", width=64, height=64, batch_size=2, color=8388608),
    "latent": node("VAEEncode", pixels=["picture", 0], vae=["demo", 2]),
    "text": node("CLIPTextEncode", text="a red circle", clip=["demo", 1]),
    "mask": node("SolidMask", value=1.0, width=64, height=64),
}
EXTREMES: dict[str, Json] = {  # that reach an input by a link, which ComfyUI does not check
    "whole": node("PrimitiveInt", value=10**9),
    "number": node("PrimitiveFloat", value=float("nan")),
    "letters": node("PrimitiveString", value=LONG),
}
SMALL = {"steps": 2, "inner_steps": 1, "advise_learning_rate": False, "snapshots": "", "gamma": 0.0, "iterations": 1}
SMALL |= {"denoise": 1.0, "source_text": "a red circle", "edit_text": "a blue circle", "labels": "a", "inner": 1}
SAVED = {"SaveTune": "tune", "SavePromptTokens": "tokens", "SaveInversion": "inversion"}


def fill(info: Json, sockets: dict[str, list]) -> Json:
    """Return good inputs of a node type: defaults, and links for sockets that have to be connected."""
    inputs = {}
    for name, kind, options in inputs_of(info):
        is_needed = name in info["input"].get("required", {})
        if is_widget(kind, options):
            inputs[name] = SMALL.get(name, default_value(kind, options))
        elif is_needed:
            inputs[name] = sockets["INVERSION" if name == "inversion" else str(kind)]
    return inputs


def make_garden(infos: Json) -> tuple[Json, dict[str, list]]:
    """Return nodes that provide what every socket takes, and the link for each type."""
    garden = copy.deepcopy(PROVIDERS)
    sockets = {"MODEL": ["inflated", 0], "CLIP": ["demo", 1], "VAE": ["demo", 2], "CONDITIONING": ["text", 0]}
    sockets |= {"LATENT": ["latent", 0], "IMAGE": ["picture", 0], "MASK": ["mask", 0]}
    made = {"patched": "STAMFFAMPatch", "inversion": "INRBidirectionalDDIMInversion", "tune": "OneShotTune"}
    made |= {"tokens": "TunePromptTokens"}
    links = {"patched": ("MODEL", 0), "inversion": ("INVERSION", 0), "tune": ("CONSISTENT_VIDEO_TUNE", 1)}
    links |= {"tokens": ("CONSISTENT_VIDEO_PROMPT_TOKENS", 0)}
    for name, kind in made.items():
        garden[name] = node(PACK + kind, **fill(infos[PACK + kind], sockets))
        socket, output = links[name]
        sockets[socket] = [name, output]
    return garden, sockets


VALUES: dict[str, tuple[Any, ...]] = {  # by kind of fault
    "wrong type": (5, -1, "x", True, None, {}, {"samples": 5}, {"__value__": []}, {"__value__": [[1, {}]]}, 0.5),
    "NaN and infinity": (float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 10**30),
    "1 MB of text": (LONG, LONG.replace("x", "1,"), LONG.replace("x", "(")),
    "odd text": ("\0", "\ud800", "a\nb", "../../x", "%date:yyyy%", "☃" * 300, "nan", "inf, 1"),
    "bad link": (["nothing", 0], ["demo", 99], ["demo", -1], ["demo", "0"], ["demo", 0, 0], [[], 0], [None, None]),
    "link to another type": (["text", 0], ["mask", 0], ["demo", 1], ["picture", 0]),
    "number out of range by a link": (["whole", 0], ["number", 0], ["letters", 0]),
    "circle": ([NODE, 0], [OTHER, 0]),
}


def list_faults(infos: Json) -> Iterator[Fault]:
    """Yield prompts with one fault each: every input of every node of the pack, with each value it should not have."""
    garden, sockets = make_garden(infos)
    garden |= EXTREMES
    for kind, info in infos.items():
        if not kind.startswith(PACK):
            continue
        try:
            good = fill(info, sockets)
        except KeyError:  # a socket that nothing of the garden feeds: it stays open
            good = {}
        shown = {} if info["output_node"] else {SHOW: node("PreviewAny", source=[NODE, 0])}
        other = node("PreviewAny", source=[NODE, 0])

        def prompt(inputs: Json, kind: str = kind, shown: Json = shown, other: Json = other) -> Json:
            return {**garden, NODE: node(kind, **inputs), OTHER: other, **shown}

        for name, wanted, options in inputs_of(info):
            yield "missing", kind, name, prompt({key: value for key, value in good.items() if key != name})
            limits = [options[key] + sign for key, sign in (("min", -1), ("max", 1)) if key in options]
            values = [("out of range", value) for value in limits] if wanted in ("INT", "FLOAT") else []
            values += [(fault, value) for fault, given in VALUES.items() for value in given]
            for fault, value in values:
                yield fault, kind, name, prompt({**good, name: value})


def post(host: Host, path: str, content: Json) -> tuple[int, str]:
    """Return the status and text of the answer to a request, whatever it is."""
    body = json.dumps(content).encode()
    request = urllib.request.Request(f"http://{host.address}/{path}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def see(host: Host, prompt: Json, patience: float = 120) -> tuple[str, bool]:
    """Send a prompt and return what the user sees, and whether it is a refusal, an error in words or a result."""
    key = str(uuid.uuid4())
    status, answer = post(host, "prompt", {"prompt": prompt, "prompt_id": key})
    if status != 200:
        said = json.loads(answer) if answer.startswith("{") else {}
        error = said.get("error", {})
        nodes = [found["message"] for each in said.get("node_errors", {}).values() for found in each["errors"]]
        text = "; ".join(dict.fromkeys([error.get("message", answer) if isinstance(error, dict) else error, *nodes]))
        return f"{status}: {text}", 400 <= status < 600
    deadline = time.monotonic() + patience
    while not (entry := host.get(f"history/{key}").get(key)):
        if time.monotonic() > deadline:
            host.interrupt()
            return f"nothing for {patience:.0f} s", False
        time.sleep(0.01)
    events = dict(entry["status"]["messages"])
    if "execution_error" not in events:
        return "a result", True
    data = events["execution_error"]
    what = f"{data['exception_type']}: {data['exception_message'].strip()}"
    is_ours = data["node_type"].startswith(PACK)
    in_words = data["exception_type"].endswith(IN_WORDS) and FOLDER in "".join(data["traceback"][-1:])
    return f"{data['node_type'].removeprefix(PACK)}: {what}", in_words or not is_ours


def files_of(base: Path) -> set[str]:
    """Return the files below a server's folder that are outside the pack's own and outside what ComfyUI writes."""
    own = ("models/consistent_video", "output", "temp", "user", "server.log", "custom_nodes", "input")
    found = (path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())
    return {name for name in found if not name.startswith(own)}


def try_graphs(count: int, seed: int, host: Host | None = None) -> Iterator[Row]:
    """Send hostile graphs to a server: a refusal or an error in words, and the server lives on."""
    if host is None:
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "base"
            with Host(comfyui_tree(), base, (*device_arguments(), "--cache-lru", "100")) as own:
                yield from try_graphs(count, seed, own)
        return
    infos = host.object_info()
    garden, sockets = make_garden(infos)
    saves = {name: node(PACK + name, **fill(infos[PACK + name], sockets)) for name in SAVED}
    good, is_good = see(host, {**garden, **saves}, 600)
    before, faults = files_of(host.base), list(list_faults(host.object_info()))
    random.Random(seed).shuffle(faults)
    tried: dict[str, int] = defaultdict(int)
    seen: dict[str, str] = {}
    failed: dict[str, list[str]] = defaultdict(list)
    for fault, kind, name, prompt in faults[:count]:
        said, is_right = see(host, prompt)
        tried[fault] += 1
        if said != "a result" and len(said) > len(seen.get(fault, "")):
            seen[fault] = f"{kind.removeprefix(PACK)}.{name}: {said}"[:200]
        if not is_right:
            value = repr(prompt[NODE]["inputs"].get(name))[:60]
            failed[fault].append(f"{kind.removeprefix(PACK)}.{name} = {value}: {said[:200]}")
    yield Row("the graph without a fault", 1, good, () if good == "a result" and is_good else (good,))
    for fault, number in sorted(tried.items()):
        yield Row(fault, number, seen.get(fault, "a result"), tuple(failed[fault]))
    outside = sorted(files_of(host.base) - before)
    alive = host.answers() and see(host, {**garden, **saves})[0] == "a result"
    seen_after = "the server runs the graph without a fault; nothing was written outside the pack's folders"
    yield Row("after all of them", sum(tried.values()), seen_after, (*outside, *([] if alive else ["it does not run"])))
