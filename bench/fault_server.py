"""Servers that are killed, odd media, and full or read-only disks."""

import contextlib
import errno
import os
import random
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from ..modules.files.host import AUTOSAVES
from ..modules.tuning.weights import Tune, hash_tensors, load_tune, save_tune
from ..scripts.environment import comfyui_tree
from ..scripts.host import Host, device_arguments
from ..scripts.server import GraphError, HostError
from .fault_graphs import PACK, PROVIDERS, fill, make_garden, node, see
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


def write_video(path: Path, frames: int, height: int, width: int, codec: str, form: str, **options: Any) -> None:
    """Write a video of moving stripes; `rates` gives frames of uneven length."""
    uneven = options.pop("uneven", False)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=Fraction(8))
        stream.height, stream.width, stream.pix_fmt = height, width, form
        for key, value in options.items():
            setattr(stream.codec_context, key, value)
        y, x = np.mgrid[:height, :width]
        for number in range(frames):
            picture = np.stack([(x * 8 + number * 16) % 256, (y * 8) % 256, 0 * x], axis=-1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=form)
            frame.pts = number * number if uneven else number
            frame.time_base = Fraction(1, 8)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


MEDIA: dict[str, tuple[str, tuple[Any, ...], Json]] = {  # name: file, arguments of `write_video`
    "1 frame": ("one.mp4", (1, 64, 64, "libx264", "yuv420p"), {}),
    "2 frames": ("two.mp4", (2, 64, 64, "libx264", "yuv420p"), {}),
    "odd sizes": ("odd.mp4", (3, 61, 75, "libx264", "yuv444p"), {}),
    "portrait": ("portrait.mp4", (3, 128, 48, "libx264", "yuv420p"), {}),
    "1 x 1": ("point.webm", (2, 1, 1, "libvpx-vp9", "yuv444p"), {}),
    "grey": ("grey.mp4", (3, 64, 64, "libx264", "gray"), {}),
    "alpha": ("alpha.webm", (3, 64, 64, "libvpx-vp9", "yuva420p"), {}),
    "webm": ("vp9.webm", (3, 64, 64, "libvpx-vp9", "yuv420p"), {}),
    "10 bits": ("ten.mp4", (3, 64, 64, "libx264", "yuv420p10le"), {}),
    "HDR": ("hdr.mp4", (3, 64, 64, "libx264", "yuv420p10le"), {"color_trc": 16, "color_primaries": 9, "colorspace": 9}),
    "variable frame rate": ("uneven.mp4", (4, 64, 64, "libx264", "yuv420p"), {"uneven": True}),
    "10,000 frames": ("long.mp4", (10000, 16, 16, "libx264", "yuv420p"), {}),
}


def media_prompt(name: str, host: Host) -> Json:
    """Return a graph that inverts and edits a video of the server's input folder."""
    garden, sockets = make_garden(host.object_info())
    garden["file"] = node("LoadVideo", file=name)
    garden["frames"] = node("GetVideoComponents", video=["file", 0])
    garden["latent"]["inputs"]["pixels"] = ["frames", 0]
    sample = node(PACK + "SmoothSample", **fill(host.object_info()[PACK + "SmoothSample"], sockets))
    sample["inputs"] |= {"model": ["patched", 0]}
    garden["inversion"]["inputs"]["model"] = ["patched", 0]
    decoded = node("VAEDecode", samples=["sample", 0], vae=["demo", 2])
    video = node("CreateVideo", images=["decoded", 0], fps=8.0)
    save = node("SaveVideo", video=["video", 0], filename_prefix="odd", format="auto", codec="auto")
    return {**garden, "sample": sample, "decoded": decoded, "video": video, "save": save}


def try_media(_seed: int) -> Iterator[Row]:
    """Edit odd videos by ComfyUI's own loader: a video of as many frames, or an error in words."""
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as host:
        files = host.base / "input"
        for name, (file, given, options) in MEDIA.items():
            try:
                write_video(files / file, *given, **options)
            except (OSError, ValueError) as error:
                yield Row(name, 0, f"this machine cannot write it: {error}")
                continue
            seen, is_right = see(host, media_prompt(file, host), 300)
            yield Row(name, 1, seen, () if is_right else (seen,))
        whole = (files / "two.mp4").read_bytes()
        for part in (0.0, 0.3, 0.6, 0.95):
            (files / "cut.mp4").write_bytes(whole[: int(part * len(whole))])
            seen, is_right = see(host, media_prompt("cut.mp4", host), 300)
            yield Row(f"mp4 cut at {part:.0%}", 1, seen, () if is_right else (seen,))
        seen, is_right = see(host, media_prompt("vp9.webm", host), 300)
        yield Row("after all of them, webm again", 1, seen, () if is_right and seen == "a result" else (seen,))


def in_child(work: Callable[[], Any]) -> str:
    """Return what a user sees of some work in a process of its own, which may spoil its rights and limits."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = f"a result, {work()}"
        except BaseException as error:  # whatever it is, it is what the user sees
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def try_pressure(count: int, seed: int) -> Iterator[Row]:
    """Write to full and read-only disks, and let two clients work at once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tune.safetensors"
        tune = Tune({"a": torch.zeros(2**20)}, INFO)
        save_tune(tune, path)
        before = path.read_bytes()

        def full() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a disk that is full
            save_tune(tune, path)

        def read_only() -> None:
            os.chmod(folder, 0o555)
            if os.geteuid() == 0:
                os.setuid(65534)  # whom the rights bind
            save_tune(tune, path)

        for name, work in {"no room on the disk": full, "a read-only folder": read_only}.items():
            seen = in_child(work)
            failed = [] if seen.startswith("OSError: tune.safetensors could not be written") else [seen]
            failed += [] if path.read_bytes() == before else ["the old file is gone"]
            failed += [f"{each.name} is left" for each in Path(folder).iterdir() if each != path]
            yield Row(name, 1, seen, tuple(failed))
        os.chmod(folder, 0o755)
    yield try_clients(count, seed)


def try_clients(count: int, seed: int) -> Row:
    """Let two clients send graphs to one server at once; each gets its own results."""
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as host:
        garden, sockets = make_garden(host.object_info())
        info = host.object_info()[PACK + "SmoothSample"]

        def work(client: int) -> None:
            for number in range(count):
                sample = node(PACK + "SmoothSample", **fill(info, sockets))
                sample["inputs"] |= {"eta": 1.0, "seed": seed + 2 * number + client}
                show = node("PreviewAny", source=["sample", 1])
                said, _ = see(host, {**garden, "sample": sample, "show": show}, 600)
                failed.extend([f"graph {number + 1} of client {client + 1}: {said}"] if said != "a result" else [])

        clients = [threading.Thread(target=work, args=(client,)) for client in range(2)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        failed += [] if host.answers() else [f"the server does not answer: {errno.ECONNREFUSED}"]
    return Row("graphs of two clients at once", 2 * count, "a result of each", tuple(failed))
