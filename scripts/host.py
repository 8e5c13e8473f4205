"""Run the real ComfyUI as a child process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from .environment import ROOT, link
from .project import PACK
from .server import HostError, Run, Server, list_files

FOLDERS = ("models", "custom_nodes", "input", "output", "temp", "user")


class Host(Server):
    """A ComfyUI server with a base directory of its own, in which this pack is the only custom node pack.

    A context manager: entered, the server answers; left, it and all that it started have ended.

    Args:
        tree: the ComfyUI folder.
        base: directory for models, inputs, outputs and the log; made if missing.
        arguments: further command line arguments of the server, e.g. "--cpu".
        pack: the pack's folder.
    """

    def __init__(self, tree: Path, base: Path, arguments: tuple[str, ...] = (), pack: Path = ROOT) -> None:
        super().__init__()
        self.tree, self.base, self.arguments, self.pack = tree, base.resolve(), arguments, pack
        self.log = self.base / "server.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> "Host":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, patience: float = 180) -> None:
        """Start the server and wait until it answers.

        Args:
            patience: seconds to wait.
        Raises:
            HostError: it ended or did not answer in time; the message has the end of its log.
        """
        prepare_base(self.base, self.pack)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        command = [sys.executable, "main.py", "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--base-directory", str(self.base), "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        with self.log.open("wb") as out:
            self.process = spawn([*command, *self.arguments], self.tree, out)
        deadline = time.monotonic() + patience
        while not self.answers():
            if self.process.poll() is not None:
                raise HostError(f"ComfyUI ended with status {self.process.returncode} at its start:\n{self.trouble()}")
            if time.monotonic() > deadline:
                raise HostError(f"ComfyUI did not answer within {patience:.0f} s:\n{self.trouble()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End the server and everything it started; harmless where nothing runs."""
        if self.process is not None:
            end_group(self.process)
            self.process = None

    def files(self, run: Run, node: str) -> list[Path]:
        """Return the files that an output node of a run wrote."""
        return [self.base / entry["type"] / entry["subfolder"] / entry["filename"] for entry in list_files(run, node)]

    def log_text(self) -> str:
        """Return what the server has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def trouble(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log_text().splitlines()[-25:])


def prepare_base(base: Path, pack: Path = ROOT) -> None:
    """Make the folders that ComfyUI expects in its base directory, with the pack in custom_nodes, as a link if it lies
    elsewhere.
    """
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    link(base / "custom_nodes" / PACK, pack)


def device_arguments() -> tuple[str, ...]:
    """Return the server's arguments for this machine: none where PyTorch finds an accelerator, else "--cpu"."""
    import torch

    return () if torch.accelerator.is_available() else ("--cpu",)


def spawn(command: list[str], folder: Path, out: IO[bytes]) -> subprocess.Popen:
    """Start a command in a process group of its own, so that it can be ended with all it starts."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **options
    )


def end_group(process: subprocess.Popen, patience: float = 10) -> None:
    """End a process made by `spawn` and its children: politely, then by force."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/PID", str(process.pid), "/T", "/F"], capture_output=True)
        process.wait()
        return
    gone = (ProcessLookupError, PermissionError)  # macOS refuses the group of a process that has ended
    with contextlib.suppress(*gone):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    with contextlib.suppress(*gone):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
