"""All workflows: each is run by a test and is what its description says."""

import json
from pathlib import Path

import pytest

from consistent_video.scripts.descriptions import (
    DEMO_TASK,
    MAKE,
    OWN_DEMO_TASKS,
    PRESETS,
    SD15_TASK,
    workflows,
    write_all,
)
from consistent_video.scripts.descriptions_of_flows import FLOWS
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.graph import Node
from consistent_video.scripts.host import Host
from consistent_video.scripts.workflow import find_node, is_link, to_prompt

from .graphs import SD15


def test_every_workflow_is_run_by_a_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    names = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    twins = {name for name in MAKE if f'"demo_{name}"' in text}
    assert not {name for name in names if f'"{name}"' not in text} - twins - SD15.keys() - PRESETS.keys() - FLOWS.keys()
    assert (
        FLOWS.keys() <= names
        and len(names - PRESETS.keys() - FLOWS.keys()) <= 20
        and SD15.keys() <= MAKE.keys()
        and PRESETS.keys() <= names
    )


def test_the_workflow_for_sdxl_is_the_main_one_but_for_checkpoint_and_size() -> None:
    main, large = (json.loads((ROOT / "workflows" / f"{name}.json").read_text()) for name in ("edit", "edit_sdxl"))
    assert main["links"] == large["links"]
    differing = {
        one["title"]: (one["widgets_values"], other["widgets_values"])
        for one, other in zip(main["nodes"], large["nodes"], strict=True)
        if one.get("widgets_values") != other.get("widgets_values")
    }
    assert differing.keys() == {"Model", "Scale"}
    assert differing["Model"][1] == ["sd_xl_base_1.0.safetensors"] and 1024 in differing["Scale"][1]


def test_the_workflow_for_flux_is_guided_by_an_input_of_the_model() -> None:
    parts = workflows()["edit_flux"]
    nodes = {part.title: part for part in parts if isinstance(part, Node)}
    guided = {
        title: nodes[node.inputs["positive"]].inputs for title, node in nodes.items() if "positive" in node.inputs
    }
    assert {title: (given["conditioning"], given["guidance"]) for title, given in guided.items()} == {
        "Invert": ("Source prompt", 1.0),
        "Edit": ("Edited prompt", 3.5),
        "Reconstruction": ("Source prompt", 1.0),
    }
    assert nodes["Edit"].inputs["cfg"] == nodes["Reconstruction"].inputs["cfg"] == 1
    read = {name: {node.inputs.get(name) for node in nodes.values()} - {None} for name in ("clip", "vae")}
    assert read == {"clip": {"Text encoders"}, "vae": {"VAE"}}


def test_every_saved_video_has_the_sources_sound() -> None:
    for name, parts in workflows().items():
        sounds = [part.inputs.get("audio") for part in parts if getattr(part, "kind", "") == "CreateVideo"]
        assert set(sounds) <= {("Frames", "audio")}, name


SAMPLES = {"SmoothSample", "SamplerCustomAdvanced", "KSampler"}
LEARNS = {"OneShotTune", "TunePromptTokens", "NullTextOptimization"}
JUDGES = {"InversionStability", "ReconstructionReport", "CovariateShiftReport", "CompareGrid", "EditScorecard"}
COSTLY = SAMPLES | LEARNS | JUDGES | {"INRBidirectionalDDIMInversion", "ClipMotion", "FitPlanner"}
EDITS = {"Edit", "Edit plain", "Edit tied", "Sharpen", "Grid", "Scorecard"}
OF_EDIT = {*EDITS, "Invert steadied"}
OF_INVERSION = EDITS | {"Stability", "Reconstruct", "Reconstruction", "Null text"}
ALL_BUT_MOTION = OF_INVERSION | OF_EDIT | {"Invert", "Invert to reconstruct", "Shift"}
# What may run again where a node is changed, of what is costly: what reads it, and nothing that it has no effect on.
RUNS = {
    "Edited prompt": OF_EDIT | {"Stability"},
    "Edited text": EDITS | {"Stability"},
    "Source prompt": ALL_BUT_MOTION | {"Tune", "Tokens"},
    "Empty prompt": EDITS | {"Invert", "Null text"},  # it may be a negative prompt
    "Preview prompt": ALL_BUT_MOTION | {"Tune"},  # the preview is part of the tuning
    "Tune": ALL_BUT_MOTION | {"Tune"},
    "Tokens": ALL_BUT_MOTION | {"Tokens"},
    "Options": ALL_BUT_MOTION | {"Tune", "Tokens", "Plan"},
    "Patch": ALL_BUT_MOTION | {"Tune", "Tokens", "Plan"},
    "Windows": ALL_BUT_MOTION,
    "Motion": OF_EDIT | {"Motion"},
    "Relation": EDITS,
    "Invert": OF_INVERSION | {"Invert"},
    "Slices": OF_INVERSION | {"Invert"},
    "Null text": EDITS | {"Null text"},
    "Invert to reconstruct": {"Invert to reconstruct", "Reconstruction"},
    "Control": EDITS,
    "Steer": EDITS,
    "Steer source": ALL_BUT_MOTION | {"Tune"},
    "Steer edit": EDITS,
    "Edges": ALL_BUT_MOTION | {"Tune"},
    "Guide": EDITS,
    "Sampler": EDITS,
    "Edit": OF_EDIT,
    "Sharpen": {"Sharpen"},
    "Edit plain": {"Edit plain", "Grid"},
    "Edit tied": EDITS - {"Edit plain"},
    "Reconstruction": {"Reconstruction"},
    "Save tune": set(),
    "Save tokens": set(),
    "Save inversion": set(),
    "Save edit": set(),
}


def nodes_after(prompt: dict, title: str) -> dict[str, str]:
    """Return the kinds of the nodes that run again where a node of a prompt is changed, by their titles.

    ComfyUI runs a node again where its inputs or those of any node before it have changed.
    """
    feeds = [(value[0], key) for key, node in prompt.items() for value in node["inputs"].values() if is_link(value)]
    reached = {find_node(prompt, title)}
    while further := {to for start, to in feeds if start in reached} - reached:
        reached |= further
    return {
        prompt[key]["_meta"]["title"]: prompt[key]["class_type"].removeprefix("ConsistentVideo_") for key in reached
    }


def read_prompt(host: Host, name: str) -> dict:
    return to_prompt(json.loads(WRITTEN[name].read_text(encoding="utf-8")), host.object_info())


WRITTEN = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_change_runs_nothing_again_that_it_has_no_effect_on(host: Host, name: str) -> None:
    prompt = read_prompt(host, name)
    titles = {node["_meta"]["title"] for node in prompt.values()}
    for title in titles & RUNS.keys():
        ran = {name for name, kind in nodes_after(prompt, title).items() if kind in COSTLY}
        assert ran <= RUNS[title], title
    assert {"Source prompt", "Edited prompt"} <= titles
    again = nodes_after(prompt, "Source prompt").values()
    assert COSTLY & set(again), "titles are as they were"


@pytest.mark.parametrize("name", WRITTEN)
def test_another_edited_prompt_samples_each_edit_once_and_is_written_in_one_place(host: Host, name: str) -> None:
    prompt = read_prompt(host, name)
    texts = {task.after for task in (DEMO_TASK, SD15_TASK, *OWN_DEMO_TASKS.values())}
    inputs = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}
    written = {title for title, given in inputs.items() if texts & {str(one) for one in given.values()}}
    (title,) = written - {"Preview prompt"}  # two would have to be kept alike
    ran = nodes_after(prompt, title)
    edits = inputs.keys() & EDITS - {"Grid", "Scorecard"}
    assert {name for name, kind in ran.items() if kind in SAMPLES} == edits


def test_the_workflows_and_blueprints_are_what_their_descriptions_say(host: Host) -> None:
    paths = [path for folder in ("workflows", "subgraphs") for path in (ROOT / folder).glob("*.json")]
    written = {path.relative_to(ROOT).as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in paths}
    assert written == write_all(host.object_info(), host.version()), "run build_workflows.py"
