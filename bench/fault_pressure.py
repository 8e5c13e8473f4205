"""Full and read-only disks, and many clients and servers at once."""

import errno
import os
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..modules.tuning.weights import Tune, save_tune
from .fault_graphs import PACK, fill, make_garden, node, see
from .fault_row import Row
from .fault_server import INFO, serve


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
