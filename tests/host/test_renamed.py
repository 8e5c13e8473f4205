"""Old workflows go on working where a node or an input has another id by now."""

import json
import shutil
from pathlib import Path

import pytest

from consistent_video.modules.host.files import register_folder
from consistent_video.nodes import NODES
from consistent_video.nodes.inflate import InflateUNet
from consistent_video.nodes.renamed import RENAMED, Renamed
from consistent_video.scripts.environment import ROOT, comfyui_tree, link
from consistent_video.scripts.host import Host, device_arguments
from consistent_video.scripts.workflow import CONTROLS, to_prompt

OLD = Path(__file__).with_name("old_prompt.json")
# As one would add them to the table, had the nodes ever had these ids.
ENTRIES = """
from .inflate import InflateUNet
from .patch import STAMFFAMPatch

RENAMED = (
    Renamed("ConsistentVideo_MakeClipModel", InflateUNet, {"image_model": "model", "frames_per_clip": "num_frames"}),
    Renamed("ConsistentVideo_ConnectFrames", STAMFFAMPatch, {"model": "model", "factor": "r"}),
)
"""


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of a later day, with nodes that were renamed."""
    pack = tmp_path_factory.mktemp("later")
    shutil.copy(ROOT / "__init__.py", pack)
    for name in ("demo", "modules", "web"):
        link(pack / name, ROOT / name)
    shutil.copytree(ROOT / "nodes", pack / "nodes", ignore=shutil.ignore_patterns("__pycache__"))
    with (pack / "nodes" / "renamed.py").open("a", encoding="utf-8") as table:
        table.write(ENTRIES)
    return pack


def test_an_old_workflow_runs_in_the_host(later: Path, tmp_path: Path) -> None:
    with Host(comfyui_tree(), tmp_path, device_arguments(), later) as host:
        run = host.run(json.loads(OLD.read_text(encoding="utf-8")), patience=120)
        assert "ModelPatcher" in run.text("4")
        (entry,) = host.get("history").values()
        info = host.object_info()["ConsistentVideo_STAMFFAMPatch"]["input"]["required"]
    prompt = entry["prompt"][2]
    assert prompt["2"]["class_type"] == "ConsistentVideo_InflateUNet"
    assert prompt["2"]["inputs"] == {"model": ["1", 0], "num_frames": 4}
    assert prompt["3"]["class_type"] == "ConsistentVideo_STAMFFAMPatch"
    values = {key: options["default"] for key, (_, options) in info.items() if "default" in options}
    assert values | {"model": ["2", 0], "r": 2} == {key: prompt["3"]["inputs"][key] for key in info}


def test_widget_values_are_counted_as_the_editor_saves_them() -> None:
    """By the values of our own workflows, which the converter reads independently."""
    register_folder()
    nodes = {node.GET_SCHEMA().node_id: node for node in NODES}
    infos = {name: node.GET_NODE_INFO_V1() for name, node in nodes.items()}
    seen = set()
    for path in sorted((ROOT / "workflows").glob("*.json")):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        ours = [{**node, "inputs": []} for node in workflow["nodes"] if node["type"] in nodes]
        prompt = to_prompt({"nodes": ours, "links": []}, infos)
        for node in ours:
            same = {entry.id: entry.id for entry in nodes[node["type"]].GET_SCHEMA().inputs}
            widgets = Renamed("Earlier", nodes[node["type"]], same).replacement().old_widget_ids
            found = dict(zip(widgets or [], node.get("widgets_values") or [], strict=True))
            assert found.pop("control_after_generate", "fixed") in CONTROLS
            assert found == prompt[str(node["id"])]["inputs"], (path.name, node["type"])
            seen.add(node["type"])
    assert len(seen) > len(nodes) / 2


def test_the_editor_keeps_every_output_and_input() -> None:
    inputs = {"image_model": "model", "frames_per_clip": "num_frames"}
    said = Renamed("Earlier", InflateUNet, inputs).replacement().as_dict()
    assert said["output_mapping"] == [{"old_idx": 0, "new_idx": 0}]
    assert {entry["old_id"]: entry["new_id"] for entry in said["input_mapping"]} == inputs


def test_the_table_names_what_is_there() -> None:
    register_folder()
    present = {node.GET_SCHEMA().node_id for node in NODES}
    assert not [entry.old_id for entry in RENAMED if entry.old_id in present or entry.node not in NODES]
    for entry in RENAMED:
        assert set(entry.inputs.values()) <= {each.id for each in entry.node.GET_SCHEMA().inputs}
