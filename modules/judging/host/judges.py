"""What measures a scorecard, from the host's own models and from files in its folders; nothing is ever downloaded."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_management import get_torch_device, load_model_gpu, throw_exception_if_processing_interrupted
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ...files.host import CLIP_FOLDERS, LPIPS, OPTICAL_FLOW, read_weights
from ...files.tensor_file import check_tensors
from ...motion.flow import Motion, motion_of, read_flow
from ...motion.raft import estimate_motion_by, load_raft
from ...motion.variational import estimate_motion
from ...sockets.pictures import read_images
from ...sockets.texts import LONGEST_PROMPT, tokenize
from ..clip import ClipModel
from ..lpips import load_lpips
from ..scorecard import Judges

VARIATIONAL = "variational"
NONE = "none"
PROJECTION = "text_projection"
LARGEST = 32.0  # default of the pixels of motion that full red or green stands for in a picture of flow


def flow_methods() -> list[str]:
    """Return the names of what estimates optical flow: energy minimisation, and files of RAFT's weights."""
    return [VARIATIONAL, *folder_paths.get_filename_list(OPTICAL_FLOW)]


def lpips_files() -> list[str]:
    """Return NONE and the names of the files with weights for LPIPS."""
    return [NONE, *folder_paths.get_filename_list(LPIPS)]


def clip_folders() -> list[str]:
    """Return NONE and the names of the folders with CLIP models in transformers' form."""
    places = [Path(place) for place in folder_paths.get_folder_paths(CLIP_FOLDERS)]
    found = {file.parent.relative_to(place).as_posix() for place in places for file in place.glob("**/config.json")}
    return [NONE, *sorted(found - {"."})]


def find_clip_folder(name: str) -> Path:
    """Return where a folder of `clip_folders` lies; ValueError where it is gone."""
    if name in clip_folders():
        for place in folder_paths.get_folder_paths(CLIP_FOLDERS):
            if (Path(place) / name / "config.json").is_file():
                return Path(place) / name
    raise ValueError(f"clip_folder {name!r} is not in models/{CLIP_FOLDERS}. Copy it there, or choose {NONE}.")


def read_network(folder: str, name: str) -> dict[str, Tensor]:
    """Return the weights in a file of a models folder; ValueError where it is damaged or its numbers are too coarse."""
    weights = read_weights(folder, name)
    check_tensors(weights, name, "Copy it again, or choose another file.")
    return weights


def clip_motion(
    images: Tensor | None = None,
    method: str = VARIATIONAL,
    optical_flow: ModelPatcher | None = None,
    forward: Any = None,
    backward: Any = None,
    largest: float = LARGEST,
) -> Motion:
    """Return the motion of a clip: that of given flows, or else an estimate.

    Args:
        images: frames (f, h, w, 3), 0 ... 1; not needed with flows.
        method: one of `flow_methods`.
        optical_flow: the host's model, a RAFT, which estimates instead of the method.
        forward, backward: flows of another origin, and
        largest: of their pictures, pixels; see `read_flow`.

    Raises:
        ValueError: there are neither frames nor flows, or only one of the flows; the flows cannot be read or differ in
            shape; the method's file does not hold weights of RAFT.
    """
    flows = {"forward": forward, "backward": backward}
    missing = [name for name, flow in flows.items() if flow is None]
    if not missing:
        return motion_of(*(read_flow(flow, name, largest) for name, flow in flows.items()))
    if len(missing) < len(flows):
        raise ValueError(
            f"Of forward and backward, {missing[0]} is not connected. Connect the flows of both directions, or neither "
            "to estimate the motion of images."
        )
    if images is None:
        raise ValueError(
            "Neither images nor forward and backward are connected. Connect the frames of the clip to images, or "
            "optical flow to both forward and backward."
        )
    images = read_images(images, "images")
    if optical_flow is None:
        return flow_by(method)(images)
    load_model_gpu(optical_flow)
    device = optical_flow.load_device
    return estimate_motion_by(optical_flow.model.to(device), images.to(device))


def flow_by(method: str) -> Callable[[Tensor], Motion]:
    """Return what estimates the motion of frames (f, h, w, 3) by one of `flow_methods`."""
    device = get_torch_device()
    if method == VARIATIONAL:
        return partial(estimate_motion, device=device, between=throw_exception_if_processing_interrupted)
    network = load_raft(read_network(OPTICAL_FLOW, method), method).to(device)
    return lambda images: estimate_motion_by(network, images.to(device))


def has_projection(clip: CLIP) -> bool:
    """Whether the files that a text encoder was loaded from hold the projection to the space that images share.

    Where they do not, the host leaves it zero or unset, and its pooled output means nothing.
    """
    loaded = getattr(clip.patcher, "cached_patcher_init", None)
    if loaded is None:
        return False
    files = [loaded[1][0]] if isinstance(loaded[1][0], str) else loaded[1][0]
    return any(PROJECTION in key for file in files for key in comfy.utils.load_torch_file(file, safe_load=True))


@torch.no_grad()
def host_text(clip: CLIP, prompt: str) -> Tensor:
    """Return the embedding of a prompt by the host's text encoder, projected to the space of the images.

    Unless it is told so, the host's encoder of SD1.x stops before the projection, even where it has one.
    """
    encoder = clip.cond_stage_model
    pieces = tokenize(clip, prompt[:LONGEST_PROMPT], "edit_text or source_text")
    tokens = {name: each[:1] for name, each in pieces.items()}  # the pooled output is the first's
    clip.load_model(tokens)
    encoder.reset_clip_options()
    encoder.set_clip_options({"projected_pooled": True, "execution_device": clip.patcher.load_device})
    try:
        return encoder.encode_token_weights(tokens)[1][0].float().cpu()
    finally:
        encoder.reset_clip_options()


def host_clip(clip_vision: ClipVisionModel | None, clip: CLIP | None) -> dict[str, Any]:
    """Return what the host's own models measure, as `Judges` has it, with the reason where they do not."""
    if clip_vision is None:
        reason = "no CLIP model is connected or chosen"
        return {"absent": {"images": reason, "text": reason}}
    if clip_vision.model_type != "clip_vision_model":
        reason = f"clip_vision is a {clip_vision.model_type}, not a CLIP model"
        return {"absent": {"images": reason, "text": reason}}

    def embed(frames: Tensor) -> Tensor:
        return clip_vision.encode_image(frames.movedim(1, -1))["image_embeds"].float().cpu()

    config = clip_vision.config
    width, size = config["projection_dim"], config["image_size"]
    judges: dict[str, Any] = {"images": embed, "absent": {}}
    judges["models"] = {"images": f"CLIP by clip_vision ({config['num_hidden_layers']} layers, {size} pixels)"}
    if clip is None:
        judges["absent"]["text"] = "no text encoder of the same CLIP model is connected"
    elif not has_projection(clip):
        judges["absent"]["text"] = (
            "the files of clip hold no text_projection, without which prompts and images cannot be compared; "
            "checkpoints of SD1.x have none. Load clip_l.safetensors by Load CLIP, or choose a clip_folder"
        )
    elif (found := len(host_text(clip, ""))) != width or size != 224:
        judges["absent"]["text"] = (
            f"clip ({found} numbers for a prompt) and clip_vision ({width} numbers for a frame of {size} pixels) are "
            "not of one CLIP model"
        )
    else:
        judges["text"] = partial(host_text, clip)
        judges["models"]["text"] = f"CLIP by clip ({found} numbers)"
    return judges


def make_judges(
    flow: str = VARIATIONAL,
    lpips: str = NONE,
    clip_folder: str = NONE,
    clip_vision: ClipVisionModel | None = None,
    clip: CLIP | None = None,
) -> Judges:
    """Return what measures, as far as it is there.

    Args:
        flow: one of `flow_methods`.
        lpips: one of `lpips_files`.
        clip_folder: one of `clip_folders`; it takes precedence over the host's models.
        clip_vision, clip: the host's models.

    Raises:
        ValueError: a chosen file or folder holds something else.
    """
    given = host_clip(clip_vision, clip)
    if clip_folder != NONE:
        model = ClipModel(find_clip_folder(clip_folder), torch.device(get_torch_device()))
        name = f"CLIP in {clip_folder}"
        given = {"images": model.images, "text": model.text, "models": {"images": name, "text": name}}
    models, absent = dict(given.get("models", {})), dict(given.get("absent", {}))
    find = flow_by(flow)
    given["flow"] = lambda frames: find(frames.movedim(1, -1))
    models["flow"] = "variational optical flow" if flow == VARIATIONAL else f"RAFT by {flow}"
    if lpips == NONE:
        absent["lpips"] = f"no weights are chosen; put alexnet-owt-7be5be79.pth into models/{LPIPS}"
    elif not find_spec("torchmetrics"):
        absent["lpips"] = "torchmetrics is not installed"
    else:
        given["lpips"], models["lpips"] = load_lpips(read_network(LPIPS, lpips), lpips), f"LPIPS by {lpips}"
    return Judges(**{**given, "models": models, "absent": absent})
