"""The pack as a user's ComfyUI sees it: loaded, listed, described and documented."""

import json
from types import SimpleNamespace

import pytest

from consistent_video.modules.files.host import register_folder
from consistent_video.nodes.sample import InterframeNoiseRelation
from consistent_video.nodes.tune import OneShotTune
from consistent_video.nodes.tune_files import SaveTune
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
    "LoadDemoClip",
    "LoadDemoModel",
    "LoadInversion",
    "LoadPromptTokens",
    "LoadTune",
    "NullTextOptimization",
    "OneShotTune",
    "ReconstructionReport",
    "STAMFFAMPatch",
    "SaveInversion",
    "SavePromptTokens",
    "SaveTune",
    "SliceDenoiser",
    "SmoothSample",
    "SmoothSampler",
    "SteadyFrames",
    "TuningOptions",
    "TuningPreview",
    "TunePromptTokens",
)  # the ids are a contract with saved workflows: none leaves this list

EXPERIMENTAL = {"FitPlanner", "TunePromptTokens"}

# Defaults of settings that shape a result: the papers' unless said otherwise.
DEFAULTS = {
    "STAMFFAMPatch": {"preset": "EI²", "r": 4, "downsample": "area", "spatial": "as preset", "temporal": "as preset"},
    "OneShotTune": {  # EI²'s rate, by our recipe; a smoothing loss with its paper's weight
        "steps": 200,
        "learning_rate": 3e-5,
        "recipe": "fast",
        "smoothing": "none",
        "smoothing_weight": -1,
        "consistency_weight": 0,
    },
    "TuningOptions": {  # Tune-A-Video's code's
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "max_grad_norm": 1,
        "min_snr_gamma": 0,
        "backward_weight": 0.5,  # INR Smooth's, as the next
        "forward_weight": 0.5,
        "coupling": "pairwise",
    },
    "INRBidirectionalDDIMInversion": {  # INR Smooth's gamma; DDIM inversion as Tune-A-Video's code does it
        "steps": 50,
        "gamma": 0.5,
        "direction": "both",
        "label": "next",
        "cfg": 1,
        "denoise": 0,  # ours: matched to the latent's size
    },
    "SmoothSample": {"cfg": 7.5, "cfg_end": 1, "cfg_rescale": 0, "eta": 0},
    "NullTextOptimization": {"cfg": 7.5, "inner_steps": 10, "learning_rate": 1e-2, "tolerance": 1e-5},
    "InterframeNoiseRelation": {"strength": 0.5, "start": 0, "end": 0.8, "passes": 8},  # ours, chosen by measurement
    "SteadyFrames": {"strength": 0.5, "passes": 8, "direction": "both", "keep_texture": 0},  # ours, as the relation's
    "AttentionControl": {"cross": "refine", "cross_end": 0.8, "self_attention": "replace", "self_end": 0.5},
    "TunePromptTokens": {"shared_tokens": 4, "frame_tokens": 2, "steps": 300, "learning_rate": 1e-2},
}


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


def test_few_nodes_are_experimental(infos: dict) -> None:
    flagged = {name.removeprefix(PREFIX) for name, info in infos.items() if info.get("experimental")}
    assert flagged == EXPERIMENTAL


@pytest.mark.parametrize("node", DEFAULTS)
def test_the_defaults_are_these(infos: dict, node: str) -> None:
    specs = list_specs(infos[PREFIX + node])
    assert {name: specs[name][1].get("default") for name in DEFAULTS[node]} == DEFAULTS[node]


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


def test_every_blueprint_is_listed_and_served(host: Host) -> None:
    files = {file.stem: file for file in (ROOT / "subgraphs").glob("*.json")}
    listed = {
        entry["name"]: key
        for key, entry in host.get("global_subgraphs").items()
        if entry["info"]["node_pack"] == f"custom_nodes.{PACK}"
    }
    assert files and listed.keys() == files.keys()
    for name, key in listed.items():
        served = json.loads(host.get(f"global_subgraphs/{key}")["data"])
        (node,), (definition,) = served["nodes"], served["definitions"]["subgraphs"]
        assert node["type"] == definition["id"] and definition["name"] == name and definition["description"]
        assert served == json.loads(files[name].read_text(encoding="utf-8"))


def test_every_node_has_help_pages_that_name_its_inputs(host: Host, infos: dict) -> None:
    """In English and in Chinese; the editor looks for the page of its language, then for the one without."""
    missing = []
    for name, info in infos.items():
        for page in (f"{name}.md", f"{name}/zh.md"):
            try:
                text = host.read(f"extensions/{PACK}/docs/{page}")
            except HostError:
                missing.append(page)
                continue
            missing += [f"{page}: {key}" for key in list_specs(info) if key not in text]
    assert not missing


SAVE = {"tune": None}
RELATE = {"strength": 0.5, "start": 0.0, "end": 1.0, "keep_texture": 0.0}
TUNE = {"model": None, "positive": None, "latent": None}


@pytest.mark.parametrize(
    ("node", "given", "rest"),
    [
        (SaveTune, {"filename_prefix": "../outside"}, SAVE),
        (SaveTune, {"filename_prefix": "clips/"}, SAVE),
        (InterframeNoiseRelation, {"frame_strengths": "1, a", "step_strengths": ""}, RELATE),
        (InterframeNoiseRelation, {"frame_strengths": "", "step_strengths": "1, 2"}, RELATE),
        (OneShotTune, {"snapshots": "25%, half", "steps": 100}, TUNE),
        (OneShotTune, {"snapshots": "200", "steps": 100}, TUNE),
        (OneShotTune, {"snapshots": "", "steps": 0}, TUNE),
    ],
)
def test_what_values_alone_decide_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, node: type, given: dict, rest: dict
) -> None:
    """In the words in which the node itself refuses it."""
    register_folder()
    monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="1"), raising=False)
    with pytest.raises(ValueError) as refused:
        node.execute.__func__.__wrapped__(node, **given, **rest)  # without the checks of what is connected
    assert node.validate_inputs(**given) == str(refused.value)
    assert node.validate_inputs(**dict.fromkeys(given)) is node.validate_inputs() is True, "linked: not known yet"
