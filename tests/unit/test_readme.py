"""What the documents say of messages is what the code says, and what they show exists."""

import ast
import re
from pathlib import Path

import pytest

from consistent_video.scripts.regions import write_region

ROOT = Path(__file__).resolve().parents[2]
HOSTS = {"Invalid video file", "Media input missing", "division by zero", "not in", "IMPORT FAILED"}  # of ComfyUI


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
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    symptoms = [line.split("|")[1] for line in page.splitlines() if line.startswith("|")]
    messages = [message for symptom in symptoms for message in re.findall("`([^`]+)`", symptom)]
    assert len(messages) > len(HOSTS)
    texts = read_texts()
    pieces = {piece.strip() for message in messages for piece in message.split("...")} - {"", *HOSTS}
    assert not [piece for piece in pieces if piece not in texts]


def test_a_command_writes_its_own_region_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- one: begin -->\nold\n<!-- one: end -->\nb\n<!-- two: begin -->\n<!-- two: end -->\nc\n")
    for _ in range(2):
        write_region("one", "new", readme)
        assert readme.read_text() == (
            "a\n<!-- one: begin -->\nnew\n<!-- one: end -->\nb\n<!-- two: begin -->\n<!-- two: end -->\nc\n"
        )
    with pytest.raises(ValueError, match="no region between <!-- three: begin -->"):
        write_region("three", "new", readme)


@pytest.mark.parametrize("name", ["measured", "benchmark", "memory"])
def test_the_readme_has_the_regions(name: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(f"<!-- {name}: begin -->") == text.count(f"<!-- {name}: end -->") == 1
    region = text.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0]
    assert region.count("\n| ") > 2, "a table"


def test_every_picture_and_page_that_the_documents_show_exists() -> None:
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "web" / "docs").glob("*.md"),
    ]
    missing = [
        (page.name, target)
        for page in pages
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not missing
