"""What the README says of messages is what the code says."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOSTS = {"Invalid video file", "not in", "IMPORT FAILED"}  # messages of ComfyUI


def read_texts() -> str:
    """Return every text of the pack's code, with a gap where a value is filled in."""
    texts = []
    for folder in ("modules", "nodes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_the_messages_under_troubleshooting_exist() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Troubleshooting")[1].split("\n## ")[0]
    symptoms = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    messages = [message for symptom in symptoms for message in re.findall("`([^`]+)`", symptom)]
    assert len(messages) > len(HOSTS)
    texts = read_texts()
    pieces = {piece.strip() for message in messages for piece in message.split("...")} - {"", *HOSTS}
    assert not [piece for piece in pieces if piece not in texts]
