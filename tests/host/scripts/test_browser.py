"""The pack in ComfyUI's own editor, in a real browser: every workflow opened, the main one run, each help page shown.

Pictures of what was seen lie in output/browser.
"""

import json

import pytest

from consistent_video.scripts.browser import Editor
from consistent_video.scripts.descriptions import PRESETS
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.host import PACK, Host
from consistent_video.scripts.workflow import to_prompt

from .conftest import PATIENCE, SHOTS

FEW = ("controlvideo", "slicedit")  # of the papers' systems, which are of the same nodes
WORKFLOWS = sorted({path.stem for path in (ROOT / "workflows").glob("*.json")} - PRESETS.keys() | {*FEW})
HELP = tuple(f"ConsistentVideo_{name}" for name in ("AttentionControl", "InversionStability", "OneShotTune"))  # of all


@pytest.fixture(scope="module")
def info(server: Host) -> dict:
    return server.object_info()


REDUCE = """() => {
    const [shipped, frames] = ["Source clip", "Frames"].map(title => app.graph.nodes.find(node => node.title === title))
    const clip = LiteGraph.createNode("LoadVideo")
    app.graph.add(clip)
    clip.widgets.find(widget => widget.name === "file").value = shipped.widgets[0].value
    clip.connect(0, frames, frames.inputs.findIndex(input => input.name === "video"))
    app.graph.remove(shipped)
}"""  # to the clip of that name among the inputs, which is a quarter as large


def without_titles(prompt: dict) -> dict:
    """Return a prompt without what the editor alone knows: titles, and the preview that lies on Load Video."""
    return {
        key: (node["class_type"], {name: value for name, value in node["inputs"].items() if name != "video-preview"})
        for key, node in prompt.items()
    }


def saved(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_opens(editor: Editor, info: dict, name: str) -> None:
    """What the editor would queue is what the other tests run."""
    editor.complaints.clear()
    editor.open(saved(name))
    assert not editor.missing() and not editor.complaints
    assert without_titles(editor.prompt()) == without_titles(to_prompt(saved(name), info))
    boxes = editor.boxes("nodes")
    overlapping = [
        (one, other)
        for number, (one, (x, y, w, h)) in enumerate(boxes)
        for other, (left, top, width, height) in boxes[:number]
        if x < left + width and left < x + w and y < top + height and top < y + h
    ]
    assert not overlapping


def test_a_missing_node_is_noticed(editor: Editor) -> None:
    graph = saved("demo_edit")
    graph["nodes"][3]["type"] = "NoSuchNode"
    editor.open(graph)
    assert editor.missing() == ["NoSuchNode"]
    editor.page.keyboard.press("Escape")


def test_a_workflow_of_the_template_browser_that_tunes_is_queued_by_a_click(editor: Editor, info: dict) -> None:
    editor.complaints.clear()
    editor.open_template(PACK, "demo_ei2")
    assert without_titles(editor.prompt()) == without_titles(to_prompt(saved("demo_ei2"), info))
    page = editor.page
    page.evaluate(REDUCE)
    few = {"Tune": {"steps": 4}, "Preview": {"every": 2, "preview_steps": 2}}
    few |= {name: {"steps": 3} for name in ("Invert", "Invert to reconstruct")}
    page.evaluate(
        "few => Object.entries(few).forEach(([title, values]) => Object.entries(values).forEach(([name, value]) => "
        "{ app.graph.nodes.find(node => node.title === title).widgets.find(w => w.name === name).value = value }))",
        few,
    )
    page.evaluate(
        "() => { window.titles = []; new MutationObserver(() => titles.push(document.title))"
        ".observe(document.querySelector('title'), { childList: true }) }"
    )
    page.get_by_test_id("queue-button").click()
    editor.wait_for_picture("Tune", PATIENCE)
    editor.picture().save(SHOTS / "tuning.png")
    for title in ("Save edit", "Save reconstruction", "Save autoencoder round trip"):
        editor.wait_for_video(title, PATIENCE)
    texts = page.locator("textarea").evaluate_all("all => all.map(area => area.value)")
    assert any('"loss"' in text for text in texts), "the report is shown"
    assert page.evaluate("titles.some(title => /[1-9]\\d?%/.test(title))"), "the tab tells the progress"
    editor.picture().save(SHOTS / "edited.png")
    assert not editor.complaints


def test_the_nodes_of_the_newer_kind_work_as_well(editor: Editor) -> None:
    """The editor's nodes drawn by Vue, which fold advanced inputs away."""
    editor.set("Comfy.VueNodes.Enabled", True)
    try:
        editor.complaints.clear()
        editor.open(saved("demo_ei2"))
        tune = editor.page.locator("[data-node-id]").filter(has_text="learning_rate").first
        tune.wait_for()
        editor.show(editor.box("Invert"))
        inversion = editor.page.locator("[data-node-id]").filter(has_text="refinements").first
        assert "gamma" in inversion.inner_text() and "reading" not in inversion.inner_text()
        editor.picture().save(SHOTS / "vue_nodes.png")
        assert not editor.complaints
    finally:
        editor.set("Comfy.VueNodes.Enabled", False)


def test_the_download_of_a_missing_checkpoint_is_offered(editor: Editor) -> None:
    editor.open(saved("edit"))
    page = editor.page
    page.get_by_text("View details").click()
    for word in ("Missing Models", "checkpoints", "v1-5-pruned-emaonly-fp16.safetensors", "Download"):
        page.get_by_text(word, exact=True).first.wait_for()
    page.screenshot(path=SHOTS / "missing_checkpoint.png")
    editor.open(saved("demo_edit"))


@pytest.mark.parametrize("kind", HELP)
def test_a_help_page_is_shown_with_its_picture(editor: Editor, info: dict, kind: str) -> None:
    editor.open_node(kind)
    editor.complaints.clear()
    editor.open_help()
    page = editor.page
    page.get_by_role("heading", name=info[kind]["display_name"], exact=True).wait_for()
    picture = page.locator(f"img[src*='{kind}']")
    picture.wait_for()
    page.wait_for_function("name => document.querySelector(`img[src*='${name}']`).naturalWidth > 100", arg=kind)
    other_languages = [text for text in editor.complaints if text.endswith(f"{kind}/en.md")]  # asked for first
    assert editor.complaints == other_languages


def test_help_is_shown_in_chinese(editor: Editor) -> None:
    kind = "ConsistentVideo_AttentionControl"
    texts = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    editor.open(saved("demo_edit"))
    editor.page.evaluate("app.graph.nodes[0].english = true")
    editor.set("Comfy.Locale", "zh")
    try:
        # The editor then opens the workflow again, its nodes named in the new language.
        editor.page.wait_for_function("app.graph.nodes.length > 0 && !app.graph.nodes[0].english")
        editor.open_node(kind)
        editor.complaints.clear()
        editor.open_help()
        editor.page.get_by_role("heading", name=texts[kind]["display_name"], exact=True).wait_for()
        editor.page.wait_for_function(f"document.querySelector(`img[src*='{kind}']`)?.naturalWidth > 100")
        editor.picture().save(SHOTS / "help_in_chinese.png")
        assert not editor.complaints
    finally:
        editor.set("Comfy.Locale", "en")
