"""Files of inversions: the noise of a clip, to edit it again at once."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from ..diffusion.path import PathKind
from ..files.record import Count, read_record
from ..files.tensor_file import Kind, read_file, write_file
from .inversion import Inversion, InversionSettings


@dataclass(frozen=True)
class Made:
    """What a file says of an inversion besides its tensors; the defaults are what older versions made."""

    OPEN: ClassVar = True
    num_frames: Count
    model: str
    made: InversionSettings
    kind: PathKind = "noise"
    has_time: bool = False


FILE = Kind(
    format="consistent_video_inversion",
    version=1,
    name="inversion",
    again="Invert again.",
    instead="Choose a file that Save Inversion wrote.",
    info=Made,
    tensors={"samples": "f c h w", "source": "f c h w", "noises": "steps f c h w", "sigmas": "levels"},
)


def save_inversion(inversion: Inversion, path: Path, new: bool = False) -> None:
    """Write an inversion as safetensors; the file appears whole or not at all.

    Raises:
        FileExistsError: the path is to be new, and is not.
        OSError: it could not be written.
    """
    tensors = {
        "samples": inversion.start.float(),
        "sigmas": inversion.sigmas,
        "noises": inversion.noises,
        "source": inversion.source,
    }
    made = {
        "num_frames": inversion.num_frames,
        "model": inversion.model,
        "made": asdict(inversion.settings),
        "kind": inversion.kind,
        "has_time": inversion.has_time,
    }
    write_file(FILE, tensors, made, path, new)


def load_inversion(path: Path) -> Inversion:
    """Read an inversion.

    Raises:
        ValueError: the file is damaged, no inversion, or of a newer format.
    """
    tensors, info = read_file(FILE, path)
    made = read_record(Made, info, "info")
    try:
        found = tensors["sigmas"], tensors["noises"], tensors["source"], tensors["samples"]
        return Inversion(*found, made.made, made.model, made.kind, made.has_time)
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
