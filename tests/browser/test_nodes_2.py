"""Diversify where the page itself draws the nodes (Nodes 2.0), and in App mode.

Screenshots are left in demo/output/screenshots/nodes_2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Locator, Page, expect

from devtools.frontend import Frontend
from devtools.places import HERE

if TYPE_CHECKING:
    from devtools.server import Server

TEMPLATE = "diversify_distilled"
IMAGES = 2
SCREENSHOTS = HERE.root / "demo" / "output" / "screenshots" / "nodes_2"
PATIENCE = 60_000  # milliseconds

# Names of the widgets of each node, by whether the page shows them.
_WIDGETS = """() => app.graph.nodes.map(node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`)
    const rows = [...element?.querySelectorAll('.lg-node-widget') ?? []]
    const seen = rows.filter(row => row.getBoundingClientRect().height > 0).length
    // With Nodes 2.0 newer front ends show what happens to a seed as a button beside it.
    const own = (node.widgets ?? []).filter(one => !one.hidden && !one.options?.hidden && !one.options?.advanced)
    return [node.title, own.filter(one => one.options?.values?.[0] !== 'fixed').length, own.length, seen]
})"""


@pytest.fixture(scope="module")
def frontend(browser_checked: None, server: Server) -> Iterator[Frontend]:
    with Frontend(server.url, width=1920, height=1080, settings={"Comfy.VueNodes.Enabled": True}) as opened:
        yield opened


def quick_workflow() -> dict[str, Any]:
    workflow = json.loads((HERE.workflows / f"{TEMPLATE}.json").read_text(encoding="utf-8"))
    latent = next(node for node in workflow["nodes"] if node["type"] == "EmptySD3LatentImage")
    latent["widgets_values"][-1] = IMAGES
    return workflow


def test_nodes_2(frontend: Frontend) -> None:
    page = frontend.page
    frontend.errors.clear()
    workflow = quick_workflow()
    strength = next(node for node in workflow["nodes"] if node["type"] == "DiversityDiversify")["widgets_values"][-1]
    frontend.load(workflow)
    frontend.screenshot(SCREENSHOTS / "graph.png")
    for title, least, most, seen in page.evaluate(_WIDGETS):
        assert least <= seen <= most, title

    page.get_by_test_id("queue-button").click()
    for title in ("Without Diversify", "With Diversify"):
        expect(drawn(page, title).locator("img").first).to_be_visible(timeout=PATIENCE)
    if modern(page):  # that of 0.3.75 shows no node's report in this mode, which it calls experimental
        report = drawn(page, "Diversify").get_by_text(f"Diversify {strength:g}: {IMAGES} images, 4 steps, no CFG.")
        expect(report).to_be_visible(timeout=PATIENCE)
        assert "Sampling takes" in report.inner_text()
        inside, around = report.bounding_box(), drawn(page, "Diversify").bounding_box()
        assert inside is not None
        assert around is not None
        assert inside["y"] + inside["height"] <= around["y"] + around["height"]
    frontend.screenshot(SCREENSHOTS / "ran.png")
    assert frontend.errors == []


def test_app_mode(frontend: Frontend) -> None:
    page = frontend.page
    frontend.errors.clear()
    frontend.load(quick_workflow())
    page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
    if modern(page):  # older ones show all widgets of all nodes
        page.get_by_role("button", name="Skip", exact=True).click()  # of the tour
        labels = page.get_by_test_id("builder-widget-label")
        expect(labels.first).to_be_visible()
        assert labels.all_inner_texts() == ["Prompt", "strength", "Seed"]
    boxes = page.locator("textarea:visible")
    expect(boxes.first).to_be_visible()
    (box,) = [one for one in boxes.all() if one.input_value() == "a heart"]
    box.fill("a small fish")
    with page.expect_response(
        lambda answer: answer.request.method == "POST" and answer.url.endswith("/prompt")
    ) as sent:
        page.get_by_role("button", name="Run", exact=True).click()
    body = sent.value.request.post_data_json
    assert body is not None
    prompt = body["prompt"].values()
    assert [node["inputs"]["value"] for node in prompt if node["class_type"] == "PrimitiveStringMultiline"] == [
        "a small fish"
    ]
    expect(page.locator("img[src*='/view']:visible").first).to_be_visible(timeout=PATIENCE)
    page.wait_for_timeout(2000)  # the rest of the images
    page.screenshot(path=SCREENSHOTS / "app.png")
    assert frontend.errors == []


def drawn(page: Page, title: str) -> Locator:
    """A node of the graph, as the page draws it."""
    node = page.evaluate("title => app.graph.nodes.find(node => node.title === title).id", title)
    return page.locator(f'[data-node-id="{node}"]')


def modern(page: Page) -> bool:
    """Whether the front end's App mode shows the inputs that a workflow names."""
    major, minor, *_ = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__").split(".")
    return (int(major), int(minor)) >= (1, 49)
