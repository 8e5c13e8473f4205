"""Servers and writers that are killed."""

import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..modules.files.host import AUTOSAVES
from ..modules.tuning.weights import Tune, hash_tensors, load_tune, save_tune
from ..scripts.environment import comfyui_tree
from ..scripts.host import Host, device_arguments
from ..scripts.server import GraphError, HostError
from .fault_graphs import PACK, PROVIDERS, fill, make_garden, node
from .fault_row import Row

Json = dict[str, Any]
STEPS, MINUTES = 40, 0.03  # of the tuning that is killed, and between its autosaves
ENDINGS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}


def serve(base: Path) -> Host:
    """Return a server with a folder of its own."""
    return Host(comfyui_tree(), base, device_arguments())


def tuning_prompt(host: Host, steps: int = STEPS) -> Json:
    """Return a graph that tunes, with autosaves, and saves the tune."""
    garden, sockets = make_garden(host.object_info())
    garden["tune"]["inputs"] |= {"steps": steps, "model": ["patched", 0], "options": ["options", 0]}
    garden["options"] = node(PACK + "TuningOptions", **fill(host.object_info()[PACK + "TuningOptions"], sockets))
    garden["options"]["inputs"]["autosave_minutes"] = MINUTES
    save = node(PACK + "SaveTune", tune=["tune", 1], filename_prefix="tune", with_state=True)
    report = node("PreviewAny", source=["tune", 3])
    return {name: garden[name] for name in (*PROVIDERS, "patched", "tune", "options")} | {"save": save, "show": report}


def tunes_of(host: Host) -> Path:
    """Return the folder of a server's tunes."""
    return host.base / "models" / "consistent_video"


def digest_of(path: Path) -> str:
    """Return what tells a tune and its state from others."""
    tune = load_tune(path)
    return hash_tensors([*tune.tensors.values(), *tune.state.values()])


def kill_tuning(base: Path, ending: int) -> None:
    """Let a server tune until there is an autosave and end it by a signal."""
    with serve(base) as host:
        prompt = tuning_prompt(host)
        runner = threading.Thread(target=run_to, args=(host, prompt))
        runner.start()
        deadline = time.monotonic() + 300
        while not [*(tunes_of(host) / AUTOSAVES).glob("*.safetensors")] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert host.process is not None, "it runs"
        os.killpg(host.process.pid, ending)
        host.process.wait(60)
        runner.join()


def run_to(host: Host, prompt: Json) -> None:
    """Run a prompt, to its end or to that of the server."""
    with contextlib.suppress(GraphError, HostError):
        host.run(prompt)


def try_kills(count: int, seed: int) -> Iterator[Row]:
    """Kill servers during a tuning, which then goes on to the bit; and kill writers of a file."""
    with tempfile.TemporaryDirectory() as folder:
        with serve(Path(folder) / "whole") as host:
            host.run(tuning_prompt(host))
            whole = digest_of(tunes_of(host) / "tune_00001_.safetensors")
        for name, ending in ENDINGS.items():
            base, failed = Path(folder) / name.replace(" ", "_"), []
            kill_tuning(base, ending)
            with serve(base) as host:
                run = host.run(tuning_prompt(host))
                report, log = run.text("show"), host.log_text()
                left = [path.name for path in (tunes_of(host) / AUTOSAVES).iterdir()]
                if digest_of(tunes_of(host) / "tune_00001_.safetensors") != whole:
                    failed.append("the tune is another than that of an uninterrupted tuning")
            if "resumed_from_autosave_after" not in report:
                failed.append("it began at its first step")
            failed += [f"{each} is left" for each in left]
            told = [line[line.find("The ") :] for line in log.splitlines() if "from its autosave" in line]
            seen = told[0] if told else "nothing"
            yield Row(f"{name} of a server during a tuning, then the same graph", 1, seen, tuple(failed))
        yield kill_writers(Path(folder), count, seed)


def kill_writers(folder: Path, count: int, seed: int) -> Row:
    """Kill processes while they write over a tune; the file is the old or the new one."""
    rng, path, failed = random.Random(seed), folder / "tune.safetensors", []
    tunes = [Tune({"a": torch.full((2**20,), float(value))}, INFO) for value in (0, 1)]
    save_tune(tunes[0], path)
    for number in range(count):
        child = os.fork()
        if child == 0:
            while True:
                for tune in tunes:
                    save_tune(tune, path)
        time.sleep(rng.uniform(0.005, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            found = load_tune(path).tensors["a"]
        except (ValueError, OSError) as error:
            failed.append(f"kill {number + 1}: {error}")
        else:
            failed += [] if len(found.unique()) == 1 else [f"kill {number + 1}: half of each"]
    return Row("kill -9 of a process that writes over a tune", count, "the old file or the new one", tuple(failed))


INFO: dict[str, Any] = {"spatial": None, "spatial_strength": 1.0, "temporal": None, "temporal_strength": 1.0}
