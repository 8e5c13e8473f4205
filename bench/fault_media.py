"""Odd, empty and cut videos."""

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ..scripts.host import Host
from .fault_graphs import PACK, fill, make_garden, node, see
from .fault_row import Row
from .fault_server import serve

Json = dict[str, Any]
PATIENCE = 900  # seconds; ten thousand frames are decoded and encoded before they are refused


def write_video(path: Path, frames: int, height: int, width: int, codec: str, form: str, **options: Any) -> None:
    """Write a video of moving stripes; `uneven` gives frames of uneven length, `movflags` are the container's."""
    uneven = options.pop("uneven", False)
    container = {"movflags": options.pop("movflags")} if "movflags" in options else {}
    with av.open(str(path), "w", options=container) as file:
        stream: Any = file.add_stream(codec, rate=Fraction(8))
        stream.height, stream.width, stream.pix_fmt = height, width, form
        for key, value in options.items():
            setattr(stream.codec_context, key, value)
        y, x = np.mgrid[:height, :width]
        for number in range(frames):
            picture = np.stack([(x * 8 + number * 16) % 256, (y * 8) % 256, 0 * x], axis=-1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=form)
            frame.pts = number * number if uneven else number
            frame.time_base = Fraction(1, 8)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


MEDIA: dict[str, tuple[str, tuple[Any, ...], Json]] = {  # name: file, arguments of `write_video`
    "1 frame": ("one.mp4", (1, 64, 64, "libx264", "yuv420p"), {}),
    "2 frames": ("two.mp4", (2, 64, 64, "libx264", "yuv420p"), {}),
    "odd sizes": ("odd.mp4", (3, 61, 75, "libx264", "yuv444p"), {}),
    "portrait": ("portrait.mp4", (3, 128, 48, "libx264", "yuv420p"), {}),
    "1 x 1": ("point.webm", (2, 1, 1, "libvpx-vp9", "yuv444p"), {}),
    "grey": ("grey.mp4", (3, 64, 64, "libx264", "gray"), {}),
    "alpha": ("alpha.webm", (3, 64, 64, "libvpx-vp9", "yuva420p"), {}),
    "webm": ("vp9.webm", (3, 64, 64, "libvpx-vp9", "yuv420p"), {}),
    "10 bits": ("ten.mp4", (3, 64, 64, "libx264", "yuv420p10le"), {}),
    "HDR": ("hdr.mp4", (3, 64, 64, "libx264", "yuv420p10le"), {"color_trc": 16, "color_primaries": 9, "colorspace": 9}),
    "variable frame rate": ("uneven.mp4", (4, 64, 64, "libx264", "yuv420p"), {"uneven": True}),
    "10,000 frames": ("long.mp4", (10000, 16, 16, "libx264", "yuv420p"), {}),
}


def media_prompt(name: str, host: Host) -> Json:
    """Return a graph that inverts and edits a video of the server's input folder."""
    garden, sockets = make_garden(host.object_info())
    garden["file"] = node("LoadVideo", file=name)
    garden["frames"] = node("GetVideoComponents", video=["file", 0])
    garden["latent"]["inputs"]["pixels"] = ["frames", 0]
    sample = node(PACK + "SmoothSample", **fill(host.object_info()[PACK + "SmoothSample"], sockets))
    sample["inputs"] |= {"model": ["patched", 0]}
    garden["inversion"]["inputs"]["model"] = ["patched", 0]
    decoded = node("VAEDecode", samples=["sample", 0], vae=["demo", 2])
    video = node("CreateVideo", images=["decoded", 0], fps=8.0)
    save = node("SaveVideo", video=["video", 0], filename_prefix="odd", format="auto", codec="auto")
    return {**garden, "sample": sample, "decoded": decoded, "video": video, "save": save}


OWN = ("GetVideoComponents", "ImageScale")  # of ComfyUI, which say what they say
BETWEEN: dict[str, tuple[str, str, str, Json]] = {  # name: file, what is fed, by which node with which inputs
    "Trim Video that begins after the end": (
        "two.mp4", "frames", "Video Slice", {"video": ["file", 0], "start_time": 9.0, "duration": 1.0}
    ),
    "Trim Video between two frames": (
        "two.mp4", "frames", "Video Slice", {"video": ["file", 0], "start_time": 0.06, "duration": 0.001}
    ),
    "an mp4 cut at 95%, First frames of it": (
        "cut.mp4", "latent", "ImageFromBatch", {"image": ["frames", 0], "batch_index": 0, "length": 8}
    ),
    "an mp4 cut at 95%, Scale as in the workflow edit": (
        "cut.mp4", "latent", "ImageScale",
        {"image": ["frames", 0], "upscale_method": "lanczos", "width": 64, "height": 64, "crop": "center"},
    ),
}  # fmt: skip


def write_sound(path: Path) -> None:
    """Write a file of a second of silence, without a picture."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())


def without_frames(host: Host, name: str, file: str, prompt: Json) -> Row:
    """Return what the user sees of a video that has perhaps no frames: its result, or an error that names the file."""
    seen, is_right = see(host, prompt, PATIENCE)
    is_right &= seen == "a result" or seen.startswith(OWN) or repr(file) in seen
    return Row(name, 1, seen, () if is_right else (seen,))


def try_empty(host: Host) -> Iterator[Row]:
    """Edit videos of which frames are missing, or all of them."""
    files = host.base / "input"
    write_sound(files / "sound.mp4")
    yield without_frames(host, "sound alone", "sound.mp4", media_prompt("sound.mp4", host))
    write_video(files / "first.mp4", 24, 64, 64, "libx264", "yuv420p", movflags="+faststart")
    for kind, file in {"an mp4 with its index at the start": "first.mp4", "an mp4": "two.mp4"}.items():
        whole = (files / file).read_bytes()
        for part in (0.0, 0.3, 0.6, 0.95):
            (files / "cut.mp4").write_bytes(whole[: int(part * len(whole))])
            yield without_frames(host, f"{kind}, cut at {part:.0%}", "cut.mp4", media_prompt("cut.mp4", host))
    for name, (file, fed, kind, inputs) in BETWEEN.items():
        prompt = media_prompt(file, host)
        given = {"strict_duration": False, **inputs} if kind == "Video Slice" else inputs
        prompt[fed]["inputs"]["video" if fed == "frames" else "pixels"] = ["between", 0]
        yield without_frames(host, name, file, {**prompt, "between": node(kind, **given)})


def try_media(_seed: int) -> Iterator[Row]:
    """Edit odd videos by ComfyUI's own loader: a video of as many frames, or an error in words."""
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as host:
        files = host.base / "input"
        for name, (file, given, options) in MEDIA.items():
            try:
                write_video(files / file, *given, **options)
            except (OSError, ValueError) as error:
                yield Row(name, 0, f"this machine cannot write it: {error}")
                continue
            seen, is_right = see(host, media_prompt(file, host), PATIENCE)
            yield Row(name, 1, seen, () if is_right else (seen,))
        yield from try_empty(host)
        seen, is_right = see(host, media_prompt("vp9.webm", host), PATIENCE)
        yield Row("after all of them, webm again", 1, seen, () if is_right and seen == "a result" else (seen,))
