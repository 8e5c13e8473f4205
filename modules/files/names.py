"""Names that users give to files: what every system takes as one, and nothing that leads elsewhere."""

from typing import Any

LONGEST, DEEPEST = 200, 1000  # bytes of a name and of all: file systems allow 255, and a number and an ending are added
FORBIDDEN = '<>:"|?*'  # by Windows
RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{device}{number}" for device in ("COM", "LPT") for number in "0123456789¹²³"
}  # by Windows, whatever ending follows


def fault_of(name: str) -> str:
    """Return what keeps a text from being the name of a file or folder, in words; empty where nothing does."""
    faults = {
        "leads outside": name == "..",
        f"is longer than {LONGEST} bytes": len(name.encode(errors="replace")) > LONGEST,
        "has characters that cannot be seen": not name.isprintable(),  # control characters, halves of surrogate pairs
        f"has one of {' '.join(FORBIDDEN)}": any(character in FORBIDDEN for character in name),
        "ends with a dot or a space": name.endswith((".", " ")),
        "is a device's name in Windows": name.split(".")[0].rstrip().upper() in RESERVED,
    }
    return next((fault for fault, is_so in faults.items() if is_so), "")


def check_prefix(prefix: str) -> str:
    """Return a prefix of files as its folders and name, separated by "/", of which none leads elsewhere.

    Raises:
        ValueError: it names no file, or a part is no name that every system takes.
    """
    parts = prefix.replace("\\", "/").split("/")
    if not parts[-1].strip(" ."):
        raise ValueError(f"filename_prefix {shown(prefix)} names no file. Add a name: clips/swan.")
    if not parts[0]:
        raise ValueError(f"filename_prefix {shown(prefix)} begins at the root. Give a name, with subfolders if any.")
    for part in parts:
        if fault := fault_of(part) if part != "." else "":
            raise ValueError(
                f"filename_prefix {shown(prefix)} cannot be the name of a file: {shown(part)} {fault}. Give another "
                "name, with subfolders if any: clips/swan."
            )
    if len(prefix.encode()) > DEEPEST:
        raise ValueError(f"filename_prefix {shown(prefix)} is longer than {DEEPEST} bytes. Give a shorter name.")
    return "/".join(part for part in parts if part not in (".", ""))


def shown(value: Any, length: int = 60) -> str:
    """Return a value as a message shows it: as code, printable, on one line, and cut to a length."""
    if isinstance(value, str):
        return repr(value) if len(value) <= length else f"{value[:length]!r}..."
    text = " ".join(repr(value).split())
    return text if len(text) <= length else f"{text[:length]}..."
