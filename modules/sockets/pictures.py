"""Images and masks as nodes take them."""

import torch
from torch import Tensor

FRAMES = "Connect the frames of a clip, as Get Video Components gives them."
MASK = "Connect a mask of one frame or of as many as the clip."
FRACTIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_numbers(values: Tensor, name: str, instead: str) -> None:
    """Refuse what holds no values or not only finite ones.

    Raises:
        ValueError: says what is wrong with it.
    """
    if not values.numel():
        raise ValueError(f"{name} is empty, of shape {tuple(values.shape)}. {instead}")
    if values.dtype not in FRACTIONS:
        kind = str(values.dtype).removeprefix("torch.")
        raise ValueError(f"{name} holds {kind} values, not floating-point ones such as float32. {instead}")
    check_finite(values, name, instead)


def check_finite(values: Tensor, name: str, instead: str) -> None:
    """Raise ValueError where values are NaN or infinite."""
    if not values.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite (NaN or infinity). {instead}")


def read_images(images: Tensor, name: str, instead: str = FRAMES) -> Tensor:
    """Return images as RGB in float32 on the CPU, shape (f, h, w, 3), 0 ... 1.

    Alpha is left out, as ComfyUI's VAE Encode does; one channel is repeated to three; uint8 values are divided by 255.

    Args:
        images: shape (f, h, w, 1, 3 or 4).
        name: of the input.
        instead: what to connect.

    Raises:
        ValueError: they have another shape, no frame, other whole numbers, or values that are not finite.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        shape = tuple(getattr(images, "shape", ())) or type(images).__name__
        raise ValueError(f"{name} has the shape {shape}; images are (frames, height, width, 3). {instead}")
    if images.dtype == torch.uint8:
        images = images / 255
    check_numbers(images, name, instead)
    rgb = images[..., :3].to("cpu", torch.float32)
    return rgb.expand(-1, -1, -1, 3).contiguous()


def read_mask(mask: Tensor, name: str = "mask") -> Tensor:
    """Return a mask in float32, shape (f or 1, h, w), 0 ... 1.

    Args:
        mask: shape (f or 1, h, w) or (h, w).
        name: of the input.

    Raises:
        ValueError: it has another shape, no frame, whole numbers, or values that are not finite.
    """
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 3):
        shape = tuple(getattr(mask, "shape", ())) or type(mask).__name__
        raise ValueError(f"{name} has the shape {shape}; masks are (frames, height, width). {MASK}")
    if mask.dtype == torch.bool:
        mask = mask.float()
    check_numbers(mask, name, MASK)
    return mask.float().reshape(-1, *mask.shape[-2:])
