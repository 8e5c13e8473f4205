"""Conversion of the editor's workflows into prompts."""

from copy import deepcopy

import pytest

from consistent_video.scripts.workflow import WorkflowError, find_node, replace_node, set_values, to_prompt

ENCODING = {
    "auto": {"required": {}},
    "h264": {"required": {"crf": ["FLOAT", {"default": 23.0}]}, "optional": {"tune": ["STRING", {}]}},
}
OBJECT_INFO = {
    "Load": {"display_name": "Load It", "input": {"required": {"file": [["a.mp4", "b.mp4"], {"image_upload": True}]}}},
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "sigma": ["FLOAT", {"forceInput": True}],
            },
            "optional": {"mode": ["COMBO", {"options": ["fixed", "free"]}], "note": ["STRING", {"default": "-"}]},
        }
    },
    "Save": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "codec": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {"options": [{"key": key, "inputs": inputs} for key, inputs in ENCODING.items()]},
                ],
                "name": ["STRING", {}],
            }
        }
    },
}


def make_node(number: int, kind: str, values: list, links: dict | None = None, **rest: object) -> dict:
    inputs = [{"name": name, "type": "MODEL", "link": link} for name, link in (links or {}).items()]
    outputs = [{"name": "MODEL", "type": "MODEL"}]
    return {"id": number, "type": kind, "widgets_values": values, "inputs": inputs, "outputs": outputs, **rest}


def make_workflow() -> dict:
    """Load -> (bypassed Sample) -> Reroute -> Sample -> Save, with a note and a muted node beside."""
    nodes = [
        make_node(1, "Load", ["b.mp4", "image"]),
        make_node(2, "Sample", [1, "fixed", 2], {"model": 1}, mode=4),
        make_node(3, "Reroute", [], {"": 2}),
        make_node(4, "Sample", [7, "randomize", 30, "fixed"], {"model": 3, "sigma": None}, title="Main"),
        make_node(5, "Save", ["h264", 9.0, "film", "clip"], {"model": 4}),
        make_node(6, "MarkdownNote", ["read me"]),
        make_node(7, "Sample", [1, "fixed"], mode=2),
        make_node(8, "Save", ["auto", "other"], {"model": 5}, title="Second"),
    ]
    links = [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "*"], [3, 3, 0, 4, 0, "MODEL"], [4, 4, 0, 5, 0, "MODEL"]]
    return {"nodes": nodes, "links": [*links, [5, 7, 0, 8, 0, "MODEL"]]}


@pytest.fixture
def prompt() -> dict:
    return to_prompt(make_workflow(), OBJECT_INFO)


def test_the_prompt_holds_the_nodes_that_run(prompt: dict) -> None:
    assert {key: node["class_type"] for key, node in prompt.items()} == {
        "1": "Load", "4": "Sample", "5": "Save", "8": "Save",
    }  # fmt: skip


def test_widget_values_get_their_names(prompt: dict) -> None:
    assert prompt["1"]["inputs"] == {"file": "b.mp4"}
    assert prompt["4"]["inputs"] == {"model": ["1", 0], "seed": 7, "steps": 30, "mode": "fixed", "note": "-"}


def test_a_dynamic_combo_takes_the_values_of_its_choice(prompt: dict) -> None:
    chosen = {"codec": "h264", "codec.crf": 9.0, "codec.tune": "film", "name": "clip"}
    assert prompt["5"]["inputs"] == {"model": ["4", 0], **chosen}
    assert prompt["8"]["inputs"] == {"codec": "auto", "name": "other"}


def test_titles_are_kept(prompt: dict) -> None:
    assert [node["_meta"]["title"] for node in prompt.values()] == ["Load It", "Main", "Save", "Second"]


def test_an_unknown_type_is_named() -> None:
    workflow = make_workflow()
    workflow["nodes"][0]["type"] = "Missing"
    with pytest.raises(WorkflowError, match="Missing"):
        to_prompt(workflow, OBJECT_INFO)


def test_values_are_set_by_title_or_type(prompt: dict) -> None:
    before = deepcopy(prompt)
    changed = set_values(prompt, {("Main", "steps"): 5, ("Load", "file"): "a.mp4"})
    assert (changed["4"]["inputs"]["steps"], changed["1"]["inputs"]["file"]) == (5, "a.mp4")
    assert prompt == before


def test_what_cannot_be_set_is_named(prompt: dict) -> None:
    with pytest.raises(WorkflowError, match="stepz"):
        set_values(prompt, {("Main", "stepz"): 5})
    with pytest.raises(WorkflowError, match="0 nodes are called 'Other'"):
        set_values(prompt, {("Other", "steps"): 5})


def test_a_title_comes_before_a_type(prompt: dict) -> None:
    assert find_node(prompt, "Save") == "5"
    assert find_node(prompt, "Second") == "8"


def test_a_replaced_node_keeps_its_place(prompt: dict) -> None:
    changed = replace_node(prompt, "Load It", "Other", {"name": "x"})
    assert changed["1"] == {"class_type": "Other", "inputs": {"name": "x"}, "_meta": {"title": "Load It"}}
    assert changed["4"] == prompt["4"]
