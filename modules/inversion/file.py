"""Files of inversions: the noise of a clip, to edit it again at once."""

from dataclasses import asdict
from pathlib import Path

from ..files.tensor_file import Kind, read_file, write_file
from .inversion import Inversion, InversionSettings

FILE = Kind(
    format="consistent_video_inversion",
    version=1,
    name="inversion",
    again="Invert again.",
    instead="Choose a file that Save Inversion wrote.",
)
TENSORS = ("samples", "sigmas", "noises", "source")


def save_inversion(inversion: Inversion, path: Path) -> None:
    """Write an inversion as safetensors; the file appears whole or not at all.

    Raises:
        OSError: it could not be written.
    """
    tensors = {
        "samples": inversion.start.float(),
        "sigmas": inversion.sigmas,
        "noises": inversion.noises,
        "source": inversion.source,
    }
    made = {"num_frames": inversion.num_frames, "model": inversion.model, "made": asdict(inversion.settings)}
    write_file(FILE, tensors, made, path)


def load_inversion(path: Path) -> Inversion:
    """Read an inversion.

    Raises:
        ValueError: the file is damaged, no inversion, or of a newer format.
    """
    tensors, info = read_file(FILE, path)
    if not tensors.keys() >= set(TENSORS):
        raise ValueError(f"{path.name} is not {FILE.named} of Consistent Video: it lacks tensors. {FILE.instead}")
    samples, sigmas, noises, source = (tensors[key] for key in TENSORS)
    try:
        settings, model = InversionSettings(**info["made"]), info["model"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path.name} does not say how it was made. {FILE.again}") from error
    return Inversion(sigmas, noises, source, samples, settings, model)
