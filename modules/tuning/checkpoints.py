"""Which layers of a UNet a backward pass computes again, so that the memory suffices with the least work; ours."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key")


@dataclass(frozen=True)
class Layer:
    """What a layer costs.

    Attributes:
        held: values that its backward pass needs, besides its input and its output.
        flops: multiplications and additions of computing it.
    """

    held: float
    flops: float


def residual_layer(positions: int, channels: int, out_channels: int, is_joined: bool) -> Layer:
    """Return what a frozen residual block costs: norm, SiLU and convolution by 3 x 3, twice.

    Norms and SiLUs need their inputs for the backward pass, frozen convolutions nothing.

    Args:
        positions: of the feature map, of all frames.
        channels, out_channels: of its input and its output.
        is_joined: whether its input is concatenated from two, of which the whole is held besides.
    """
    convolutions = 9 * (channels + out_channels) * out_channels
    if channels != out_channels:  # one by 1 x 1 past them
        convolutions += channels * out_channels
    held = (2 if is_joined else 1) * channels + 2 * out_channels
    return Layer(positions * held, 2 * positions * convolutions)


def transformer_layer(
    positions: int, width: int, depth: int, keys: int, frames: int, temporal: int, chunking: bool
) -> Layer:
    """Return what a spatial transformer costs whose query projections and temporal modules are trained.

    A block's projections and feed-forward have 18 width² weights, a temporal module's projections 4, the layers around
    the blocks 2. Of each position's features a block holds some 12, its feed-forward 11 and its temporal module 8;
    with chunking these two hold one between them.

    Args:
        positions: of the feature map, of all frames.
        width: features of a position.
        depth: transformer blocks.
        keys: that each position sees in self- and in cross-attention together.
        frames: that each position sees in its temporal module.
        temporal: blocks that have one.
        chunking: whether the activations of feed-forwards and temporal modules are computed again.
    """
    weights = (2 + 18 * depth + 4 * temporal) * width**2
    scores = 2 * (depth * keys + temporal * frames) * width
    features = depth * (12 if chunking else 23) + temporal * (1 if chunking else 8)
    return Layer(positions * features * width, 2 * positions * (weights + scores))


def fullest(layers: Mapping[Key, Layer], chosen: Collection[Key]) -> tuple[float, int]:
    """Return the most values that are held in a backward pass, and the place of the layer at which that is.

    It comes to the layers from the last to the first. At each there are its own values, held or computed again, and
    those of the layers before it that hold theirs.

    Args:
        layers: in the order of the forward pass.
        chosen: those that are computed again.
    """
    most, place, before = 0.0, 0, 0.0
    for number, (key, layer) in enumerate(layers.items()):
        if before + layer.held > most:
            most, place = before + layer.held, number
        before += 0.0 if key in chosen else layer.held
    return most, place


def choose_layers(layers: Mapping[Key, Layer], share: float) -> set[Key]:
    """Choose the layers to compute again so that a share of what all would save is saved, with little work.

    Greedy: as long as too much is held at some layer, one of those before it is added, the one that saves the most
    values for each FLOP. A layer after the fullest would save nothing there; so the last is never chosen. A larger
    share adds to the layers of a smaller one.

    Args:
        layers: in the order of the forward pass.
        share: 0 = none, 1 = as much as if all were computed again.
    """
    keys, chosen = list(layers), set[Key]()
    most, least = fullest(layers, ())[0], fullest(layers, keys)[0]
    target = most - share * (most - least)
    while True:
        held, place = fullest(layers, chosen)
        before = [key for key in keys[:place] if key not in chosen]
        if held <= target or not before:
            return chosen
        chosen.add(max(before, key=lambda key: layers[key].held / layers[key].flops))
