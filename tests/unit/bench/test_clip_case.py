"""The graphs that edit real clips, as they are described."""

import pytest

from consistent_video.bench.clip_case import METHODS, Case, describe
from consistent_video.scripts.graph import Node


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("checkpoint", ["demo", "some.safetensors"])
def test_each_method_has_a_graph_of_what_it_says(method: str, checkpoint: str) -> None:
    case = Case("clip", "style", method, "a cat", "a dog", checkpoint, 5, 96, 7, 3e-4, 13, '[null, "none", ""]')
    nodes = {node.title: node for node in describe(case) if isinstance(node, Node)}
    assert nodes["Invert"].inputs["steps"] == 13
    assert ("Tune" in nodes) == bool(METHODS[method].get("tuned"))
    assert ("Relation" in nodes) == ("relation" in method) == ("relation" in nodes["Edit"].inputs)
    assert ("Control" in nodes) == ("prompt-to-prompt" in method)
    if "Tune" in nodes:
        assert nodes["Tune"].inputs["steps"] == 7 and nodes["Invert"].inputs["model"] == "Tune"
