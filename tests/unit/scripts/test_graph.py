"""Workflows built from descriptions are those that the converter reads back."""

import pytest

from consistent_video.scripts.graph import SOURCES, Group, Node, build
from consistent_video.scripts.node import Packed, Subgraph
from consistent_video.scripts.project import PACK, VERSION
from consistent_video.scripts.workflow import is_link, to_prompt

INFO = {
    "Load": {
        "name": "Load",
        "python_module": "comfy_extras.nodes_video",
        "input": {"required": {"file": [["a.mp4", "b.mp4"]], "seed": ["INT", {"control_after_generate": True}]}},
        "output": ["IMAGE", "FLOAT"],
        "output_name": ["images", "fps"],
    },
    "Save": {
        "name": "Save",
        "python_module": f"custom_nodes.{PACK}",
        "input": {
            "required": {"images": ["IMAGE"], "fps": ["FLOAT", {"default": 30.0}]},
            "optional": {"text": ["STRING", {"default": "x", "multiline": True}]},
        },
        "output": [],
        "output_name": [],
    },
}
LOAD = Node("clip", "Load", file="b.mp4")
SAVE = Node("out", "Save", images="clip", fps=("clip", "fps"), text="y")


def make(**changes) -> dict:
    return build([Group("1", "what it is"), LOAD, Group("2"), SAVE.but(**changes)], INFO)


def test_values_and_links_come_back_also_into_widgets() -> None:
    prompt = to_prompt(make(), INFO)
    assert {node["_meta"]["title"]: node["inputs"] for node in prompt.values()} == {
        "clip": {"file": "b.mp4", "seed": ""},
        "out": {"images": ["1", 0], "fps": ["1", 1], "text": "y"},
    }


def test_both_ends_of_a_link_know_it() -> None:
    workflow = make()
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(workflow["links"]) == 2
    for number, source, slot, target, place, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][slot]["links"] and nodes[source]["outputs"][slot]["type"] == kind
        assert nodes[target]["inputs"][place]["link"] == number and nodes[target]["inputs"][place]["type"] == kind


def test_nodes_lie_apart_inside_their_groups() -> None:
    workflow = make()
    for group, title in zip(workflow["groups"], ("clip", "out"), strict=True):
        (node,) = (node for node in workflow["nodes"] if node.get("title") == title)
        x, y, width, height = group["bounding"]
        assert x < node["pos"][0] and node["pos"][0] + node["size"][0] < x + width
        assert y < node["pos"][1] and node["pos"][1] + node["size"][1] < y + height


def test_a_socket_takes_the_first_output_of_its_type_or_the_one_named() -> None:
    info = {**INFO, "Load": {**INFO["Load"], "output": ["FLOAT", "IMAGE", "IMAGE"], "output_name": ["fps", "a", "b"]}}
    for given, slot in (("clip", 1), (("clip", "b"), 2)):
        workflow = build([Group("1"), LOAD, SAVE.but(images=given)], info)
        assert [link[1:4] for link in workflow["links"]] == [[1, slot, 2], [1, 0, 2]]


@pytest.mark.parametrize("changes", [{"image": ("clip", "images")}, {"txt": "y"}])
def test_unknown_inputs_are_refused(changes: dict) -> None:
    with pytest.raises(KeyError, match="Save has no input (image|txt)"):
        make(**changes)


@pytest.mark.parametrize("given", [("clip", "pictures"), "clip"])
def test_unknown_outputs_are_refused(given) -> None:
    info = {**INFO, "Load": {**INFO["Load"], "output": ["LATENT", "FLOAT"]}}
    with pytest.raises(ValueError):
        build([Group("1"), LOAD, SAVE.but(images=given)], info)


def test_nodes_name_their_pack_and_version_and_the_files_that_they_need() -> None:
    file = "v1-5-pruned-emaonly-fp16.safetensors"
    workflow = build([Group("1"), LOAD.but(file=file), SAVE], INFO, core="0.30.0")
    loads, saves = (node["properties"] for node in workflow["nodes"])
    address = f"https://huggingface.co/{SOURCES[file][1]}/resolve/main/{file}"
    assert loads == {
        "Node name for S&R": "Load",
        "cnr_id": "comfy-core",
        "ver": "0.30.0",
        "models": [{"name": file, "url": address, "directory": "checkpoints"}],
    }
    assert saves == {"Node name for S&R": "Save", "cnr_id": PACK, "ver": VERSION}


MIX = {
    "name": "Mix",
    "python_module": "nodes",
    "input": {"required": {"images": ["IMAGE"], "other": ["IMAGE"], "amount": ["FLOAT", {"default": 0.5}]}},
    "output": ["IMAGE", "FLOAT"],
    "output_name": ["images", "amount"],
}
PARTS = [
    Group("a"),
    Node("first", "Mix", images="clip", other="paint", amount=0.25),
    Node("second", "Mix", images="first", other="clip"),
]
INPUTS = {"clip": ("clip", "IMAGE"), "paint": ("paint", "IMAGE")}
BOTH = Subgraph(
    "Both",
    "",
    PARTS,
    INPUTS,
    {"amount": ("first", "amount")},
    {"mixed": ("second", "images"), "raw": ("first", "images")},
)


@pytest.mark.parametrize("given", [{}, {"amount": 0.75}, {"amount": ("clip", "fps")}])
def test_a_subgraph_runs_as_its_parts_would(given: dict) -> None:
    info = {**INFO, "Mix": MIX}
    around = [Group("1"), LOAD, Node("paint", "Load")], [SAVE.but(images=("Both", "mixed"))]
    packed = to_prompt(build([*around[0], Packed(BOTH, clip="clip", paint="paint", **given), *around[1]], info), info)
    parts = [PARTS[0], PARTS[1].but(**given), PARTS[2], SAVE.but(images=("second", "images"))]
    plain = to_prompt(build([*around[0], *parts], info), info)
    titles = [{key: node["_meta"]["title"] for key, node in prompt.items()} for prompt in (packed, plain)]
    named = [
        {
            names[key]: {
                name: (names[value[0]], value[1]) if is_link(value) else value for name, value in node["inputs"].items()
            }
            for key, node in prompt.items()
        }
        for prompt, names in zip((packed, plain), titles, strict=True)
    ]
    assert named[0] == named[1] and len(packed) == 5


def test_a_subgraph_without_what_feeds_it_lacks_it_alone() -> None:
    info = {**INFO, "Mix": MIX}
    prompt = to_prompt(build([Group("1"), Packed(BOTH)], info), info)
    first, second = (prompt[f"1:{number}"]["inputs"] for number in (101, 102))
    assert first == {"amount": 0.25} and second == {"amount": 0.5, "images": ["1:101", 0]}
