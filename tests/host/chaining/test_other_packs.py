"""AnimateDiff-Evolved, Advanced-ControlNet, VideoHelperSuite and KJNodes next to this pack, where they are installed.

The environment variable CONSISTENT_VIDEO_OTHER_PACKS names the folder that holds them, see CONTRIBUTING.md.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from consistent_video.scripts.clips import read_clip
from consistent_video.scripts.environment import ROOT, comfyui_tree
from consistent_video.scripts.graph import Group, Node, Workflow, build
from consistent_video.scripts.host import PACK, Host, device_arguments
from consistent_video.scripts.parts import DEMO, EDITED, INFLATE, SOURCE, checkpoint, invert_source, ours, prompt
from consistent_video.scripts.server import GraphError
from consistent_video.scripts.workflow import find_node, to_prompt

from ..edits import away
from ..small import write_sd15_checkpoint, write_sd15_controlnet
from ..workflows.graphs import PATIENCE, load_workflow

VARIABLE = "CONSISTENT_VIDEO_OTHER_PACKS"
CLIP, FRAMES, WINDOW = "red_circle.mp4", 6, 3
NAMES = ("comfyui-animatediff-evolved", "comfyui-advanced-controlnet", "comfyui-videohelpersuite", "comfyui-kjnodes")
EVOLVED, ADVANCED, HELPERS, KJ = NAMES
ORDERS = ("ours first", "theirs first")
Graph = list[Node]


@pytest.fixture(autouse=True)
def the_base_model_stays() -> None:
    """These tests have no model in this process."""


@pytest.fixture(scope="module")
def packs() -> dict[str, Path]:
    """The other packs that are there, by name in lower case."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} names no folder with other node packs")
    folders = sorted(path.parent for path in Path(os.environ[VARIABLE]).glob("*/__init__.py"))
    found = {folder.name.lower(): folder for folder in folders}
    if not found.keys() & set(NAMES):
        pytest.skip(f"{os.environ[VARIABLE]} holds none of {', '.join(NAMES)}")
    return found


@pytest.fixture
def needs(packs: dict[str, Path], request: pytest.FixtureRequest) -> None:
    """Skip a test whose packs are not there."""
    absent = [name for mark in request.node.iter_markers("needs") for name in mark.args if name not in packs]
    if absent:
        pytest.skip(f"{os.environ[VARIABLE]} does not hold {', '.join(absent)}")


def prepare(base: Path, packs: dict[str, Path], theirs_first: bool) -> tuple[str, ...]:
    """Give a server other packs, the demo clip, and a model that core's loaders take.

    Returns:
        Its arguments. Packs in a folder that is the default are loaded before those of the base directory.
    """
    for folder in ("input", "further", "models/checkpoints", "models/controlnet"):
        (base / folder).mkdir(parents=True)
    shutil.copy(ROOT / "demo" / "clips" / CLIP, base / "input")
    for folder in packs.values():
        (base / "further" / folder.name).symlink_to(folder, target_is_directory=True)
    paths = base / "extra_model_paths.yaml"  # JSON is YAML
    paths.write_text(json.dumps({"other": {"is_default": theirs_first, "custom_nodes": str(base / "further")}}))
    write_sd15_checkpoint(base / "models" / "checkpoints" / "small.safetensors")
    write_sd15_controlnet(base / "models" / "controlnet" / "small.safetensors")
    return (*device_arguments(), "--extra-model-paths-config", str(paths))


@pytest.fixture(scope="module")
def their_packages(packs: dict[str, Path]) -> Iterator[None]:
    """Let servers import from `site` in the packs' folder, where it is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(os.environ[VARIABLE]) / "site"), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module", params=ORDERS)
def together(request, packs, their_packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A server with all packs, in either order."""
    base = tmp_path_factory.mktemp("together")
    arguments = prepare(base, packs, request.param == "theirs first")
    with Host(comfyui_tree(), base, arguments) as server:
        yield server


@pytest.fixture(scope="module")
def theirs(packs, their_packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A server with the other packs alone."""
    base = tmp_path_factory.mktemp("theirs")
    arguments = prepare(base, packs, theirs_first=False)
    loaded = [folder.name for folder in packs.values()]
    with Host(
        comfyui_tree(), base, (*arguments, "--disable-all-custom-nodes", "--whitelist-custom-nodes", *loaded)
    ) as server:
        yield server


def run(host: Host, nodes: Workflow, title: str = "Save"):
    """Run a graph and return what one of its nodes saved: a latent or pictures."""
    info = host.object_info()
    graph = to_prompt(build([Group("Graph"), *nodes], info), info)
    done = host.run(graph, patience=PATIENCE)
    return read_files(host.files(done, find_node(graph, title)))


def read_files(files: list[Path]) -> Tensor:
    if files[0].suffix == ".latent":
        return load_file(files[0])["latent_tensor"]
    return torch.stack([torch.from_numpy(numpy.array(Image.open(file))) for file in files])


def owners(host: Host) -> dict[str, str]:
    """Return the modules that a server's nodes come from, by their ids."""
    return {name: info["python_module"] for name, info in host.object_info().items()}


def test_all_load_in_either_order(together: Host, packs: dict[str, Path]) -> None:
    log = together.log_text()
    loaded = re.findall(r"seconds(.*): .*[/\\](.+)", log)
    assert {name.lower() for _, name in loaded} >= {PACK, *packs}
    assert not [name for failed, name in loaded if failed] and "Cannot import" not in log


def test_nodes_of_both_sides_are_all_there_and_their_own(host: Host, together: Host, theirs: Host) -> None:
    found = owners(together)
    for side in (owners(host), owners(theirs)):
        assert side.items() <= found.items()
    assert found.keys() == owners(host).keys() | owners(theirs).keys()
    added = owners(theirs).items() - owners(host).items()
    assert added and not any(name.startswith("ConsistentVideo_") for name, _ in added)


def main_workflow(host: Host) -> dict:
    """Return the main graph that saves the edit, as a latent, as pictures and as a video."""
    left_out = {"Save reconstruction", "Save autoencoder round trip"}
    graph = {
        key: node for key, node in load_workflow(host, "demo_edit").items() if node["_meta"]["title"] not in left_out
    }
    made = {"Save latent": ("SaveLatent", "samples", "Edit"), "Save pictures": ("SaveImage", "images", "Decode edit")}
    for title, (kind, name, source) in made.items():
        inputs = {name: [find_node(graph, source), 0], "filename_prefix": "edit"}
        graph[title] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return graph


def edit_of(host: Host, graph: dict) -> tuple[Tensor, Tensor, Path]:
    """Return the edit of the main graph: latent, pictures and video."""
    done = host.run(graph, patience=PATIENCE)
    latent, pictures = (read_files(host.files(done, title)) for title in ("Save latent", "Save pictures"))
    return latent, pictures, host.files(done, find_node(graph, "Save edit"))[-1]


@pytest.fixture(scope="module")
def edited(host: Host) -> tuple[Tensor, Tensor, Path]:
    """The edit where no other packs are."""
    shutil.copy(ROOT / "demo" / "clips" / CLIP, host.base / "input")
    return edit_of(host, main_workflow(host))


def test_our_edit_is_the_same_with_them(together: Host, edited) -> None:
    latent, pictures, video = edit_of(together, main_workflow(together))
    assert torch.equal(latent, edited[0]) and torch.equal(pictures, edited[1])
    assert torch.equal(read_clip(video)[0], read_clip(edited[2])[0])


@pytest.mark.needs(HELPERS)
@pytest.mark.usefixtures("needs")
def test_our_edit_of_what_videohelpersuite_loads_and_saves(together: Host, edited) -> None:
    graph = main_workflow(together)
    source, frames, save, video = (
        find_node(graph, name) for name in ("Source clip", "Frames", "Save edit", "Video of edit")
    )
    loader = {"video": CLIP, "force_rate": 0, "custom_width": 0, "custom_height": 0}
    loader |= {"frame_load_cap": 0, "skip_first_frames": 0, "select_every_nth": 1}
    saver = {"images": [find_node(graph, "Decode edit"), 0], "frame_rate": 8, "loop_count": 0, "pingpong": False}
    saver |= {"filename_prefix": "edit", "format": "video/h264-mp4", "save_output": True}
    graph[frames] |= {"class_type": "VHS_LoadVideo", "inputs": loader}
    graph[save] |= {"class_type": "VHS_VideoCombine", "inputs": saver}
    del graph[source], graph[video]
    latent, pictures, video = edit_of(together, graph)
    assert away(latent, edited[0]) < 0.05, "its decoder may round colours in another way"
    written, rate = read_clip(video)
    assert video.suffix == ".mp4" and rate == 8
    assert (written.permute(0, 2, 3, 1) - pictures / 255).abs().mean() < 0.02


MODEL = checkpoint("small.safetensors")
CLIP_NODES = [
    Node("Clip", "LoadVideo", file=CLIP),
    Node("All frames", "GetVideoComponents", video="Clip"),
    Node("Frames", "ImageFromBatch", image="All frames", length=FRAMES),
]
CONTEXT = Node("Context", "ADE_StandardStaticContextOptions", context_length=WINDOW, context_overlap=1)
HINTS = Node("Hints", "Canny", image="Frames")
STEER = Node("Steer", "ACN_AdvancedControlNetApply_v2", positive=EDITED, negative=SOURCE, control_net="Net")
STEER = STEER.but(image="Hints", strength=0.6)


def evolved(model: str, **inputs) -> Node:
    return Node("Evolved", "ADE_UseEvolvedSampling", model=model, beta_schedule="use existing", **inputs)


def their_sampling(*nodes: Node, **sides) -> Graph:
    """Return a sampling of AnimateDiff-Evolved in windows, on a randomly filled model."""
    sampler = {"model": "Evolved", "positive": EDITED, "negative": SOURCE, "latent_image": "Empty", "steps": 2, **sides}
    return [
        MODEL,
        *(prompt(title, title) for title in (SOURCE, EDITED)),
        CONTEXT,
        evolved("Model", context_options="Context"),
        *nodes,
        Node("Empty", "EmptyLatentImage", width=64, height=64, batch_size=FRAMES),
        Node("Sample", "KSampler", **sampler),
        Node("Save", "SaveLatent", samples="Sample"),
    ]


STEERED = their_sampling(
    *CLIP_NODES,
    HINTS,
    Node("Net", "ControlNetLoader", control_net_name="small.safetensors"),
    STEER,
    positive=("Steer", "positive"),
    negative=("Steer", "negative"),
)
RESIZED = [
    *CLIP_NODES,
    Node("Resized", "ImageResizeKJv2", image="Frames", width=48, height=40, keep_proportion="crop"),
    Node("Reversed", "ReverseImageBatch", images="Resized"),
    Node("Matched", "ColorMatch", image_ref="Resized", image_target="Reversed"),
    Node("Save", "SaveImage", images="Matched"),
]


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(their_sampling(), marks=pytest.mark.needs(EVOLVED), id="sampling in windows"),
        pytest.param(STEERED, marks=pytest.mark.needs(EVOLVED, ADVANCED), id="ControlNet in windows"),
        pytest.param(RESIZED, marks=pytest.mark.needs(KJ), id="images"),
    ],
)
@pytest.mark.usefixtures("needs")
def test_their_graphs_are_the_same_with_us(together: Host, theirs: Host, graph: Graph) -> None:
    expected = run(theirs, graph)
    assert torch.equal(run(together, graph), expected) and expected.float().std() > 0


def our_edit(*nodes: Node, model: str = "Patch", inflated: str = "Model", strength: float = 1.0, **sides) -> Graph:
    """Return an edit of the demo clip, between whose parts other nodes may be."""
    return [
        DEMO,
        *CLIP_NODES,
        *(prompt(title, f"a {colour} circle") for title, colour in ((SOURCE, "red"), (EDITED, "blue"))),
        Node("Encode", "VAEEncode", pixels="Frames", vae="Model"),
        INFLATE.but(model=inflated),
        ours("Patch", "STAMFFAMPatch", model="Inflate", temporal_strength=0.0, attention_strength=strength),
        *nodes,
        invert_source(model, steps=3),
        ours("Edit", "SmoothSample", model=model, inversion="Invert", **{**PROMPTS, **sides}),
        Node("Save", "SaveLatent", samples="Edit"),
    ]


PROMPTS = {"positive": EDITED, "negative": SOURCE}
STEERED_SIDES = {"positive": ("Steer", "positive"), "negative": ("Steer", "negative")}
OUR_WINDOWS = Node("Windows", "ContextWindowsManual", context_length=WINDOW, context_overlap=1, causal_window_fix=False)
OUR_NET = [ours("Net", "LoadDemoControlNet"), HINTS]
theirs_first = pytest.mark.parametrize("together", ["theirs first"], indirect=True)


@theirs_first
@pytest.mark.needs(EVOLVED)
@pytest.mark.usefixtures("needs")
def test_evolved_sampling_before_or_after_the_patch_changes_nothing_by_itself(together: Host) -> None:
    plain = run(together, our_edit())
    assert torch.equal(run(together, our_edit(evolved("Patch"), model="Evolved")), plain)
    assert torch.equal(run(together, our_edit(evolved("Model"), inflated="Evolved")), plain)


@theirs_first
@pytest.mark.needs(EVOLVED)
@pytest.mark.usefixtures("needs")
def test_their_windows_hold_the_frames_and_say_what_they_do_not_see(together: Host) -> None:
    windows = CONTEXT, evolved("Patch", context_options="Context")
    apart = [run(together, our_edit(strength=0.0)), run(together, our_edit(*windows, model="Evolved", strength=0.0))]
    assert away(apart[1], apart[0]) < 1e-4
    assert "own window alone" not in together.log_text()
    found = run(together, our_edit(*windows, model="Evolved"))
    assert away(found, run(together, our_edit())) < 0.1 and away(found, apart[0]) > 1e-3
    assert "own window alone in Context Options of AnimateDiff-Evolved" in together.log_text()


@theirs_first
@pytest.mark.needs(EVOLVED)
@pytest.mark.usefixtures("needs")
def test_what_would_be_lost_is_refused_in_words(together: Host) -> None:
    windows = CONTEXT, evolved("Patch", context_options="Context"), OUR_WINDOWS.but(model="Evolved")
    again = Node("Again", "ADE_IterationOptsFreeInit")
    guided = Node("Guided", "ADE_CustomCFGSimple", cfg=5.0)
    refused = {
        "carries both Context Options of AnimateDiff-Evolved": our_edit(*windows, model="Windows"),
        "carries Iteration Options": our_edit(*settings(again, iteration_opts="Again"), model="Evolved"),
        "carries Custom CFG": our_edit(*settings(guided, custom_cfg="Guided"), model="Evolved"),
    }
    for message, graph in refused.items():
        with pytest.raises(GraphError, match=message):
            run(together, graph)


def settings(node: Node, **inputs: str) -> Graph:
    chosen = Node("Settings", "ADE_AnimateDiffSamplingSettings", **inputs)
    return [node, chosen, evolved("Patch", sample_settings="Settings")]


@theirs_first
@pytest.mark.needs(ADVANCED)
@pytest.mark.usefixtures("needs")
def test_advanced_controlnet_steers_like_the_core_and_frame_by_frame_in_windows(together: Host) -> None:
    core = Node("Steer", "ControlNetApplyAdvanced", **PROMPTS, control_net="Net", image="Hints", strength=0.6)
    expected = run(together, our_edit(*OUR_NET, core, **STEERED_SIDES))
    assert torch.equal(run(together, our_edit(*OUR_NET, STEER, **STEERED_SIDES)), expected)
    keyed = [Node("Last", "LatentKeyframe", batch_index=FRAMES - 1), STEER.but(latent_kf_override="Last")]
    whole = run(together, our_edit(*OUR_NET, *keyed, strength=0.0, **STEERED_SIDES))
    windows = OUR_WINDOWS.but(model="Patch")
    found = run(together, our_edit(*OUR_NET, *keyed, windows, model="Windows", strength=0.0, **STEERED_SIDES))
    assert away(found, whole) < 1e-4
    changed = [away(*pair) for pair in zip(whole, run(together, our_edit(strength=0.0)), strict=True)]
    assert max(changed[:-1]) < 1e-5 < 1e-2 < changed[-1]
