"""Drive ComfyUI's own editor in a Chromium without a window, as a user would."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image
from playwright.sync_api import Page, Response, sync_playwright

from .environment import VENV, SetupError, say

Json = dict[str, Any]
Box = tuple[float, float, float, float]  # left, top, width, height

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
READY = "window.app?.graph && window.app?.canvas && window.app?.extensionManager?.workflow?.activeWorkflow"
USER_FILES = "/api/userdata"  # the editor asks for files that a new user does not have
TUTORIAL = "Comfy.TutorialCompleted"
TOURS, KNOWN_TOURS = "Comfy.OnboardingCoachmarks.Seen", ["firstRun", "appMode"]  # of the editor since 1.58
PATIENCE = 180_000  # milliseconds
NODE = "app.graph.nodes.find(node => node.title === title)"
URL = r"https?://[^\s\"\\]+"
CARD = '[data-testid="template-workflow-{}"]'


class Editor:
    """ComfyUI's editor, open in a browser: as a context.

    Attributes:
        page: the browser's page.
        complaints: errors in its console and requests that failed, since it was ready or `complaints` was cleared.

    Args:
        address: of the server.
        size: of the window in pixels.
    """

    def __init__(self, address: str, size: tuple[int, int] = (1600, 1000)):
        self.address, self.size = address, size
        self.complaints: list[str] = []
        self.asked: list[str] = []  # addresses of files that the workflows name, which the editor looks at

    def __enter__(self) -> "Editor":
        browser = find_browser()
        self.playwright = sync_playwright().start()
        try:
            self.browser = self.playwright.chromium.launch(executable_path=browser)
            self.page: Page = self.browser.new_page(viewport={"width": self.size[0], "height": self.size[1]})
            self.page.set_default_timeout(PATIENCE)
            # A new user is shown the template browser and tours first: they would lie over the graph.
            for setting, value in ((TUTORIAL, True), (TOURS, KNOWN_TOURS)):
                self.page.request.post(f"http://{self.address}/settings/{setting}", data=json.dumps(value)).dispose()
            self.page.goto(f"http://{self.address}")
            self.page.wait_for_function(READY)
            self.asked = re.findall(URL, self.page.evaluate("JSON.stringify(app.graph.serialize())"))
            self.page.wait_for_load_state("networkidle")
        except BaseException:
            self.playwright.stop()
            raise
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complain(message.type, message.text))
        self.page.on("response", self.look_at)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.playwright.stop()

    @contextmanager
    def as_new_user(self) -> Iterator[Page]:
        """Use the editor in a page of its own as one who opens it for the first time."""
        known, self.page = self.page, self.browser.new_page(viewport={"width": self.size[0], "height": self.size[1]})
        try:
            self.page.set_default_timeout(PATIENCE)
            self.page.request.post(f"http://{self.address}/settings/{TUTORIAL}", data="false").dispose()
            self.page.goto(f"http://{self.address}")
            self.page.wait_for_function(READY)
            yield self.page
        finally:
            self.page.close()
            self.page = known

    def complain(self, kind: str, text: str) -> None:
        """Note an error of the console; those of requests are noted with their address by `look_at`.

        The editor looks for the models that a workflow names on the internet, which the server's page forbids.
        """
        if kind == "error" and not (
            text.startswith("Failed to load resource") or any(url in text for url in self.asked)
        ):
            self.complaints.append(text)

    def look_at(self, response: Response) -> None:
        """Note a request that failed."""
        if response.status >= 400 and USER_FILES not in response.url:
            self.complaints.append(f"{response.status} {response.url}")

    def open_template(self, pack: str, name: str) -> None:
        """Open a workflow of a pack from the template browser."""
        page = self.page
        if not page.get_by_placeholder("Search ...").is_visible():
            page.get_by_role("button", name="Templates").first.click()
        page.get_by_placeholder("Search ...").wait_for()
        menu = page.get_by_role("navigation")
        menu.get_by_text("Extensions", exact=True).wait_for()  # comes with the packs below it, folded or not
        if not menu.get_by_text(pack, exact=True).is_visible():
            menu.get_by_text("Extensions", exact=True).click()
        menu.get_by_text(pack, exact=True).click()
        page.get_by_placeholder("Search ...").fill(name)
        before = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
        page.locator(CARD.format(name)).click()
        page.wait_for_function(
            "before => app.extensionManager.workflow.activeWorkflow.path !== before && app.graph.nodes.length > 0",
            arg=before,
        )
        page.wait_for_load_state("networkidle")

    def open(self, workflow: Json) -> None:
        """Open a workflow in the editor's form."""
        self.asked += re.findall(URL, json.dumps(workflow))
        self.page.evaluate("async graph => app.loadGraphData(graph, true, true, 'workflow')", workflow)
        self.page.wait_for_load_state("networkidle")

    def open_node(self, kind: str) -> None:
        """Open a graph of one node with the values that it has from the start, close enough to read."""
        self.open({"nodes": [], "links": [], "groups": [], "version": 0.4})
        self.page.evaluate("kind => { app.graph.add(LiteGraph.createNode(kind)) }", kind)
        ((_, box),) = self.boxes("nodes")
        self.show(box, 200)

    def find_node(self, name: str) -> None:
        """Add a node or blueprint to a graph by the search that a double click opens."""
        self.set("Comfy.NodeSearchBoxImpl.FollowCursor", False)  # else it hangs on the pointer until a click
        self.page.mouse.dblclick(self.size[0] / 2, self.size[1] / 2)
        self.page.keyboard.type(name)
        self.page.locator("mark, .highlight").get_by_text(name, exact=True).first.wait_for()
        self.page.keyboard.press("Enter")
        self.page.wait_for_function("name => app.graph.nodes.some(node => node.title === name)", arg=name)

    def open_help(self) -> None:
        """Open the help page of the one node of the graph by its button."""
        ((_, box),) = self.boxes("nodes")
        title = self.page.evaluate(
            "([x, y]) => { const { scale, offset } = app.canvas.ds; return [(x + offset[0]) * scale, (y + offset[1]) * "
            "scale] }",
            [box[0] + 60, box[1] + 10],
        )
        canvas = self.page.locator("#graph-canvas").bounding_box()
        assert canvas is not None
        self.page.mouse.click(canvas["x"] + title[0], canvas["y"] + title[1])
        self.page.get_by_test_id("info-button").click()

    def prompt(self) -> Json:
        """Return what the editor would queue: the graph in API form."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def missing(self) -> list[str]:
        """Return the types of nodes in the graph that the editor does not know."""
        return self.page.evaluate(
            "app.graph.nodes.filter(node => !LiteGraph.registered_node_types[node.type]).map(node => node.type)"
        )

    def boxes(self, what: str) -> list[tuple[str, Box]]:
        """Return the title of each of the graph's "nodes" or "groups", and where it lies in the graph's own units."""
        self.page.wait_for_function("app.graph.nodes.every(node => node.boundingRect[2] > 0)")  # known once it is drawn
        box = "[item.boundingRect[0], item.boundingRect[1], item.boundingRect[2], item.boundingRect[3]]"
        if what == "groups":
            box = "[item.pos[0], item.pos[1], item.size[0], item.size[1]]"
        found = self.page.evaluate(f"app.graph.{what}.map(item => [item.title, {box}])")
        return [(title, tuple(place)) for title, place in found]

    def box(self, title: str) -> Box:
        """Return where the node of a title lies in the graph's own units."""
        return dict(self.boxes("nodes"))[title]

    def show(self, box: Box, margin: float = 20) -> Box:
        """Move the view so that a part of the graph fills the window; returns where it then lies, in pixels.

        Args:
            box: of the graph.
            margin: about it, in pixels.
        """
        zoom = min((self.size[0] - 2 * margin) / box[2], (self.size[1] - 2 * margin) / box[3], 1)
        self.page.evaluate(
            "([zoom, x, y]) => { app.canvas.ds.scale = zoom; app.canvas.ds.offset = [x, y]; "
            "app.canvas.setDirty(true, true) }",
            [zoom, margin / zoom - box[0], margin / zoom - box[1]],
        )
        self.page.wait_for_timeout(400)  # videos and texts lie over the canvas and follow it
        return 0, 0, box[2] * zoom + 2 * margin, box[3] * zoom + 2 * margin

    def wait_for_picture(self, title: str, patience: float = PATIENCE) -> None:
        """Wait until a node, which must be in view, shows a picture."""
        self.page.wait_for_function(f"title => {NODE}.imgs?.[0]?.naturalWidth > 0", arg=title, timeout=patience)

    def wait_for_video(self, title: str, patience: float = PATIENCE) -> None:
        """Wait until a node, which must be in view, shows a video."""
        video = f"{NODE}.videoContainer?.querySelector('video')"
        self.page.wait_for_function(f"title => {video}?.videoWidth > 0", arg=title, timeout=patience)

    def hide_menus(self) -> None:
        """Leave only the graph on the page, for pictures."""
        for name in ("Comfy.Minimap.Visible", "Comfy.Graph.CanvasMenu", "Comfy.Graph.CanvasInfo"):
            self.set(name, False)
        self.page.evaluate("app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        self.page.add_style_tag(content=".p-toast, .no-drag { opacity: 0 }")

    def set(self, name: str, value: Any) -> None:
        """Change a setting of the editor."""
        self.page.evaluate("async ([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])

    def picture(self, box: Box | None = None) -> Image.Image:
        """Return a picture of the page or of a part of it, in pixels."""
        clip: Any = dict(zip(("x", "y", "width", "height"), box, strict=True)) if box else None
        return Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")


def find_browser() -> str | None:
    """Return the path of an installed Chromium or Chrome, or None for Playwright's own, downloaded where missing."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        os.environ["PLAYWRIGHT_BROWSERS_PATH"] = str(VENV / "browsers")  # with all else that the scripts install
        with sync_playwright() as playwright:
            own = Path(playwright.chromium.executable_path)
        if not own.is_file():
            say("Downloading Chromium for the tests in the editor (0.2 GB)")
            done = subprocess.run(
                [sys.executable, "-m", "playwright", "install", "chromium"], capture_output=True, text=True
            )
            if done.returncode:
                raise SetupError(
                    "the tests in the editor need Chromium or Chrome. Install it, on Debian by: apt-get install "
                    f"chromium\n{done.stderr[-1000:]}"
                )
    return found
