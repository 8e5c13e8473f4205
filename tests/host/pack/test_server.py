"""The pack as a user's ComfyUI sees it: loaded, listed, described and documented."""

import json

import pytest

from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.host import PACK, Host
from consistent_video.scripts.server import HostError

PREFIX = "ConsistentVideo_"
NODES = (
    "ApplyPromptTokens",
    "ApplyTune",
    "AttentionControl",
    "ClipMotion",
    "CompareGrid",
    "CovariateShiftReport",
    "EditScorecard",
    "ExportTuneAVideo",
    "INRBidirectionalDDIMInversion",
    "FitPlanner",
    "ImportTuneAVideo",
    "InflateUNet",
    "InspectVideoModel",
    "InterframeNoiseRelation",
    "InversionStability",
    "LoadDemoModel",
    "LoadInversion",
    "LoadPromptTokens",
    "LoadTune",
    "OneShotTune",
    "ReconstructionReport",
    "STAMFFAMPatch",
    "SaveInversion",
    "SavePromptTokens",
    "SaveTune",
    "SmoothSample",
    "SmoothSampler",
    "TuningOptions",
    "TuningPreview",
    "TunePromptTokens",
)  # the ids are a contract with saved workflows: none leaves this list


@pytest.fixture(scope="module")
def infos(host: Host) -> dict:
    return {name: info for name, info in host.object_info().items() if name.startswith(PREFIX)}


def list_specs(info: dict) -> dict:
    """Return a node's inputs by name, each [type, options]."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def test_the_pack_loads_without_complaint(host: Host) -> None:
    log = host.log_text()
    assert PACK in log
    assert "IMPORT FAILED" not in log
    assert "Cannot import" not in log


def test_every_frozen_node_is_there(infos: dict) -> None:
    assert not {PREFIX + name for name in NODES} - set(infos)


def test_every_node_is_in_the_packs_category_and_described(infos: dict) -> None:
    assert infos
    for name, info in infos.items():
        assert info["category"].startswith("Consistent Video/"), name
        assert info["description"], name


def test_every_input_and_output_has_a_tooltip(infos: dict) -> None:
    bare = []
    for name, info in infos.items():
        tooltips = {key: spec[1].get("tooltip") for key, spec in list_specs(info).items()}
        outputs = info.get("output_tooltips") or [None] * len(info["output"])
        tooltips |= zip(info["output_name"], outputs, strict=True)
        bare += [f"{name}: {key}" for key, tooltip in tooltips.items() if not tooltip]
    assert not bare


def test_every_workflow_is_listed_and_served_as_a_template(host: Host) -> None:
    files = sorted((ROOT / "workflows").glob("*.json"))
    assert files
    assert sorted(host.get("workflow_templates")[PACK]) == [file.stem for file in files]
    for file in files:
        served = host.get(f"api/workflow_templates/{PACK}/{file.name}")
        assert served == json.loads(file.read_text(encoding="utf-8"))


def test_every_node_has_a_help_page_that_names_its_inputs(host: Host, infos: dict) -> None:
    missing = []
    for name, info in infos.items():
        try:
            page = host.read(f"extensions/{PACK}/docs/{name}.md")
        except HostError:
            missing.append(name)
            continue
        missing += [f"{name}.{key}" for key in list_specs(info) if key not in page]
    assert not missing
