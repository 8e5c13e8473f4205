"""Talk to a ComfyUI that runs, over HTTP and its websocket."""

import asyncio
import contextlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

PREVIEW = (1).to_bytes(4, "big")  # begins the host's messages that hold a preview picture
Json = dict[str, Any]


class HostError(RuntimeError):
    """ComfyUI did not start, died or refused a request."""


class GraphError(RuntimeError):
    """A prompt was refused or failed while it ran.

    Attributes:
        node: type of the node that failed, or "" where the prompt was refused as a whole.
    """

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node


@dataclass(frozen=True)
class Progress:
    """How far one node is: `value` of `total` steps."""

    node: str
    value: float
    total: float


@dataclass
class Run:
    """What a finished prompt left: what its output nodes show, the seconds spent in each node that ran, by id, and the
    preview pictures that were sent, as the files of JPEG or PNG.
    """

    outputs: Json = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    previews: list[bytes] = field(default_factory=list)

    def text(self, node: str) -> str:
        """Return the text that a text preview node shows."""
        return "".join(self.outputs[node]["text"])


class Server:
    """A ComfyUI server that runs, at an address as "127.0.0.1:8188"."""

    def __init__(self, address: str = "") -> None:
        self.address = address
        self.client = uuid.uuid4().hex

    def answers(self) -> bool:
        """Whether the server answers requests."""
        try:
            self.get("system_stats")
        except HostError:
            return False
        return True

    def trouble(self) -> str:
        """Return what is known of a server that does not answer."""
        return f"address {self.address}"

    def get(self, path: str) -> Any:
        """Return the JSON that the server answers to a GET of `path`."""
        return json.loads(self.read(path))

    def read(self, path: str) -> str:
        """Return the text that the server answers to a GET of `path`."""
        return self.ask(path).decode()

    def ask(self, path: str, content: Json | None = None) -> bytes:
        """Return the answer to a GET of `path`, or to a POST of content as JSON; HostError where it is not 200."""
        body = None if content is None else json.dumps(content, allow_nan=False).encode()
        request = urllib.request.Request(f"http://{self.address}/{path}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise HostError(error.read().decode(errors="replace") or str(error)) from error
        except (OSError, http.client.HTTPException) as error:  # the latter where it ends within its answer
            raise self.silence(error) from error

    def silence(self, error: Exception) -> HostError:
        """Return the error of a server that does not answer."""
        return HostError(f"ComfyUI does not answer: {error}\n{self.trouble()}")

    def object_info(self) -> Json:
        """Return the server's description of its nodes, by type."""
        return self.get("object_info")

    def version(self) -> str:
        """Return the server's version of ComfyUI."""
        return self.get("system_stats")["system"]["comfyui_version"]

    def interrupt(self) -> None:
        """Ask the server to stop the prompt that runs."""
        self.ask("interrupt", {})

    def run(
        self, prompt: Json, on_progress: Callable[[Progress], None] = lambda _: None, patience: float | None = None
    ) -> Run:
        """Run a prompt to its end.

        Args:
            prompt: API form.
            on_progress: called when a node begins (0 of 1) and with every step that it reports.
            patience: seconds after which the prompt is interrupted, None to wait for ever.
        Raises:
            GraphError: the prompt was refused, failed or was interrupted; the message names the node.
            HostError: the server ended meanwhile.
            TimeoutError: the patience is over.
        """
        prompt_id, run = str(uuid.uuid4()), Run()
        try:
            asyncio.run(asyncio.wait_for(self.follow(prompt, prompt_id, run, on_progress), patience))
        except (KeyboardInterrupt, TimeoutError, asyncio.TimeoutError):
            with contextlib.suppress(HostError):
                self.interrupt()
            raise
        except (OSError, aiohttp.ClientError) as error:
            raise self.silence(error) from error
        entry = self.get(f"history/{prompt_id}")[prompt_id]
        if entry["status"]["status_str"] != "success":
            raise read_failure(entry["status"]["messages"], prompt)
        run.outputs = entry["outputs"]
        return run

    async def follow(self, prompt: Json, prompt_id: str, run: Run, on_progress: Callable[[Progress], None]) -> None:
        """Post a prompt and follow its messages to the last one, filling in `run.seconds`."""
        address = f"http://{self.address}/ws?clientId={self.client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as messages:
            self.submit(prompt, prompt_id)
            node, began = None, time.monotonic()
            async for message in messages:
                if message.type is aiohttp.WSMsgType.BINARY and message.data[:4] == PREVIEW:
                    run.previews.append(message.data[8:])
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event, data = (content := json.loads(message.data))["type"], content["data"]
                if data.get("prompt_id") != prompt_id:
                    continue
                if event == "executing":
                    now = time.monotonic()
                    if node is not None:
                        run.seconds[node] = run.seconds.get(node, 0) + now - began
                    node, began = data["node"], now
                    if node is None:
                        return
                    on_progress(Progress(node, 0, 1))
                elif event == "progress_state":
                    for state in data["nodes"].values():
                        if state["state"] == "running":
                            on_progress(Progress(state["node_id"], state["value"], state["max"]))
        raise HostError(f"ComfyUI ended while it ran a prompt:\n{self.trouble()}")

    def submit(self, prompt: Json, prompt_id: str) -> None:
        """Queue a prompt.

        Raises:
            GraphError: the server refuses it; the message lists what is wrong with which node.
        """
        try:
            answer = self.ask("prompt", {"prompt": prompt, "prompt_id": prompt_id, "client_id": self.client}).decode()
        except HostError as error:
            raise GraphError(read_refusal(str(error), prompt)) from error
        if json.loads(answer).get("node_errors"):  # it would run without the outputs that these nodes feed
            self.ask("queue", {"clear": True})
            self.interrupt()
            raise GraphError(read_refusal(answer, prompt))

    def upload(self, path: Path, name: str) -> None:
        """Put a file into the server's input folder under a name, over an earlier one.

        Raises:
            HostError: the server does not take it.
        """

        async def send() -> None:
            form = aiohttp.FormData({"overwrite": "true", "type": "input"})
            form.add_field("image", path.read_bytes(), filename=name)
            async with aiohttp.ClientSession() as session:
                async with session.post(f"http://{self.address}/upload/image", data=form) as answer:
                    if answer.status != 200:
                        raise HostError(f"ComfyUI does not take {name}: {await answer.text()}")

        try:
            asyncio.run(send())
        except (OSError, aiohttp.ClientError) as error:
            raise self.silence(error) from error

    def fetch(self, run: Run, node: str) -> list[bytes]:
        """Return the contents of the files that an output node of a run wrote."""
        keys = ("filename", "subfolder", "type")
        queries = [urllib.parse.urlencode({key: entry[key] for key in keys}) for entry in list_files(run, node)]
        return [self.ask(f"view?{query}") for query in queries]


def list_files(run: Run, node: str) -> list[Json]:
    """Return the server's description of the files that an output node of a run wrote."""
    groups = [group for group in run.outputs[node].values() if isinstance(group, list)]
    return [entry for group in groups for entry in group if isinstance(entry, dict) and "filename" in entry]


def read_refusal(answer: str, prompt: Json) -> str:
    """Say in one text why the server refused a prompt, from its answer to the request."""
    try:
        content = json.loads(answer)
    except ValueError:
        return answer
    lines = [content.get("error", {}).get("message", "Some nodes cannot run")]
    for key, node in dict(content["node_errors"]).items():
        for error in node["errors"]:
            lines.append(f"{describe(prompt, key)}: {error['message']}: {error['details']}")
    return "\n".join(lines)


def read_failure(messages: list, prompt: Json) -> GraphError:
    """Make the error of a prompt that failed, from the messages in its history."""
    events = dict(messages)
    if "execution_error" in events:
        data = events["execution_error"]
        what = f"{data['exception_type']}: {data['exception_message'].strip()}"
        return GraphError(f"{describe(prompt, data['node_id'])}: {what}", data["node_type"])
    data = events["execution_interrupted"]
    return GraphError(f"{describe(prompt, data['node_id'])}: interrupted", data["node_type"])


def describe(prompt: Json, node: str) -> str:
    """Name a node of a prompt by its title and type."""
    entry = prompt[node]
    return f"{entry.get('_meta', {}).get('title', node)} ({entry['class_type']})"
