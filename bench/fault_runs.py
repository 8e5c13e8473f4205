"""Runs that are interrupted anywhere, run out of memory, or are given extreme numbers, in this process's ComfyUI."""

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.model_management
import folder_paths
import psutil
import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.methods import EI2, TUNE_A_VIDEO_PRESET, method
from ..modules.files.host import IMPORTS, list_files, register_folder
from ..modules.files.whole import PART
from ..modules.inversion.host.invert import invert_clip
from ..modules.inversion.inversion import InversionSettings
from ..modules.sampling.host import SampleSettings, sample_clip
from ..modules.tuning.host.progress import TuningProgress
from ..modules.tuning.host.training import tune_model
from ..modules.tuning.host.tune_a_video import export_tune_a_video, import_tune_a_video
from ..modules.tuning.host.tune_inputs import TuneInputs
from ..modules.tuning.settings import TuneSettings
from ..modules.tuning.weights import Tune, hash_tensors
from ..nodes.shelves import TUNES
from .fault_row import Row
from .world import World

FRAMES, SIDE = 3, 64  # of the clip, in pixels
SMALL = TuneSettings().changed(steps=2, learning_rate=1e-4, seed=3)
PREFIX = "faults/swan"
KEPT = 0.01  # part by which memory may have grown


class Runs:
    """What is run, on the demo model and a small clip; each returns tensors that are the same each time."""

    def __init__(self) -> None:
        register_folder()
        world = World()
        generator = torch.Generator().manual_seed(0)
        frames = torch.rand(1, 3, SIDE, SIDE, generator=generator).expand(FRAMES, -1, -1, -1)
        frames = (frames + 0.1 * torch.rand(FRAMES, 3, SIDE, SIDE, generator=generator)).clamp(0, 1)
        with torch.inference_mode():
            self.prompt, self.latent = world.prompt("a red circle"), world.encode(frames)
        self.base = world.model
        self.model = attach(inflate(self.base), *method(EI2, 4, "area"))
        self.ancestor = attach(inflate(self.base), *method(TUNE_A_VIDEO_PRESET, 4, "area"))
        with torch.inference_mode():
            self.learned = self.tuned(self.ancestor)
            self.inverted = self.inversion()
            export_tune_a_video(self.base, self.learned, "faults/import")
        (self.file,) = {name for name in list_files(IMPORTS) if name.startswith("faults/import_00001_")}

    def tuned(self, model: Any = None, settings: TuneSettings = SMALL) -> Tune:
        """Tune a model, the one with EI²'s parts unless another is given."""
        inputs = TuneInputs(self.prompt, self.latent)
        return tune_model(self.model if model is None else model, inputs, settings, TuningProgress(""))

    def inversion(self, **settings: Any) -> dict[str, Any]:
        """Invert the clip in two steps."""
        return invert_clip(self.model, self.prompt, self.prompt, self.latent, InversionSettings(2, **settings))

    def sampled(self, **settings: Any) -> Tensor:
        """Sample the inverted clip."""
        given = SampleSettings(**{"cfg": 3.0, **settings})
        return sample_clip(self.model, self.prompt, self.prompt, self.inverted, given)[0]["samples"]

    def tune(self, **changes: Any) -> list[Tensor]:
        return list(self.tuned(settings=SMALL.changed(**changes)).tensors.values())

    def invert(self) -> list[Tensor]:
        return [self.inversion()["samples"]]

    def sample(self) -> list[Tensor]:
        return [self.sampled()]

    def save(self) -> list[Tensor]:
        path = TUNES.write(self.learned, PREFIX, with_state=True)
        try:
            read = TUNES.load(path)
        finally:
            path.unlink()
        return [*read.tensors.values(), *read.state.values()]

    def import_(self) -> list[Tensor]:
        return list(import_tune_a_video(self.base, self.file)[0].tensors.values())

    def export(self) -> list[Tensor]:
        export_tune_a_video(self.base, self.learned, "faults/export")
        return []

    def digest(self, name: str) -> str:
        """Run one of them and return what tells its result from others."""
        with torch.inference_mode():
            return hash_tensors(getattr(self, name)())


NAMES = ("tune", "invert", "sample", "save", "import_", "export")
CHECKED = NAMES[:3]  # by ComfyUI, at each layer and step; the others are interrupted at their operations on tensors


class Clock(TorchFunctionMode):
    """Counts operations on tensors, and raises an error before one of them, by default ComfyUI's interrupt."""

    def __init__(self, at: int = 0, error: BaseException | None = None):
        self.at, self.count, self.error = at, 0, error or InterruptProcessingException()

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise self.error

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.tick()
        return function(*args, **(kwargs or {}))


@contextmanager
def interrupted(name: str, at: int) -> Iterator[Clock]:
    """Interrupt a run at a place, counted from 1; 0 = count the places only."""
    clock = Clock(at)
    if name not in CHECKED:
        with clock:
            yield clock
        return
    target = "throw_exception_if_processing_interrupted"
    with mock.patch.object(comfy.model_management, target, clock.tick):
        yield clock


def leftovers(runs: Runs) -> list[str]:
    """Return what a run that has ended should not have left."""
    found = ["in_training"] if comfy.model_management.in_training else []
    unet = runs.base.model.diffusion_model
    found += ["gradients"] if any(weight.requires_grad for weight in unet.parameters()) else []
    found += ["hooks"] if any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules()) else []
    found += ["deterministic algorithms"] if torch.are_deterministic_algorithms_enabled() else []
    roots = map(Path, folder_paths.get_folder_paths(TUNES.folder))
    found += [f"half a file, {left.name}" for root in roots for left in root.rglob(f"*{PART}")]
    return found


def memory() -> tuple[int, int]:
    """Return the number of tensors and the bytes of this process."""
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects()), psutil.Process().memory_info().rss


def try_interrupts(count: int, seed: int) -> Iterator[Row]:
    """Interrupt runs at random places; what runs next is to be what runs in a fresh ComfyUI."""
    runs, rng = Runs(), random.Random(seed)
    fresh = {name: runs.digest(name) for name in NAMES}
    places = {}
    for name in NAMES:
        with interrupted(name, 0) as clock:
            runs.digest(name)
        places[name] = clock.count
    failed: dict[str, list[str]] = {name: [] for name in NAMES}
    sizes: list[tuple[int, int]] = []
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        at = rng.randrange(1, places[name] + 1)
        failed[name] += [f"at place {at}: {what}" for what in interrupt(runs, name, at)]
        again = rng.choice(CHECKED)
        if runs.digest(again) != fresh[again]:
            failed[name].append(f"at place {at}: {again} gave something else")
        if (number + 1) % 10 == 0:
            sizes.append(memory())
    for name in NAMES:
        tried = len(range(NAMES.index(name), count, len(NAMES)))
        yield Row(f"Interrupt of {name.strip('_')}, at any of {places[name]} places", tried,
                  "Processing interrupted; what runs next is the same to the bit", tuple(failed[name]))  # fmt: skip
    yield grown(sizes, count)


def interrupt(runs: Runs, name: str, at: int) -> list[str]:
    """Interrupt a run and return what went wrong."""
    try:
        with interrupted(name, at):
            runs.digest(name)
    except InterruptProcessingException:
        return leftovers(runs)
    return ["it was not interrupted", *leftovers(runs)]


def grown(sizes: list[tuple[int, int]], count: int) -> Row:
    """Return whether memory grew after the first ten interrupts."""
    if len(sizes) < 2:
        return Row("Memory after interrupts", count, "too few to tell")
    parts = [last / first - 1 for first, last in zip(sizes[0], sizes[-1], strict=True)]
    seen = f"{parts[0]:+.2%} tensors and {parts[1]:+.2%} resident memory, at the last count against the first"
    return Row("Memory after interrupts", count, seen, tuple(seen for part in parts if part > KEPT)[:1])


def try_full_memory(count: int, seed: int) -> Iterator[Row]:
    """Let a tuning run out of memory at random operations; it stops with advice, or goes on with less."""
    runs, rng = Runs(), random.Random(seed)
    clock = Clock()
    with clock:
        runs.digest("tune")
    fresh = runs.digest("tune")
    for choice in ("stop", "step down"):
        failed, said = [], ""
        for _ in range(count):
            at = rng.randrange(1, clock.count + 1)
            with Clock(at, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")):
                try:
                    with torch.inference_mode():
                        tune = runs.tuned(settings=SMALL.changed(on_out_of_memory=choice))
                    if not all(value.isfinite().all() for value in tune.tensors.values()):
                        failed.append(f"at operation {at}: not finite")
                except torch.cuda.OutOfMemoryError as error:
                    said = str(error)
            failed += [f"at operation {at}: {what} is left" for what in leftovers(runs)]
            if runs.digest("tune") != fresh:
                failed.append(f"after operation {at}: the next tuning gave something else")
        yield Row(f"No memory at any of {clock.count} operations of a tuning, on_out_of_memory {choice}", count,
                  said or "goes on with less", tuple(failed))  # fmt: skip


def outcome(run: Callable[[], Any]) -> tuple[str, bool]:
    """Return what a user sees of a run in this process, and whether it is a result or an error in words."""
    try:
        with torch.inference_mode():
            result = run()
    except (ValueError, FloatingPointError, torch.cuda.OutOfMemoryError, OSError) as error:
        return f"{type(error).__name__}: {error}", True
    except Exception as error:  # what should not reach a user
        return f"{type(error).__name__}: {error}", False
    tensors = result if isinstance(result, list) else [result]
    finite = all(bool(value.isfinite().all()) for value in tensors)
    return ("a finite result" if finite else "a result that is not finite"), finite


def try_numbers(seed: int) -> Iterator[Row]:
    """Give runs extreme numbers."""
    runs, clip = Runs(), {}
    with torch.inference_mode():
        clip = {"zeros": 0 * runs.latent["samples"], "NaN": runs.latent["samples"] * float("nan")}
        clip |= {"infinite": runs.latent["samples"] * float("inf"), "no frame": runs.latent["samples"][:0]}
    latent, prompt, model = runs.latent, runs.prompt, runs.model
    tries: dict[str, Callable[[], Any]] = {}

    def of_latent(samples: Tensor, run: Callable[[], Any]) -> Any:
        runs.latent = {"samples": samples}
        try:
            return run()
        finally:
            runs.latent = latent

    def of_prompt(run: Callable[[], Any]) -> Any:
        runs.prompt = [[states * float("nan"), values] for states, values in prompt]
        try:
            return run()
        finally:
            runs.prompt = prompt

    def of_weights(run: Callable[[], Any]) -> Any:
        runs.model = model.clone()
        spoilt = torch.full_like(model.model.diffusion_model.out[2].weight, float("nan"))
        runs.model.add_patches({"diffusion_model.out.2.weight": ("diff", (spoilt,))})
        try:
            return run()
        finally:
            runs.model = model

    for name, run in (("tuning", runs.tune), ("inversion", runs.invert)):
        tries |= {f"{what} latent, {name}": partial(of_latent, samples, run) for what, samples in clip.items()}
    for name, run in (("tuning", runs.tune), ("inversion", runs.invert), ("sampling", runs.sample)):
        tries |= {f"NaN prompt, {name}": partial(of_prompt, run), f"NaN weight, {name}": partial(of_weights, run)}
    for rate in (0.0, 1e6):
        tries[f"learning rate {rate:g}"] = partial(runs.tune, learning_rate=rate, steps=6)
    for cfg in (0.0, 1.0, 100.0):
        tries[f"cfg {cfg:g}"] = partial(runs.sampled, cfg=cfg)
    for value in (0, 2**64 - 1):
        tries[f"seed {value}, tuning"] = partial(runs.tune, seed=value)
        tries[f"seed {value}, fresh noise"] = partial(runs.sampled, eta=1.0, seed=value)
    for name, run in tries.items():
        seen, is_clear = outcome(run)
        yield Row(name, 1, seen, () if is_clear else (seen,))
    yield same_twice(runs, seed)


def same_twice(runs: Runs, seed: int) -> Row:
    """Return whether every run gives the same twice, and another seed something else."""
    failed = [name for name in NAMES if runs.digest(name) != runs.digest(name)]
    with torch.inference_mode():
        tunes = [runs.tuned(settings=SMALL.changed(seed=value)) for value in (seed, seed + 2**32)]
    failed += ["seeds equal modulo 2³²"] if len({hash_tensors(tune.tensors.values()) for tune in tunes}) < 2 else []
    fault = "every run twice with one seed, and seeds equal modulo 2³²"
    return Row(fault, len(NAMES) + 1, "the same, and not the same", tuple(failed))
