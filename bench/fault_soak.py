"""A server that runs mixed graphs for a long time: each gives what it gave at first, and memory does not grow."""

import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ..scripts.host import Host
from .fault_graphs import node
from .fault_row import Row
from .fault_twins import SHOWN, serve_probed, twin_prompt

Json = dict[str, Any]
MIXED = {  # nodes of which a graph shows the outputs
    "tune and save": ("OneShotTune", "SaveTune"),
    "learn tokens": ("TunePromptTokens", "ApplyPromptTokens"),
    "invert and edit": ("INRBidirectionalDDIMInversion", "SmoothSample"),
    "edit by ComfyUI's sampler": ("SmoothSampler",),
    "edit with Attention Control": ("AttentionControl",),
    "edit with a tune": ("ApplyTune",),
    "optimise the empty prompt": ("NullTextOptimization",),
    "steady and judge": ("SteadyFrames", "EditScorecard", "CompareGrid"),
}
EXACT = ("tune", "prompt_tokens", "latent", "sampler", "clip_model", "optimized_negative", "steadied", "clip")
SEEDS = 2  # of each graph
SAMPLES = 60  # of memory, over the whole time
SETTLED = 0.25  # part of the time after which memory is no longer to grow
GROWN = {"resident MiB": 0.05, "tensors": 0.01}  # part by which the fitted line may rise from there to the end


def count_memory(host: Host) -> tuple[float, int]:
    """Return a server's resident MiB and its tensors; it forgets its history, which it keeps for 10,000 graphs."""
    assert host.process is not None, "it runs"
    host.ask("history", {"clear": True})
    tensors = int(host.run({"count": node("FaultsCountTensors")}).text("count"))
    return psutil.Process(host.process.pid).memory_info().rss / 2**20, tensors


def try_soak(minutes: float, seed: int) -> Iterator[Row]:
    """Run mixed graphs in one server for some time."""
    rng, count, failed = random.Random(seed), 0, list[str]()
    first: dict[tuple[str, int], Json] = {}
    curve: list[tuple[float, float, int]] = []
    with tempfile.TemporaryDirectory() as folder, serve_probed(Path(folder), "--cache-classic") as host:
        infos, start = host.object_info(), time.monotonic()
        while (passed := (time.monotonic() - start) / 60) < minutes or not curve:
            name, number = rng.choice(list(MIXED)), rng.randrange(SEEDS)
            run = host.run(twin_prompt(infos, seed + number, MIXED[name]))
            shown = {each: run.text(each) for each in run.outputs if each.endswith(tuple(e + SHOWN for e in EXACT))}
            if shown != first.setdefault((name, number), shown):
                failed.append(f"run {count + 1}, {name}, gave something else than at first")
            count += 1
            if passed >= len(curve) * minutes / SAMPLES:
                curve.append((round(passed, 4), *count_memory(host)))
    yield Row(f"mixed graphs in one server for {minutes:g} minutes", count, "what each gave at first, to the bit",
              tuple(failed))  # fmt: skip
    seen, grown = describe_growth(curve)
    fault = f"memory of that server after the first {SETTLED:.0%} of the time"
    yield Row(fault, len(curve), seen, grown, tuple(curve))


def describe_growth(curve: list[tuple[float, float, int]]) -> tuple[str, tuple[str, ...]]:
    """Return what a line fitted to the settled part of a curve says, and what of it is too much."""
    settled = [each for each in curve if each[0] >= SETTLED * curve[-1][0]]
    if len(settled) < 3:
        return "too few samples to tell", ()
    minutes, *values = map(np.array, zip(*settled, strict=True))
    said, failed = [], []
    for (name, most), series in zip(GROWN.items(), values, strict=True):
        slope = float(np.polyfit(minutes, series, 1)[0])
        part = slope * (minutes[-1] - minutes[0]) / series[0]
        said.append(f"{series[0]:.0f} to {series[-1]:.0f} {name}, {round(60 * slope, 1) + 0.0:+} an hour")
        failed += [f"{name} grew by {part:.1%}"] if part > most else []
    return "; ".join(said), tuple(failed)
