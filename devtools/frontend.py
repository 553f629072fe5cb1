"""The real front end in a headless Chromium: to save templates as it saves them, and to check what it makes of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Route, ViewportSize, sync_playwright

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
START_MILLISECONDS = 180_000  # a cold start on a busy two-core machine

# Builds a graph the way hands would: nodes made and linked by the front end itself, so that it fills in the rest.
_BUILD = """async ([nodes, groups]) => {
    await app.loadGraphData({last_node_id: 0, last_link_id: 0, nodes: [], links: [], version: 0.4})
    const made = {}
    for (const [key, {type, pos, size, title, values, mode, color, models}] of Object.entries(nodes)) {
        const node = LiteGraph.createNode(type)
        if (!node) throw new Error(`there is no node ${type}`)
        app.graph.add(node)
        Object.assign(node, {pos, mode}, title ? {title} : {})
        if (color) Object.assign(node, {color: color[0], bgcolor: color[1]})
        if (size) node.setSize(size)
        for (const [name, value] of Object.entries(values)) {
            const widget = node.widgets?.find(w => w.name === name)
            if (!widget) throw new Error(`${type} has no widget ${name}`)
            widget.value = value
        }
        if (models.length) node.properties.models = models
        made[key] = node
    }
    for (const [key, {type, inputs}] of Object.entries(nodes)) {
        for (const [name, [source, output]] of Object.entries(inputs)) {
            const slot = made[key].inputs.findIndex(i => i.name === name)
            if (slot < 0) throw new Error(`${type} has no input ${name}`)
            if (!made[source].connect(output, made[key], slot)) throw new Error(`${source} does not fit ${key}.${name}`)
        }
    }
    for (const {title, pos, size, color} of groups) {
        const group = new LiteGraph.LGraphGroup(title)
        Object.assign(group, {pos, size, color})
        app.graph.add(group)
    }
    return Object.fromEntries(Object.entries(made).map(([key, node]) => [key, node.id]))
}"""


@dataclass(frozen=True)
class Node:
    """A node to build: its type, where it stands, its widgets' values and its links, `input: (node key, output)`.

    models: the files that its widgets name, each with `name`, `url` and `directory`; the front end offers to download
    those that are missing.
    """

    type: str
    pos: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None
    title: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, tuple[str, int]] = field(default_factory=dict)
    mode: int = 0
    color: tuple[str, str] | None = None
    models: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Group:
    """A coloured frame with a title around nodes."""

    title: str
    pos: tuple[int, int]
    size: tuple[int, int]
    color: str


@dataclass(frozen=True)
class App:
    """What App mode shows of a graph.

    inputs: widgets as (node key, name of the widget, what it is called there). outputs: keys of the nodes whose images
    are shown.
    """

    inputs: tuple[tuple[str, str, str], ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A graph to build: nodes by a name of our own, frames around them, and what App mode shows of it."""

    nodes: dict[str, Node]
    groups: tuple[Group, ...] = ()
    app: App | None = None


# The view glides: it is there when it has not moved for some frames.
_STILL = """() => new Promise(done => {
    let last = "", still = 0
    const look = () => {
        const view = [...app.canvas.ds.offset, app.canvas.ds.scale].join()
        still = view === last ? still + 1 : 0
        last = view
        still < 15 ? requestAnimationFrame(look) : done()
    }
    requestAnimationFrame(look)
})"""


def find_chromium() -> str | None:
    """A Chromium on the path; the one Playwright would download is not used."""
    return next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)


class Frontend:
    """ComfyUI's page of a running server, opened in a browser of its own.

    settings: the user's settings that are to differ from those on the server. Raises `FileNotFoundError` when there is
    no Chromium. `errors` gathers what the page itself complains about, `console` the errors that it writes to the
    console.
    """

    def __init__(
        self, url: str, *, width: int = 2560, height: int = 1100, settings: dict[str, Any] | None = None
    ) -> None:
        self.url = url
        # The first mark keeps the gallery of templates from covering a first visitor's graph.
        self.settings = {"Comfy.TutorialCompleted": True, **(settings or {})}
        self.size = ViewportSize(width=width, height=height)
        self.errors: list[str] = []
        self.console: list[str] = []

    def __enter__(self) -> Frontend:
        chromium = find_chromium()
        if chromium is None:
            raise FileNotFoundError("No Chromium on the path. On Debian: apt-get install chromium.")
        self._playwright: Playwright = sync_playwright().start()
        try:
            # Chromium's sandbox needs rights that a container's root does not have.
            self._browser: Browser = self._playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            self.page: Page = self._browser.new_page(viewport=self.size, locale="en-US")
            self.page.set_default_timeout(START_MILLISECONDS)
            self.page.on("pageerror", lambda error: self.errors.append(str(error)))
            self.page.on("console", self._written)
            self.page.route("**/api/settings", self._settings)
            self.page.goto(self.url)
            self.page.wait_for_function(
                "() => !!window.app?.vueAppReady && 'KSampler' in (window.LiteGraph?.registered_node_types ?? {})"
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "_browser"):
            self._browser.close()
        self._playwright.stop()

    def load(self, workflow: dict[str, Any]) -> None:
        """Opens a saved workflow, as dropping its file on the page does."""
        self.page.evaluate("async workflow => { await app.loadGraphData(workflow) }", workflow)

    def build(self, nodes: dict[str, Node], groups: Sequence[Group] = ()) -> dict[str, int]:
        """Makes a graph from scratch and opens it; returns the ids of the nodes. Raises what the front end refuses."""
        plain = {key: asdict(node) for key, node in nodes.items()}
        return self.page.evaluate(_BUILD, [plain, [asdict(group) for group in groups]])

    def unknown_nodes(self) -> list[str]:
        """Types of nodes in the open graph that the front end has no definition for."""
        return self.page.evaluate(
            "() => app.graph.nodes.map(n => n.type).filter(t => !(t in LiteGraph.registered_node_types))"
        )

    def red_nodes(self) -> list[str]:
        """Titles of nodes in the open graph with a red border."""
        return self.page.evaluate("() => app.graph.nodes.filter(n => n.has_errors).map(n => n.title)")

    def prompt(self) -> dict[str, Any]:
        """What the front end would send to the server now."""
        # As text, for what JSON leaves out (undefined) would arrive here as None.
        return json.loads(self.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))

    def saved(self) -> dict[str, Any]:
        """What the front end would write to a file now (Export)."""
        return json.loads(self.page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).workflow)"))

    def inputs(self) -> dict[int, list[dict[str, Any]]]:
        """All inputs of the open graph's nodes by their ids, those of unlinked widgets too, which a file leaves out."""
        found = self.page.evaluate(
            """() => app.graph.nodes.map(node => [node.id, (node.inputs ?? []).map(({name, type, widget}) =>
                ({name, type: String(type), ...(widget ? {widget: {name: widget.name}} : {})}))])"""
        )
        return dict(found)

    def screenshot(self, path: Path) -> None:
        """An image of the whole open graph."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.evaluate(_STILL)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)

    def _written(self, message: ConsoleMessage) -> None:
        # The server forbids the page to ask elsewhere; some front ends try nevertheless, for every node.
        if message.type == "error" and "api.comfy.org" not in message.text:
            self.console.append(message.text)

    def _settings(self, route: Route) -> None:
        if route.request.method == "GET":
            route.fulfill(json={**route.fetch().json(), **self.settings})
        else:
            route.continue_()
