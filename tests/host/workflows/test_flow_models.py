"""The workflows for flow-matching models, by the demo model as one of them in place of what their loaders load."""

import json
from pathlib import Path

import pytest

from consistent_video.demo.reader import read_colour
from consistent_video.scripts.clips import read_clip
from consistent_video.scripts.descriptions import workflows
from consistent_video.scripts.descriptions_of_flows import FLOWS
from consistent_video.scripts.graph import Node
from consistent_video.scripts.host import Host
from consistent_video.scripts.judge import get_psnr
from consistent_video.scripts.workflow import find_node, is_link, replace_node

from .graphs import DEMO_FRAMES, PATIENCE, SIDE, load_workflow, saved_frames

ENCODERS = "Text encoder", "Text encoders"
GUIDED = {"edit_flux"}  # by an input that the demo model does not have
VALUES = {"First frames.length": DEMO_FRAMES, "Scale.width": SIDE, "Scale.height": SIDE}
SHOWN, WANTED = (f"a {colour} circle on a white background" for colour in ("red", "blue"))
TEXTS = {"Source prompt.text": SHOWN, "Edited prompt.text": WANTED}
SAVED = "edit", "reconstruction", "autoencoder round trip"


def by_demo_model(prompt: dict) -> dict:
    """Return a prompt whose model, text encoder and VAE are the demo model's, as a flow."""
    loaders = {key for key, node in prompt.items() if node["_meta"]["title"] in (*ENCODERS, "VAE")}
    model = find_node(prompt, "Model")
    slots = {"clip": 1, "vae": 2}
    changed = replace_node(prompt, "Model", "ConsistentVideo_LoadDemoModel", {"prediction": "flow"})
    for node in changed.values():
        for name, value in node["inputs"].items():
            if is_link(value) and value[0] in {*loaders, model}:
                node["inputs"][name] = [model, slots.get(name, 0)]
    return {key: node for key, node in changed.items() if key not in loaders}


@pytest.mark.parametrize("name", FLOWS)
def test_it_runs_and_edits(host: Host, demo_clip: Path, name: str) -> None:
    prompt = by_demo_model(load_workflow(host, name, 6, **VALUES, **TEXTS, **{"Source clip.file": demo_clip.name}))
    run = host.run(prompt, patience=PATIENCE)
    report = json.loads(run.text(find_node(prompt, "Inversion report")))
    assert report["frames"] == DEMO_FRAMES and 0.3 < report["sigma_start"] < 0.9
    source = read_clip(demo_clip)[0]
    edit, back, decoded = (saved_frames(host, prompt, run, f"Save {title}") for title in SAVED)
    assert edit.shape == source.shape and get_psnr(back, decoded) > 25
    if name not in GUIDED:
        assert read_colour(edit) == DEMO_FRAMES * ["blue"] != read_colour(back)


def test_each_has_the_attention_that_its_family_takes() -> None:
    for name in FLOWS:
        nodes = {part.title: part for part in workflows()[name] if isinstance(part, Node)}
        spatial = nodes["Patch"].inputs.get("spatial")
        assert spatial == ("sparse-causal" if name == "edit_z_image" else None)
        assert nodes["Patch"].inputs["temporal_strength"] == 0
