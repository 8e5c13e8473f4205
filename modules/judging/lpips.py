"""LPIPS (Zhang et al., CVPR 2018) by torchmetrics, with the weights of its network from a file."""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor


def load_lpips(weights: Mapping[str, Tensor], name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the distance of frames (f, 3, h, w) in 0 ... 1 to others, one number for each; nothing is downloaded.

    torchmetrics brings LPIPS' own linear layers; the network below them is torchvision's, trained on ImageNet.

    Raises:
        ImportError: torchmetrics is absent.
        ValueError: the weights are of another network.
    """
    try:
        from torchmetrics.functional.image.lpips import _LPIPS
    except ImportError as error:
        raise ImportError(
            "LPIPS needs the package torchmetrics, which is not installed. Install it into ComfyUI's Python: pip "
            "install torchmetrics"
        ) from error
    features = {
        key.removeprefix("features."): value
        for key, value in weights.items()
        if key.startswith("features.") and value.is_floating_point()
    }
    for kind in ("alex", "vgg"):
        # Its names are slice1.0.weight and so on, with torchvision's numbers.
        taken = {key: features.get(key.split(".", 1)[1]) for key in shapes_of(kind)}
        if all(value is not None and value.shape == shapes_of(kind)[key] for key, value in taken.items()):
            network = _LPIPS(net=kind, pnet_rand=True)
            network.net.load_state_dict(taken)
            return network_distance(network.float().eval())
    raise ValueError(
        f"{name} holds no weights of torchvision's AlexNet or VGG-16. Choose alexnet-owt-7be5be79.pth, or none."
    )


@cache
def shapes_of(kind: str) -> dict[str, torch.Size]:
    """Return the shapes of the weights of LPIPS' network of a kind."""
    from torchmetrics.functional.image.lpips import _LPIPS

    with torch.device("meta"):  # no weights are drawn
        network = _LPIPS(net=kind, pretrained=False, pnet_rand=True).net
    return {key: value.shape for key, value in network.state_dict().items()}


def network_distance(network: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the distance by a network, a frame at a time."""

    @torch.no_grad()
    def distance(frames: Tensor, others: Tensor) -> Tensor:
        pairs = zip(frames.float().split(1), others.float().split(1), strict=True)
        return torch.cat([network(*pair, normalize=True).flatten() for pair in pairs])

    return distance
