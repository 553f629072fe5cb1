"""As a person would: from the gallery to images, with nothing but mouse and keyboard, and back from a saved image.

Screenshots are left in demo/output/screenshots/person.
"""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Locator, Page, expect

from devtools.frontend import Frontend
from devtools.places import HERE, PACK_NAME
from devtools.released import MODELS

if TYPE_CHECKING:
    from devtools.server import Client, Server

TEMPLATE = "diversify_distilled"
SCREENSHOTS = HERE.root / "demo" / "output" / "screenshots" / "person"
PATIENCE = 300_000  # milliseconds: the machine may be busy with other things


@pytest.fixture(scope="module")
def frontend(browser_checked: None, server: Server) -> Iterator[Frontend]:
    """One browser for the whole visit, as large as a screen."""
    with Frontend(server.url, width=1280, height=800) as opened:
        yield opened


@pytest.fixture
def page(frontend: Frontend) -> Page:
    return frontend.page


def shot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def press(page: Page, what: Locator) -> None:
    """A click of the mouse in the middle of it. Playwright's own click waits for frames, which a busy machine without a
    graphics card draws seldom."""
    what.wait_for(state="visible", timeout=PATIENCE)
    what.evaluate("element => element.scrollIntoView({block: 'center'})")
    box = what.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def place(page: Page, title: str, widget: str | None = None) -> tuple[float, float]:
    """Where on the page a node's title, or the middle of one of its widgets, is drawn."""
    return tuple(
        page.evaluate(
            """([title, widget]) => {
                const node = app.graph.nodes.find(node => node.title === title)
                const found = node.widgets?.find(one => one.name === widget)
                const at = found ? [node.size[0] / 2, found.last_y + 10] : [60, -15]
                const {scale, offset} = app.canvas.ds
                const box = app.canvas.canvas.getBoundingClientRect()
                return [0, 1].map(k => (node.pos[k] + at[k] + offset[k]) * scale + [box.left, box.top][k])
            }""",
            [title, widget],
        )
    )


def text_box(page: Page, title: str) -> Locator:
    """The text box of a node: the one that lies over it."""
    page.evaluate(
        """title => {
            const node = app.graph.nodes.find(node => node.title === title)
            const box = node.widgets.find(one => one.element)
            box.element.setAttribute('data-of', title)
        }""",
        title,
    )
    return page.locator(f'[data-of="{title}"]')


def look_at(page: Page, title: str) -> None:
    """As large as a person would look at it: smaller, the front end draws boxes without their text."""
    page.evaluate(
        """title => {
            app.canvas.ds.scale = 1
            app.canvas.centerOnNode(app.graph.nodes.find(node => node.title === title))
            app.canvas.setDirty(true, true)
        }""",
        title,
    )
    page.wait_for_timeout(1500)


def shown_text(page: Page, title: str) -> str:
    return page.evaluate(
        """title => (app.graph.nodes.find(node => node.title === title).widgets ?? [])
            .map(one => String(one.value ?? '')).join('\\n')""",
        title,
    )


def fit(page: Page) -> None:
    """All of the graph in view; with a node selected, the front end shows that one alone."""
    page.evaluate("() => { app.canvas.deselectAll(); app.extensionManager.command.execute('Comfy.Canvas.FitView') }")
    page.wait_for_timeout(1500)  # the view glides there


def test_a_visit(frontend: Frontend, page: Page, client: Client, tmp_path: Path) -> None:
    frontend.errors.clear()
    # The gallery, and a template in it.
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    press(page, page.get_by_text(PACK_NAME).first)
    card = page.get_by_test_id(f"template-workflow-{TEMPLATE}")
    card.wait_for(timeout=PATIENCE)
    cards = page.locator('[data-testid^="template-workflow-"]')
    names = [str(one.get_attribute("data-testid")).removeprefix("template-workflow-") for one in cards.all()]
    models = sorted((model.template for model in MODELS), key=str.casefold)
    assert names[: len(models)] == models, "the models come first, in the gallery's own order"
    assert names[len(models)].startswith("diversify_")
    page.wait_for_timeout(1500)  # cards are drawn
    shot(page, "1_gallery")
    press(page, card)
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'DiversityDiversify')", timeout=PATIENCE)
    assert frontend.unknown_nodes() == []
    fit(page)

    # Another prompt, typed; another strength, typed into the widget's field.
    look_at(page, "Prompt")
    text_box(page, "Prompt").fill("a small fish")
    look_at(page, "Diversify")
    page.mouse.dblclick(*place(page, "Diversify", "strength"))
    field = page.locator(".graphdialog input, .p-inputtext:focus, input:focus").first
    field.fill("0.8")
    field.press("Enter")
    prompt = frontend.prompt()
    assert node_of(prompt, "PrimitiveStringMultiline")["value"] == "a small fish"
    assert node_of(prompt, "DiversityDiversify")["strength"] == pytest.approx(0.8)
    shot(page, "2_changed")

    # Run: images without and with, and the report on the node.
    ran = wait_until_ended(page, client, press_run(page))
    assert ran["status"]["status_str"] == "success"
    assert inputs_of(ran["prompt"][2]) == inputs_of(prompt)
    fit(page)  # images appear on the nodes that are in view
    for title in ("Without Diversify", "With Diversify"):
        page.wait_for_function(
            "title => app.graph.nodes.find(node => node.title === title).imgs?.length === 10",
            arg=title,
            timeout=PATIENCE,
        )
    page.wait_for_timeout(1500)
    shot(page, "3_images")
    look_at(page, "Diversify")
    shot(page, "4_report")
    report = shown_text(page, "Diversify")
    assert "Diversify 0.8: 10 images, 4 steps, no CFG" in report
    assert "Noise: its coarsest structure 1.64 times as large" in report
    assert "then its coarse structure moved apart by 0.40 in 3 iterations." in report

    # A saved image holds the graph: dropped on the page, it brings it back.
    saved = tmp_path / "saved.png"
    saved.write_bytes(last_saved(client))
    frontend.build({})
    assert page.evaluate("() => app.graph.nodes.length") == 0
    drop(page, saved)
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'DiversityDiversify')", timeout=PATIENCE)
    again = frontend.prompt()
    assert inputs_of(again) == inputs_of(prompt)
    fit(page)
    shot(page, "5_dropped")

    # The help of the node, by its button in the toolbox of the selected node.
    look_at(page, "Diversify")
    page.mouse.click(*place(page, "Diversify"))
    press(page, page.get_by_test_id("info-button"))
    expect(page.get_by_text("Makes the images of one prompt differ, with one strength").first).to_be_visible(
        timeout=PATIENCE
    )
    shot(page, "6_help")
    assert frontend.errors == []


def test_cancel(frontend: Frontend, page: Page, client: Client) -> None:
    frontend.errors.clear()
    workflow = json.loads((HERE.workflows / "diversify_mmdit.json").read_text(encoding="utf-8"))
    frontend.load(workflow)
    page.evaluate(
        "() => { for (const node of app.graph.nodes) for (const one of node.widgets ?? []) "
        "if (one.name === 'steps') one.value = 400 }"
    )
    page.evaluate("() => app.api.addEventListener('progress', event => { window.stepSeen = event.detail.value })")
    prompt_id = press_run(page)
    page.wait_for_function("() => window.stepSeen >= 1", timeout=PATIENCE)
    press(page, page.get_by_label("Cancel current run").or_(page.get_by_role("button", name="Cancel")).first)
    last = wait_until_ended(page, client, prompt_id)
    assert any(kind == "execution_interrupted" for kind, _ in last["status"]["messages"])
    shot(page, "7_cancelled")
    assert frontend.errors == []


def press_run(page: Page) -> str:
    """Presses Run; returns the id of the prompt that the page sent."""
    with page.expect_response(
        lambda answer: answer.request.method == "POST" and answer.url.endswith("/prompt"), timeout=PATIENCE
    ) as sent:
        press(page, page.get_by_test_id("queue-button"))
    return sent.value.json()["prompt_id"]


def wait_until_ended(page: Page, client: Client, prompt_id: str) -> dict[str, Any]:
    """The server's record of a run, when it has ended in whatever way."""
    deadline = time.monotonic() + PATIENCE / 1000
    while (record := client.history(prompt_id)) is None:
        assert time.monotonic() < deadline, "the run does not end"
        page.wait_for_timeout(200)
    return record


def inputs_of(prompt: dict[str, Any]) -> dict[str, Any]:
    return {key: node["inputs"] for key, node in prompt.items()}


def node_of(prompt: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == kind)


def last_saved(client: Client) -> bytes:
    """The newest image of type output in the history."""
    *_, last = client.json("/history").values()
    image = next(
        one for output in last["outputs"].values() for one in output.get("images", []) if one["type"] == "output"
    )
    return client.request(f"/view?{urllib.parse.urlencode(image)}")


def drop(page: Page, file: Path) -> None:
    """Drops a file on the canvas, as from a folder beside the browser."""
    data = page.evaluate_handle(
        """async bytes => {
            const transfer = new DataTransfer()
            transfer.items.add(new File([new Uint8Array(bytes)], 'saved.png', {type: 'image/png'}))
            return transfer
        }""",
        list(file.read_bytes()),
    )
    for event in ("dragover", "drop"):
        page.dispatch_event("#graph-canvas", event, {"dataTransfer": data, "bubbles": True})
