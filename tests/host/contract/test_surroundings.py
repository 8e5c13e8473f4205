"""What ComfyUI promises around the model: names, schemas, folders."""

import ast
import importlib
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
import torch
from comfy.model_management import OOM_EXCEPTION, is_oom
from comfy.quant_ops import QuantizedTensor
from comfy_api.latest import io
from comfy_execution.utils import CurrentNodeContext
from execution import PromptQueue
from server import PromptServer

from consistent_video import nodes
from consistent_video.modules.files.host import register_folder
from consistent_video.modules.sockets.host import media_behind
from consistent_video.scripts.environment import ROOT

HOSTS = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "server")


def list_names() -> Iterator[tuple[str, str]]:
    """Yield every name of the host that the pack imports or reads from a module of it."""
    for part in ("modules", "nodes"):
        for path in (ROOT / part).rglob("*.py"):
            tree = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            plain = {entry.name for node in tree if isinstance(node, ast.Import) for entry in node.names}
            for node in tree:
                if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in HOSTS:
                    yield from ((node.module, entry.name) for entry in node.names)
                elif isinstance(node, ast.Attribute) and (module := ast.unparse(node.value)) in plain:
                    if module.split(".")[0] in HOSTS and f"{module}.{node.attr}" not in plain:
                        yield module, node.attr


@pytest.mark.parametrize("name", sorted(set(list_names())), ids=":".join)
def test_imported_name_exists(name: tuple[str, str]) -> None:
    assert attrgetter(name[1])(importlib.import_module(name[0])) is not None


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """A models folder of its own, with the pack's folders registered and a file in one."""
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    folder_paths.folder_names_and_paths.pop("consistent_video", None)
    register_folder()
    (tmp_path / "consistent_video").mkdir()
    for name in ("swan.safetensors", "notes.txt"):
        (tmp_path / "consistent_video" / name).touch()
    return tmp_path


def test_io_schema_describes_every_node(models) -> None:
    for node in nodes.NODES:
        schema = node.GET_SCHEMA()
        assert schema.node_id.startswith("ConsistentVideo_") and schema.outputs
    inputs = {each.id: each for each in io.Schema("a", inputs=[io.Int.Input("b", default=3, min=2)]).inputs}
    assert inputs["b"].as_dict()["min"] == 2 and inputs["b"].as_dict()["default"] == 3
    assert io.NodeOutput(1, 2).args == (1, 2) and io.Custom("OURS").io_type == "OURS"


def test_folder_paths_knows_a_registered_folder(models) -> None:
    assert folder_paths.get_filename_list("consistent_video") == ["swan.safetensors"]
    path = folder_paths.get_full_path_or_raise("consistent_video", "swan.safetensors")
    assert path == str(models / "consistent_video" / "swan.safetensors")
    place, name, counter, _, _ = folder_paths.get_save_image_path("clips/swan", str(models))
    assert (place, name, counter) == (str(models / "clips"), "swan", 1)


def test_is_oom_knows_what_running_out_of_memory_raises() -> None:
    assert is_oom(OOM_EXCEPTION("out of memory")) and not is_oom(ValueError("out of memory"))


def test_quantized_tensor_is_a_tensor() -> None:
    assert issubclass(QuantizedTensor, torch.Tensor)


def test_the_prompt_that_runs_says_which_files_feed_an_input(monkeypatch) -> None:
    links = {"model": {}, "source": {"file": "swan.mp4"}, "edit": {"file": "edit.webm"}, "text": {"text": "a swan"}}
    links["scale"] = {"image": ["source", 0], "method": "area", "again": ["judge", 0]}
    links["judge"] = {"model": ["model", 0], "source": ["scale", 0], "edited": ["edit", 0], "text": ["text", 0]}
    queue = PromptQueue(SimpleNamespace(queue_updated=lambda: None))
    queue.put((0, "prompt", {name: {"class_type": name, "inputs": given} for name, given in links.items()}, {}, []))
    monkeypatch.setattr(PromptServer, "instance", SimpleNamespace(prompt_queue=queue), raising=False)
    queue.get()
    assert media_behind("edited") == []
    with CurrentNodeContext("prompt", "judge"):
        names = ("edited", "text", "model", "missing")
        assert [media_behind(name) for name in names] == [["edit.webm"], [], [], []]
        assert sorted(media_behind("source")) == ["edit.webm", "swan.mp4"]
    for other in (("prompt", "gone"), ("another", "judge")):
        with CurrentNodeContext(*other):
            assert media_behind("edited") == []
