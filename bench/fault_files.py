"""Damaged files in front of every reader, and hostile names in front of everything that saves."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import transformers

from ..modules.files.host import save_new
from ..modules.files.whole import appearing
from ..nodes.shelves import ADAPTERS, INVERTED, TUNES
from .fault_readers import Reader, attempt, folders_at, make_adapter, make_inversion, make_readers, make_tune
from .fault_row import Row

NAMES = {
    "folders above": ("..", "../x", "x/../cache/mine", "a/../../x", "..\\x", "a/..", "a\\..\\..\\x"),
    "absolute": ("/tmp/x", "//x/y", "\\x", "\\\\host\\share\\x", "C:\\x", "C:x", "~/x"),
    "what cannot be seen": ("a\0b", "\n", "a\nb", "a\r\tb", "\x1b[31mx", "a\x7fb", "a\u202eb", "\ud800", "x/\udfff/y"),
    "long": ("x" * 300, "圆" * 100, "x" * 201, "a/" * 2000 + "x", "x" * 10**6),
    "Windows' devices and characters": (
        "CON",
        "nul.txt",
        "a/COM1/b",
        "LPT9.x.y",
        "prn ",
        "x.",
        "x ",
        "a./b",
        *'<>:"|?*',
    ),
    "links that lead outside": ("link/x", "link/../x", "a/../link/x"),
    "no name": ("", " ", ".", "a/", "./", "a\\", "   /"),
    "Unicode": ("圆/é", "🙂", "Ω.x", "a b", "%year%-x", "-x", "~x", "con_x"),
}
LOADED = ("../x", "/etc/passwd", "a\0b", "\ud800", "x" * 300, "CON", "", ".", "x.safetensors/y")


def try_files(count: int, seed: int) -> Iterator[Row]:
    """Damage files of every kind and read them; yields a row for each reader and kind of damage.

    Args:
        count: of damaged files in all, about.
        seed: of the damage.
    """
    readers, rng = make_readers(), Random(seed)
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    shares = sum(reader.share for reader in readers.values())
    with tempfile.TemporaryDirectory() as name:
        for called, reader in readers.items():
            folder = Path(name) / called / "clip"
            folder.mkdir(parents=True)
            for file, content in reader.files.items():
                (folder / file).write_bytes(content)
            with folders_at(folder):
                seen, wrong = attempt(partial(reader.read, folder), reader.begins)
                assert not seen, f"{called}, whole: {seen} {wrong}"
                yield from damage_reader(called, reader, folder, round(count * reader.share / shares), rng)


def damage_reader(called: str, reader: Reader, folder: Path, count: int, rng: Random) -> Iterator[Row]:
    """Damage the files of a reader that many times, in turn by each damage; yields a row for each."""
    ways = [(file, way) for file in reader.files for way in reader.damages[Path(file).suffix]]
    told: dict[str, list[tuple[str, str]]] = {way: [] for _, way in ways}
    for i in range(count):
        file, way = ways[i % len(ways)]
        whole = reader.files[file]
        damaged = reader.damages[Path(file).suffix][way](rng, whole)
        (folder / file).write_bytes(damaged)
        told[way].append(attempt(partial(reader.read, folder), reader.begins, len(damaged)))
        (folder / file).write_bytes(whole)
    for way, found in told.items():
        if found:
            seen = next((seen for seen, _ in found if seen), "nothing: it is read as it is")
            yield Row(f"{called}: {way}", len(found), seen, tuple(sorted({wrong for _, wrong in found if wrong})))


def tree(folder: Path) -> set[str]:
    """Return all that lies below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def save_folder(path: Path) -> None:
    """Save a folder, as Export Tune-A-Video does."""
    with appearing(path, new=True) as unfinished:
        unfinished.mkdir()
        (unfinished / "config.json").write_text("{}")


def savers() -> dict[str, Callable[[str], Path]]:
    """Return everything that saves under a prefix."""
    tune, inversion, adapter = make_tune(), make_inversion(), make_adapter()
    return {
        "tune": lambda prefix: TUNES.write(tune, prefix),
        "inversion": lambda prefix: INVERTED.write(inversion, prefix),
        "prompt tokens": lambda prefix: ADAPTERS.write(adapter, prefix),
        "Tune-A-Video": lambda prefix: save_new(save_folder, prefix),
    }


def try_paths(seed: int) -> Iterator[Row]:
    """Save under hostile prefixes and load by hostile names; yields a row for each kind.

    Args:
        seed: of prefixes that are put together of several.
    """
    rng = Random(seed)
    parts = [name for names in NAMES.values() for name in names if len(name) < 400]
    mixed = tuple(rng.choice(("/", "\\", "")).join(rng.choices(parts, k=rng.choice((2, 3)))) for _ in range(50))
    with tempfile.TemporaryDirectory() as name:
        root, outside = Path(name) / "models", Path(name) / "outside"
        for folder in (root, outside):
            folder.mkdir()
        (outside / "secret").write_text("x")
        (root / "link").symlink_to(outside, target_is_directory=True)
        with folders_at(root):
            for kind, names in {**NAMES, "mixtures of these": mixed}.items():
                yield save_by(kind, names, root, Path(name))
            seen, failed = "", []
            for text in LOADED:
                seen, wrong = attempt(partial(TUNES.read, text), "", error=FileNotFoundError)
                failed += [f"{text!r:.40}: {wrong or 'it was read'}"] if wrong or not seen else []
            yield Row("names to load: all of these", len(LOADED), seen, tuple(failed))


def keep(save: Callable[[str], Path], prefix: str, places: list[Path]) -> None:
    """Save under a prefix and note where."""
    places.append(save(prefix))


def save_by(kind: str, names: tuple[str, ...], root: Path, around: Path) -> Row:
    """Save under some prefixes by every saver; returns the row."""
    shown, failed, count = "", list[str](), 0
    for saver, save in savers().items():
        for name in names:
            before, places = tree(around), list[Path]()
            seen, wrong = attempt(partial(keep, save, name, places), "filename_prefix")
            new = tree(around) - before
            inside = [path for path in places if path.resolve().is_relative_to(root.resolve())]
            if not wrong and not seen and not inside:
                wrong = "saved outside"
            if seen and new or any(not path.startswith("models/") or path.startswith("models/link") for path in new):
                wrong = wrong or f"left {sorted(new)[:3]}"
            if kind == "Unicode" and seen:
                wrong = wrong or f"refused: {seen}"
            failed += [f"{saver}, {name!r:.40}: {wrong}"] if wrong else []
            shown, count = shown or seen, count + 1
    return Row(f"prefixes: {kind}", count, shown or "nothing: it is saved, below the folder", tuple(failed))
