"""Where what a socket holds comes from."""

from typing import Any

import folder_paths
from comfy_execution.graph_utils import is_link
from comfy_execution.utils import get_executing_context
from server import PromptServer


def media_behind(name: str) -> list[str]:
    """Return the videos and images that feed an input of the node that runs, as its prompt names the files."""
    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is None or server is None:
        return []
    running = {item[1]: item[2] for item in server.prompt_queue.currently_running.values()}
    prompt = running.get(context.prompt_id, {})
    ahead: list[Any] = [prompt.get(context.node_id, {}).get("inputs", {}).get(name)]
    texts, seen = list[str](), set[str]()
    while ahead:
        value = ahead.pop()
        if isinstance(value, str):
            texts.append(value)
        elif is_link(value) and value[0] in prompt and value[0] not in seen:
            seen.add(value[0])
            ahead += prompt[value[0]]["inputs"].values()
    return folder_paths.filter_files_content_types(texts, ["video", "image"])
