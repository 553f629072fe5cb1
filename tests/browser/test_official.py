"""The official templates of others run with this pack's nodes in them, as the committed tables say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import official
from benchmarks.results import COMMITTED, read
from devtools.comfy_source import release
from devtools.graph import Prompt
from devtools.places import HERE
from devtools.server import Client

QUICK = (
    "default",
    "01_qwen_t2i_subgraphed",
    "image_qwen_Image_2512",
)  # one of them has a subgraph, in every collection
RELEASE = release(HERE.comfyui())
FILE = COMMITTED / f"official_{RELEASE}.json"
TEMPLATES = official.templates()


@pytest.fixture(scope="module")
def client(browser_checked: None) -> Iterator[Client]:
    with official.small_server() as running:
        yield running


@pytest.fixture(scope="module")
def prompts(client: Client, request: pytest.FixtureRequest) -> dict[str, Prompt]:
    """Of the templates that this run of the tests is about."""
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = {spec.params.get("name") for spec in specs if spec}
    return official.prompts_of(client, {name: TEMPLATES[name] for name in TEMPLATES if name in wanted})


@pytest.fixture(scope="module")
def known(client: Client) -> dict[str, Any]:
    return client.object_info()


@pytest.fixture(scope="module")
def committed() -> dict[str, dict[str, str]]:
    if not FILE.exists():
        pytest.skip(f"there are no results for ComfyUI {RELEASE}")
    rows = read(FILE)["rows"]
    if {row["collection"] for row in rows} != {official.collection()}:
        pytest.skip(f"the results are of other templates than {official.collection()}")
    return {row["row"]: {name: text for name, text in row["cells"].items() if name != "template"} for row in rows}


def test_every_template_has_a_row_and_none_fails(committed: dict[str, dict[str, str]]) -> None:
    assert committed.keys() == TEMPLATES.keys()
    for name, cells in committed.items():
        assert cells.keys() == official.PLACED.keys()
        for text in cells.values():
            assert text.startswith(("works", "refused: ", "not run: ")), name


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TEMPLATES]
)
def test_it_runs_as_committed(
    name: str,
    client: Client,
    prompts: dict[str, Prompt],
    known: dict[str, Any],
    committed: dict[str, dict[str, str]],
) -> None:
    assert official.tried(client, prompts[name], known) == committed[name]
