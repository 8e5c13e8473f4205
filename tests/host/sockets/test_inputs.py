"""What a prompt writes where something is to be connected, and numbers and choices that come by a link."""

import math

import pytest
import torch
from comfy_api.latest import io

from consistent_video.nodes import NODES
from consistent_video.nodes.node import FRAMES, check_input

WIDGETS = io.Int.Input | io.Float.Input | io.String.Input | io.Combo.Input | io.Boolean.Input
PROMPT = [[torch.zeros(1, 2, 3), {}]]


@pytest.fixture(scope="module")
def inputs() -> list[tuple[type[io.ComfyNode], io.Input]]:
    return [(node, each) for node in NODES for each in node.define_schema().inputs]


def refuse(node: type[io.ComfyNode], each: io.Input, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{each.id} is ") as caught:
        node.execute(**{each.id: value})
    assert len(str(caught.value)) < 1000


def test_a_value_is_refused_where_something_is_to_be_connected(inputs) -> None:
    sockets = [(node, each) for node, each in inputs if not isinstance(each, WIDGETS | io.AnyType.Input)]
    assert len(sockets) > 60
    for node, each in sockets:
        for value in (5, "x" * 10**6, 0.5, True, [], [1], {}, {"a": 1}, *([] if each.optional else [None])):
            if not (each.io_type == "CONDITIONING" and value == []):  # whose node counts them
                refuse(node, each, value)


def test_numbers_and_choices_are_checked_that_come_by_a_link(inputs) -> None:
    for node, each in inputs:
        if isinstance(each, io.Int.Input | io.Float.Input):
            for value in (math.nan, math.inf, each.min - 1, each.max + max(1, each.max / 1e6), "5"):
                refuse(node, each, value)
        elif isinstance(each, io.Combo.Input | io.String.Input):
            refuse(node, each, 7)


def test_a_clip_without_frames_is_refused_by_every_node_that_takes_clips(inputs) -> None:
    clips = [(node, each) for node, each in inputs if each.io_type in FRAMES]
    assert len(clips) > 30
    for node, each in clips:
        for frames in (torch.zeros(0, 0, 0, 3), torch.zeros(0, 4), {"samples": None}, {"samples": torch.zeros(0)}):
            with pytest.raises(ValueError, match=f"^{each.id} is a clip without frames: .* copy it again"):
                node.execute(**{each.id: frames})


@pytest.mark.parametrize("pair", [[1, {}], [PROMPT[0][0]], [PROMPT[0][0], 1], 5])
def test_a_conditioning_is_pairs_of_states_and_values(pair: object) -> None:
    expected = io.Conditioning.Input("positive")
    check_input(expected, PROMPT)
    with pytest.raises(ValueError, match="^positive is .* Connect it"):
        check_input(expected, [*PROMPT, pair])
