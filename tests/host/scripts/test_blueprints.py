"""The pack's subgraph blueprints in ComfyUI's own editor: found, opened, changed, run and unpacked.

Pictures of what was seen lie in output/browser.
"""

import json

import pytest

from consistent_video.scripts.browser import CARD, Editor
from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.project import PACK
from consistent_video.scripts.workflow import is_link

from .conftest import PATIENCE, SHOTS

EMPTY = {"nodes": [], "links": [], "groups": [], "version": 0.4}
SMALL = {"frames": 3, "width": 64, "height": 96}
CHANGED = {  # dials of each, and the steps of nodes within
    "Edit Clip": SMALL | {"edited_prompt": "a green star", "cfg": 2.5},
    "Tune and Edit Clip": SMALL | {"edited_prompt": "a green star", "tuning_steps": 3, "smoothing": "INR"},
    "Invert and Reconstruct": SMALL | {"steps": 3},
    "Steady an Edit": {"passes": 2},
}
CONNECT = """() => {
    const node = app.graph.nodes.find(one => one.subgraph)
    const [model, clip, save] = ["ConsistentVideo_LoadDemoModel", "LoadVideo", "SaveVideo"].map(kind => {
        const made = LiteGraph.createNode(kind)
        made.title = kind
        app.graph.add(made)
        return made
    })
    node.inputs.forEach((input, slot) => [model, clip].forEach(from => {
        const output = from.outputs.findIndex(one => one.type === input.type)
        if (output >= 0) from.connect(output, node, slot)
    }))
    node.connect(node.outputs.findIndex(one => one.type === "VIDEO"), save, 0)
    save.pos = [node.pos[0] + 500, node.pos[1]]
    node.subgraph.nodes.flatMap(one => one.widgets ?? []).filter(one => one.name === "steps")
        .forEach(one => { one.value = 2 })
}"""
OPEN = """() => {
    const node = app.graph.nodes.find(one => one.subgraph)
    app.canvas.openSubgraph(node.subgraph, node)
}"""
QUICK = "app.graph.nodes.find(one => one.subgraph).subgraph.nodes.find(one => one.title === 'Invert')" + (
    ".widgets.find(one => one.name === 'steps').value = 2"
)
SET = """values => app.graph.nodes.find(one => one.subgraph).widgets.filter(widget => widget.name in values)
    .forEach(widget => { widget.value = values[widget.name] })"""
UNPACK = """() => {
    app.canvas.selectItems([app.graph.nodes.find(one => one.subgraph)])
    return app.extensionManager.command.execute("Comfy.Graph.UnpackSubgraph")
}"""
LOST = "Missing Link ID when unpacking"  # the editor of today, of every dial: it has a value instead of a link


def links_of(prompt: dict) -> set[tuple]:
    """Return which output feeds which input, by titles."""
    titles = {key: node["_meta"]["title"] for key, node in prompt.items()}
    return {
        (titles[value[0]], value[1], titles[key], name)
        for key, node in prompt.items()
        for name, value in node["inputs"].items()
        if is_link(value)
    }


@pytest.mark.parametrize("name", CHANGED)
def test_a_blueprint_is_found_opened_changed_run_and_unpacked(editor: Editor, name: str) -> None:
    editor.open(EMPTY)
    editor.complaints.clear()
    editor.find_node(name)
    page = editor.page
    page.evaluate(CONNECT)
    page.evaluate(OPEN)
    page.wait_for_function("!!app.canvas.subgraph")
    editor.picture().save(SHOTS / f"blueprint_{name.lower().replace(' ', '_')}.png")
    page.evaluate("app.extensionManager.command.execute('Comfy.Graph.ExitSubgraph')")
    page.evaluate(SET, CHANGED[name])
    written = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = editor.prompt()
    given = [value for node in prompt.values() for value in node["inputs"].values() if not is_link(value)]
    assert set(CHANGED[name].values()) <= set(filter(lambda value: isinstance(value, (int, float, str)), given))
    page.get_by_test_id("queue-button").click()
    editor.show(editor.box("SaveVideo"))
    editor.wait_for_video("SaveVideo", PATIENCE)
    assert not editor.complaints
    page.evaluate(UNPACK)
    (definition,) = written["definitions"]["subgraphs"]
    titles = set(page.evaluate("app.graph.nodes.map(node => node.title)"))
    assert titles >= {node["title"] for node in definition["nodes"]} and name not in titles
    assert links_of(editor.prompt()) == links_of(prompt) and set(editor.complaints) <= {LOST}


def test_a_first_edit_takes_a_new_user_at_most_three_clicks(editor: Editor) -> None:
    with editor.as_new_user() as page:
        menu = page.get_by_role("navigation")
        page.get_by_placeholder("Search ...").wait_for()
        menu.get_by_text("Extensions", exact=True).wait_for()
        clicks = [
            menu.get_by_text(PACK, exact=True),
            page.locator(CARD.format("demo_edit_clip")),
            page.get_by_test_id("queue-button"),
        ]
        for button in clicks[:2]:
            button.click()
        page.wait_for_function("app.graph.nodes.some(node => node.title === 'Save edit')")
        page.evaluate(QUICK)
        page.evaluate(SET, SMALL)
        clicks[2].click()
        editor.show(editor.box("Save edit"))
        editor.wait_for_video("Save edit", PATIENCE)
        editor.picture().save(SHOTS / "first_edit.png")


def test_app_mode_shows_what_to_choose_and_the_edit(editor: Editor) -> None:
    workflow = json.loads((ROOT / "workflows" / "demo_edit_clip.json").read_text(encoding="utf-8"))
    editor.open(workflow)
    editor.complaints.clear()
    editor.page.evaluate(QUICK)
    editor.page.evaluate(SET, SMALL)
    editor.page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
    for _, name in workflow["extra"]["linearData"]["inputs"]:
        editor.page.get_by_text(name, exact=True).first.wait_for()
    editor.page.get_by_role("button", name="Run", exact=True).last.click()
    editor.page.locator("video").first.wait_for(timeout=PATIENCE)  # the first edit again, from ComfyUI's cache
    editor.picture().save(SHOTS / "app_mode.png")
    editor.page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
    assert not editor.complaints
