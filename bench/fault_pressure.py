"""Full and read-only disks, and many clients and servers at once."""

import contextlib
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from ..modules.tuning.weights import Tune, load_tune, save_tune
from ..scripts.environment import ROOT
from ..scripts.host import Host
from .clip_case import CAPTION, KINDS, VIDEO
from .fault_graphs import PACK, fill, make_garden, node, see
from .fault_row import Row
from .fault_server import INFO, serve, tuning_prompt

DISKS = {  # options of a disk in memory that holds a tune of 4 MiB already: what it has no room for
    "size=6m": "no room for a second tune on a disk in memory",
    "nr_inodes=2": "no room for a further folder on a disk in memory",
    "nr_inodes=3": "no room for a file in it",
    "nr_inodes=4": "no room for a second file in it",
}
CLIP_NAMES = ("red_circle", "orange_triangle", "striped_cross", "yellow_star")
CLIPS = ("--checkpoint", "demo", "--methods", "FFAM", "--frames", "2", "--size", "64", "--ddim-steps", "2")
SERVERS, DYING = 10, 0.3  # of `bench clips` where the memory allows it, and the part of them that is killed
MEMORY = 3 * 2**29  # bytes that are to be free for each


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
    """Fill disks, let clients work at once, and let servers of `bench clips` die."""
    with tempfile.TemporaryDirectory() as folder:
        yield from try_disks(Path(folder))
        yield try_full_server(Path(folder) / "server")
    yield try_clients(count, seed)
    room = psutil.virtual_memory().available // MEMORY
    yield try_dying_servers(max(2, min(count, SERVERS, room)), seed)


def limit_files() -> None:
    """Let no file of this process grow beyond 100 KB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def lock_folder(folder: Path, mode: int) -> None:
    """Give a folder a mode, which binds this process too if it is root's."""
    os.chmod(folder, mode)
    if os.geteuid() == 0:
        os.setuid(65534)  # whom the rights bind


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[str]:
    """Mount a file system in memory on a folder for as long as the context lasts.

    Args:
        folder: made if missing.
        options: its size or its number of files, as mount takes them.

    Yields:
        Why it could not be mounted, empty where it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        reason = done.returncode and (done.stderr.strip() or f"status {done.returncode}")
    except OSError as error:
        reason = str(error)
    try:
        yield reason or ""
    finally:
        if not reason:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def untried(name: str, reason: str) -> Row:
    """Return the row of what could not be tried here."""
    return Row(name, 0, f"not tried: mounting is not permitted here ({reason})")


def try_disks(folder: Path) -> Iterator[Row]:
    """Save over a tune on disks that are full or read-only: an error in words, and the old file as it was."""
    tune = Tune({"a": torch.zeros(2**20)}, INFO)
    folder.mkdir(parents=True, exist_ok=True)
    save_tune(tune, folder / "old")
    before = (folder / "old").read_bytes()

    def row(name: str, place: Path, spoil: Callable[[], None]) -> Row:
        path = place / "tune.safetensors"
        place.mkdir(exist_ok=True)
        path.write_bytes(before)

        def work() -> None:
            spoil()
            save_tune(tune, path)

        seen = in_child(work)
        place.chmod(0o755)
        failed = [] if seen.startswith("OSError: tune.safetensors could not be written") else [seen or "it crashed"]
        failed += [] if path.read_bytes() == before else ["the old file is gone"]
        failed += [f"{each.name} is left" for each in place.iterdir() if each != path]
        return Row(name, 1, seen, tuple(failed))

    yield row("no room on the disk, by a limit of the process", folder / "limited", limit_files)
    folder.chmod(0o755)  # a temporary one is its owner's alone
    for name, mode in {"a read-only folder": 0o555, "a folder that cannot be entered": 0o000}.items():
        place = folder / name.replace(" ", "_")
        yield row(name, place, partial(lock_folder, place, mode))
    for options, name in DISKS.items():
        with mounted(folder / options, options) as reason:
            yield untried(name, reason) if reason else row(name, folder / options, lambda: None)


def try_full_server(base: Path) -> Row:
    """Tune with autosaves in a server whose folder of tunes is full: the tuning ends; with room, it is saved."""
    name = "a tuning with autosaves, and Save Tune, on a full disk in memory; then with room"
    folder, failed = base / "models" / "consistent_video", list[str]()
    with mounted(folder, "size=256k") as reason:
        if reason:
            return untried(name, reason)
        with serve(base) as host:
            prompt = tuning_prompt(host, 20)
            seen, is_right = see(host, prompt, 600)
            failed += [] if is_right and "could not be written" in seen else [seen]
            failed += [] if "without a new autosave" in host.log_text() else ["the autosave that failed is not told"]
            failed += [f"{each.name} is left" for each in folder.rglob("*") if each.is_file()]
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
            again, _ = see(host, prompt, 600)
            failed += [] if again == "a result" else [f"with room: {again}"]
            load_tune(folder / "tune_00001_.safetensors")
    return Row(name, 1, seen, tuple(failed))


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


def try_dying_servers(number: int, seed: int) -> Row:
    """Edit clips in servers of which some are killed meanwhile; the others do all of it, and nothing twice."""
    dying = max(1, round(DYING * number))
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder, state = Path(place), Path(place) / "state" / "clips.jsonl"
        hosts = [serve(folder / f"server {index}") for index in range(number)]
        for host in hosts:
            stack.enter_context(host)
        prompts = write_table(folder)
        command = [sys.executable, "-m", "bench", "clips", "--folder", str(ROOT / "demo" / "clips"), *CLIPS]
        command += ["--prompts", str(prompts), "--state", str(state.parent), "--document", str(folder / "clips.md")]
        command += ["--output", str(folder / "videos"), "--servers", *(host.address for host in hosts)]
        killer = threading.Thread(target=kill_one_by_one, args=(hosts[:dying], state, random.Random(seed)))
        killer.start()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        killer.join()
        rows = [(row["video"], row["kind"]) for row in map(json.loads, state.read_text().splitlines())]
        videos = [path for path in (folder / "videos").iterdir() if path.stat().st_size]
    wanted = len(CLIP_NAMES) * len(KINDS)
    told = [line for line in done.stdout.splitlines() if "answers no more" in line]
    failed = [] if done.returncode == 0 else [f"status {done.returncode}: {done.stderr[-300:]}"]
    failed += [f"{row} is there twice" for row in set(rows) if rows.count(row) > 1]
    failed += [f"{len(found)} of {wanted} {what}" for what, found in {"edits": set(rows), "videos": videos}.items()
               if len(found) != wanted]  # fmt: skip
    failed += [f"the end of {host.address} is not told" for host in hosts[:dying]
               if not any(host.address in line for line in told)]  # fmt: skip
    fault = f"kill -9 of {dying} of {number} servers of bench clips, which edit"
    return Row(fault, wanted, told[0] if told else "nothing", tuple(failed))


def write_table(folder: Path) -> Path:
    """Write LOVEU-TGVE's table of edits of the demo's clips, and return its path."""
    edit = dict.fromkeys(KINDS.values(), "a blue circle on a white background")
    path = folder / "prompts.json"
    path.write_text(json.dumps([{VIDEO: name, CAPTION: "a clip", **edit} for name in CLIP_NAMES]))
    return path


def kill_one_by_one(hosts: Sequence[Host], state: Path, rng: random.Random) -> None:
    """Kill a server each time another edit is done, at some moment of the next ones."""
    for number, host in enumerate(hosts, 1):
        deadline = time.monotonic() + 1200
        while time.monotonic() < deadline and (not state.is_file() or len(state.read_text().splitlines()) < number):
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 1))
        assert host.process is not None, "it runs"
        os.killpg(host.process.pid, signal.SIGKILL)
