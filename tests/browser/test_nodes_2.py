"""Diversify where the page itself draws the nodes (Nodes 2.0), and in App mode.

Screenshots are left in demo/output/screenshots/nodes_2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from devtools.frontend import Frontend
from devtools.places import HERE

if TYPE_CHECKING:
    from devtools.server import Server

TEMPLATE = "diversify_distilled"
IMAGES = 2
SCREENSHOTS = HERE.root / "demo" / "output" / "screenshots" / "nodes_2"
PATIENCE = 300_000  # milliseconds

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


def shot(frontend: Frontend, name: str) -> Path:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    frontend.page.screenshot(path=SCREENSHOTS / f"{name}.png")
    return SCREENSHOTS


def test_nodes_2(frontend: Frontend) -> None:
    page = frontend.page
    frontend.errors.clear()
    frontend.load(quick_workflow())
    frontend.screenshot(SCREENSHOTS / "graph.png")
    for title, least, most, seen in page.evaluate(_WIDGETS):
        assert least <= seen <= most, title

    page.get_by_test_id("queue-button").click(timeout=PATIENCE)
    node = page.evaluate("() => app.graph.nodes.find(node => node.type === 'DiversityDiversify').id")
    report = page.locator(f'[data-node-id="{node}"]').get_by_text(f"Diversify 0.5: {IMAGES} images, 4 steps, no CFG.")
    expect(report).to_be_visible(timeout=PATIENCE)
    for title in ("Without Diversify", "With Diversify"):
        shown = page.evaluate("title => app.graph.nodes.find(node => node.title === title).id", title)
        expect(page.locator(f'[data-node-id="{shown}"] img').first).to_be_visible(timeout=PATIENCE)
    frontend.screenshot(SCREENSHOTS / "ran.png")
    assert "Sampling takes" in report.inner_text()
    inside, around = report.bounding_box(), page.locator(f'[data-node-id="{node}"]').bounding_box()
    assert inside is not None
    assert around is not None
    assert inside["y"] + inside["height"] <= around["y"] + around["height"]
    assert frontend.errors == []


def test_app_mode(frontend: Frontend) -> None:
    page = frontend.page
    frontend.errors.clear()
    frontend.load(quick_workflow())
    page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
    page.wait_for_timeout(3000)
    shot(frontend, "app")
    assert frontend.errors == []
