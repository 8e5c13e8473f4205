"""What must be so before a release: each point of CONTRIBUTING's list, found out by itself.

A point returns what it found, raises `NotReady` with what to do where it fails, or `Skipped` where it cannot be known
here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .pictures import list_pictures
from .project import read_value

ADDRESSES = {  # of a repository, owner/name
    "Repository": "https://github.com/{}",
    "Documentation": "https://github.com/{}/tree/main/docs",
    "Issues": "https://github.com/{}/issues",
    "Icon": "https://raw.githubusercontent.com/{}/main/docs/icon.svg",
    "Banner": "https://raw.githubusercontent.com/{}/main/docs/banner.svg",
}
REPOSITORY = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+)")
HEADING = re.compile(r"^## \[(.+?)\] - (.+)$", re.MULTILINE)
SAID = re.compile(r"^Version (\d+\.\d+\.\d+)(.*)$", re.MULTILINE)
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
FOLDERS = ("locales", "modules", "nodes", "subgraphs", "web", "workflows")  # of which the archive holds every file
FILES = ("CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "pyproject.toml", "requirements.txt")
OURS_ALONE = ("bench", "scripts", "tests")  # of which it holds none
LARGEST = 32 * 2**20  # bytes
Json = dict[str, Any]


class NotReady(Exception):
    """A point fails; the message says what to do."""


class Skipped(Exception):
    """A point cannot be checked here; the message says why."""


def read(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def run(root: Path, *command: str, **settings: str) -> str:
    """Run a command in the project and return what it printed; NotReady with that where it fails."""
    done = subprocess.run(
        command, cwd=root, env=os.environ | settings, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    printed = (done.stdout + done.stderr).strip()
    if done.returncode:
        raise NotReady(f"{' '.join(map(str, command[:4]))} failed: {' '.join(printed.split()[-40:])}")
    return printed


def git(root: Path, *arguments: str) -> str:
    return run(root, "git", *arguments)


def check_version(root: Path) -> str:
    """The version is the same wherever it stands."""
    version, heading, said = (
        read_value("version", read(root, "pyproject.toml")),
        HEADING.search(read(root, "CHANGELOG.md")),
        SAID.search(read(root, "README.md")),
    )
    found = {"pyproject.toml": version, "CHANGELOG.md": heading and heading[1], "README.md": said and said[1]}
    if len({*found.values()}) > 1:
        raise NotReady(", ".join(f"{name} says {number}" for name, number in found.items()))
    return version


def check_date(root: Path) -> str:
    """The changelog gives the release its date, and the README does not call it unreleased."""
    heading, said = HEADING.search(read(root, "CHANGELOG.md")), SAID.search(read(root, "README.md"))
    if heading is None or not DATE.fullmatch(heading[2]):
        raise NotReady("CHANGELOG.md gives the newest version no date: ## [1.2.3] - 2026-01-31")
    if said and "not yet released" in said[2]:
        raise NotReady("README.md says that it is not yet released, under Status and limits")
    return heading[2]


def check_addresses(root: Path) -> str:
    """Every address is filled in, and they are of one repository."""
    text = read(root, "pyproject.toml")
    address = read_value("Repository", text)
    repository = REPOSITORY.fullmatch(address)
    wanted = {key: repository and form.format(repository[1]) for key, form in ADDRESSES.items()}
    wrong = [key for key, value in wanted.items() if read_value(key, text) != value]
    if wrong:
        raise NotReady(f"{', '.join(wrong)} wait for python scripts/release.py --address https://github.com/owner/name")
    return address


def fill_addresses(root: Path, address: str) -> None:
    """Write every address into pyproject.toml.

    Raises:
        ValueError: this is not the address of a repository on GitHub.
    """
    repository = REPOSITORY.fullmatch(address)
    if repository is None:
        raise ValueError(f"{address!r} is not the address of a repository: https://github.com/owner/name")
    text = read(root, "pyproject.toml")
    for key, form in ADDRESSES.items():
        text = re.sub(rf'^{key} = ".*"$', f'{key} = "{form.format(repository[1])}"', text, flags=re.MULTILINE)
    (root / "pyproject.toml").write_text(text, encoding="utf-8")


def check_tree(root: Path) -> str:
    """Everything is committed."""
    changed = git(root, "status", "--porcelain").splitlines()
    if changed:
        raise NotReady(f"{len(changed)} files are not committed, such as {changed[0].split()[-1]}")
    return git(root, "rev-parse", "--short", "HEAD")


def check_built(root: Path, built: dict[str, Any], command: str) -> str:
    """Files that a command writes are what it would write now."""
    there = {path.relative_to(root).as_posix() for name in built for path in (root / name).parent.glob("*.json")}
    other = sorted(built.keys() ^ there) or [name for name in built if json.loads(read(root, name)) != built[name]]
    if other:
        raise NotReady(f"python scripts/{command} would change {', '.join(other[:3])}")
    return f"{len(built)} files"


def list_keys(texts: Json, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield what leads to each text of a locale."""
    for key, value in texts.items():
        yield from list_keys(value, (*before, key)) if isinstance(value, dict) else [(*before, key)]


def check_translations(root: Path) -> str:
    """Every language has each of the English texts, and none that is gone."""
    languages = sorted(path.name for path in (root / "locales").iterdir() if path.name != "en")
    for language in languages:
        for path in (root / "locales" / "en").glob("*.json"):
            names = (f"locales/{place}/{path.name}" for place in ("en", language))
            wanted, found = (set(list_keys(json.loads(read(root, name)))) for name in names)
            if wanted != found:
                raise NotReady(f"locales/{language}/{path.name}: {' '.join(min(wanted ^ found))} is missing or gone")
    return ", ".join(languages)


def check_pictures(root: Path) -> str:
    """Each picture of the editor was committed when what it shows was as it is now."""
    stale, count = [], 0
    for picture, shown, draw in list_pictures(root):
        commit, count = git(root, "log", "-1", "--format=%H", "--", picture), count + 1
        try:
            before = commit and draw(json.loads(git(root, "show", f"{commit}:{shown}")))
        except (NotReady, KeyError):
            before = None
        if not before or before != draw(json.loads(read(root, shown))):
            stale.append(picture)
    if stale:
        raise NotReady(f"python scripts/build_pictures.py: {len(stale)} of {count} are older, such as {stale[0]}")
    return f"{count} pictures"


def run_comfy(root: Path, *arguments: str) -> str:
    """Run comfy-cli without its statistics and questions, and away from the user's settings of it."""
    with tempfile.TemporaryDirectory() as home:
        quiet = {"DO_NOT_TRACK": "1", "HOME": home, "XDG_CONFIG_HOME": home}
        return run(root, sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", *arguments, **quiet)


def check_archive(root: Path) -> str:
    """The archive can be packed, and holds what users need and nothing else."""
    with tempfile.TemporaryDirectory() as place:
        git(root, "clone", "--quiet", "--no-hardlinks", ".", place + "/pack")
        run_comfy(Path(place, "pack"), "pack")
        (archive,) = Path(place, "pack").glob("*.zip")
        size, files = archive.stat().st_size, set(zipfile.ZipFile(archive).namelist())
    check_content(files, git(root, "ls-files").splitlines())
    if size > LARGEST:
        raise NotReady(f"it takes {size / 2**20:.0f} MiB, over {LARGEST / 2**20:.0f}")
    return f"{len(files)} files, {size / 2**20:.1f} MiB"


def check_content(files: set[str], tracked: list[str]) -> None:
    """Raise NotReady where an archive of these files lacks some that users need, or holds our own."""
    needed = {name for name in tracked if name.split("/")[0] in FOLDERS} | {*FILES}
    lacking = sorted(needed - files)
    if lacking:
        raise NotReady(f"it lacks {', '.join(lacking[:3])}: see .comfyignore")
    spare = sorted(name for name in files if name.split("/")[0] in OURS_ALONE or name.startswith("."))
    if spare:
        raise NotReady(f"it holds {', '.join(spare[:3])}: see .comfyignore")


def check_metadata(root: Path) -> str:
    """The registry's own check passes without a warning."""
    printed = run_comfy(root, "validate")
    if "passed" not in printed or "arning" in printed:
        raise NotReady(f"comfy node validate says: {' '.join(printed.split())}")
    return "comfy node validate passed"


def check_packages(root: Path) -> str:
    """No package that the pack needs has a known vulnerability."""
    if not shutil.which("pip-audit"):
        raise Skipped("pip-audit is not installed: pip install pip-audit")
    printed = run(root, "pip-audit", "--progress-spinner", "off", "--requirement", "requirements.txt")
    unknown = printed.count("could not be audited")  # for which it does not fail
    if unknown:
        raise Skipped(f"pip-audit could not audit {unknown} packages: run it where it reaches PyPI")
    return "pip-audit found nothing"


def report(points: dict[str, Callable[[], str]], say: Callable[[str], None]) -> int:
    """Check points by their names and say of each how it stands; returns 1 where one fails, else 0."""
    failed = 0
    for name, check in points.items():
        try:
            word, found = "ok", check()
        except Skipped as reason:
            word, found = "skipped", str(reason)
        except (NotReady, OSError) as reason:
            word, found, failed = "FAILED", str(reason), 1
        say(f"{word:<8} {name:<13} {found}")
    return failed
