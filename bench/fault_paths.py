"""Hostile names in front of everything that saves, and everything that loads."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from ..modules.files.host import save_new
from ..modules.files.whole import appearing
from ..nodes.shelves import ADAPTERS, INVERTED, TUNES
from .fault_files import attempt, folders_at, make_adapter, make_inversion, make_tune
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
                seen, wrong = attempt(lambda t=text: TUNES.read(t), "", error=FileNotFoundError)  # type: ignore[misc]
                failed += [f"{text!r:.40}: {wrong or 'it was read'}"] if wrong or not seen else []
            yield Row("names to load: all of these", len(LOADED), seen, tuple(failed))


def save_by(kind: str, names: tuple[str, ...], root: Path, around: Path) -> Row:
    """Save under some prefixes by every saver; returns the row."""
    shown, failed, count = "", list[str](), 0
    for saver, save in savers().items():
        for name in names:
            before, places = tree(around), list[Any]()
            seen, wrong = attempt(lambda s=save, n=name, p=places: p.append(s(n)), "filename_prefix")  # type: ignore[misc]
            new = tree(around) - before
            inside = [root / "saved" for path in places if path.resolve().is_relative_to(root.resolve())]
            if not wrong and not seen and not inside:
                wrong = "saved outside"
            if seen and new or any(not path.startswith("models/") or path.startswith("models/link") for path in new):
                wrong = wrong or f"left {sorted(new)[:3]}"
            if kind == "Unicode" and seen:
                wrong = wrong or f"refused: {seen}"
            failed += [f"{saver}, {name!r:.40}: {wrong}"] if wrong else []
            shown, count = shown or seen, count + 1
    return Row(f"prefixes: {kind}", count, shown or "nothing: it is saved, below the folder", tuple(failed))
