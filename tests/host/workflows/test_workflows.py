"""All workflows: each is run by a test and is what its description says."""

import json
from pathlib import Path

import pytest

from consistent_video.scripts.descriptions import MAKE, workflows
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.graph import build
from consistent_video.scripts.host import Host

from .graphs import SD15


def test_every_workflow_is_run_by_a_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    names = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert not {name for name in names if f'"{name}"' not in text} - SD15.keys()
    assert len(names) <= 16 and SD15.keys() == MAKE.keys()


def test_every_saved_video_has_the_sources_sound() -> None:
    for name, parts in workflows().items():
        sounds = [part.inputs.get("audio") for part in parts if getattr(part, "kind", "") == "CreateVideo"]
        assert set(sounds) <= {("Frames", "audio")}, name


COSTLY = {"OneShotTune", "TunePromptTokens", "INRBidirectionalDDIMInversion", "ClipMotion", "FitPlanner"}


def kinds_after(workflow: dict, title: str) -> set[str]:
    """Return the kinds of the nodes that run again where a node of a workflow is changed."""
    kinds = {node["id"]: node["type"].removeprefix("ConsistentVideo_") for node in workflow["nodes"]}
    reached = {node["id"] for node in workflow["nodes"] if node.get("title") == title}
    while further := {to for _, start, _, to, *_ in workflow["links"] if start in reached} - reached:
        reached |= further
    return {kinds[node] for node in reached}


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_prompts_of_the_edit_run_nothing_again_that_does_not_read_them(path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    assert not kinds_after(workflow, "Edited prompt") & COSTLY
    assert "OneShotTune" not in kinds_after(workflow, "Empty prompt")  # it may be a negative prompt
    assert kinds_after(workflow, "Source prompt") & COSTLY, "titles are as they were"


def test_the_workflows_are_what_their_descriptions_say(host: Host) -> None:
    written = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "workflows").glob("*.json")}
    info = host.object_info()
    assert written == {name: build(groups, info) for name, groups in workflows().items()}, "run build_workflows.py"
