"""The harness itself: a graph of core nodes runs, fails and is interrupted as the scripts expect."""

import asyncio
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from consistent_video.scripts.clips import read_clip
from consistent_video.scripts.host import Host
from consistent_video.scripts.server import GraphError, HostError, Progress, Server
from consistent_video.scripts.workflow import set_values, to_prompt


def make_workflow() -> dict:
    """A grey clip of four frames, saved, with a text beside it."""
    nodes = [
        {"id": 1, "type": "EmptyImage", "widgets_values": [32, 16, 4, 0x808080]},
        {"id": 2, "type": "CreateVideo", "widgets_values": [8], "inputs": [{"name": "images", "link": 1}]},
        {
            "id": 3, "type": "SaveVideo", "title": "Save", "inputs": [{"name": "video", "link": 2}],
            "widgets_values": ["grey", "mp4", "h264", "re-encode", 10],
        },
        {"id": 4, "type": "PreviewAny", "title": "Text", "inputs": [{"name": "source", "link": 3}]},
        {"id": 5, "type": "PrimitiveString", "title": "Words", "widgets_values": ['{"loss": [2, 1]}']},
    ]  # fmt: skip
    links = [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "VIDEO"], [3, 5, 0, 4, 0, "STRING"]]
    return {"nodes": nodes, "links": links}


def test_a_graph_runs_and_its_files_and_texts_are_found(host: Host) -> None:
    seen: list[Progress] = []
    prompt = to_prompt(make_workflow(), host.object_info())
    run = host.run(prompt, seen.append, patience=60)
    (file,) = host.files(run, "3")
    frames, rate = read_clip(file)
    assert (frames.shape, rate) == ((4, 3, 16, 32), 8)
    assert json.loads(run.text("4")) == {"loss": [2, 1]}
    assert {step.node for step in seen} == set(prompt) == set(run.seconds)


def test_a_refused_prompt_names_the_node(host: Host) -> None:
    prompt = set_values(to_prompt(make_workflow(), host.object_info()), {("Save", "codec"): "none"})
    with pytest.raises(GraphError, match=r"Save \(SaveVideo\)"):
        host.run(prompt)


def test_a_failing_node_is_named(host: Host) -> None:
    prompt = set_values(to_prompt(make_workflow(), host.object_info()), {("EmptyImage", "width"): 31})
    with pytest.raises(GraphError, match=r"Save \(SaveVideo\): ") as caught:
        host.run(prompt, patience=60)
    assert caught.value.node == "SaveVideo"


def make_slow_prompt(num_steps: int = 60) -> dict:
    """A chain of blurs that takes many seconds."""
    prompt = {"0": {"class_type": "EmptyImage", "inputs": {"width": 512, "height": 512, "batch_size": 4, "color": 7}}}
    for step in range(num_steps):
        inputs = {"image": [str(step), 0], "blur_radius": 31, "sigma": 5.0}
        prompt[str(step + 1)] = {"class_type": "ImageBlur", "inputs": inputs}
    return {**prompt, "end": {"class_type": "PreviewImage", "inputs": {"images": [str(num_steps), 0]}}}


def test_an_interrupted_prompt_says_so(host: Host) -> None:
    threading.Timer(1.0, host.interrupt).start()
    with pytest.raises(GraphError, match="interrupted"):
        host.run(make_slow_prompt(), patience=60)


def test_a_prompt_that_takes_too_long_is_interrupted(host: Host) -> None:
    with pytest.raises((TimeoutError, asyncio.TimeoutError)):
        host.run(make_slow_prompt(61), patience=1)
    deadline = time.monotonic() + 30
    while host.get("queue")["queue_running"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not host.get("queue")["queue_running"]


def test_a_dead_server_is_noticed(host: Host, tmp_path: Path) -> None:
    with Host(host.tree, tmp_path, (*host.arguments, "--disable-all-custom-nodes")) as other:
        process = other.process
        assert process is not None and process.poll() is None
        with pytest.raises(HostError, match="ended while it ran"):
            other.run(make_slow_prompt(), on_progress=lambda _: process.kill(), patience=60)
        with pytest.raises(HostError, match="does not answer"):
            other.object_info()
    assert process.poll() is not None


def test_a_server_that_ends_within_its_answer_is_noticed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:

        def answer() -> None:
            with door.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(HostError, match="does not answer: IncompleteRead"):
            Server(f"127.0.0.1:{door.getsockname()[1]}").object_info()
        thread.join()


def test_a_server_that_cannot_start_says_why(host: Host, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="unrecognized arguments"), Host(host.tree, tmp_path, ("--no-such-option",)):
        pass
