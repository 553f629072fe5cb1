"""Builds the templates in the real front end, so that they are exactly what it saves, and what it would then run.

    python -m devtools.templates                      # all
    python -m devtools.templates baseline             # those whose name has "baseline" in it
    python -m devtools.templates --prompts [baseline] # only the prompts, of the workflows as they are

Blueprints (subgraphs/NAME.json) are built with them.

A workflow (workflows/NAME.json) is what a user opens. Its prompt (demo/prompts/NAME.json) is what the front end sends
to the server for it: the demo and the tests run that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

from ..base import prepare_base
from ..frontend import App, Frontend
from ..places import HERE
from ..released import place_empty_files
from ..server import Server
from . import TEMPLATES
from .blueprints import BLUEPRINTS, build


def write_workflow(name: str, workflow: dict[str, Any]) -> None:
    """Its id comes from its name: building it twice gives the same file."""
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"ComfyUI-Diversity/{name}"))
    _write(HERE.workflows / f"{name}.json", workflow)


def add_app(workflow: dict[str, Any], app: App, ids: dict[str, int], frontend: Frontend) -> None:
    """What App mode shows, in the workflow that is open; newer front ends read it, older ones leave it alone."""
    shown = [[ids[key], widget] for key, widget, _ in app.inputs]
    workflow["extra"] |= {
        "linearMode": False,
        "linearData": {"inputs": shown, "outputs": [ids[k] for k in app.outputs]},
    }
    nodes, inputs = {node["id"]: node for node in workflow["nodes"]}, frontend.inputs()
    for key, widget, label in app.inputs:
        if label == widget:
            continue
        # The front end leaves out the inputs of unlinked widgets when it exports, and with them their labels.
        node = nodes[ids[key]]
        assert not node.get("inputs"), "links would point to other inputs"
        node["inputs"] = [{**one, "label": label, "link": None} for one in inputs[ids[key]] if one["name"] == widget]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(path.relative_to(HERE.root))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m devtools.templates", description="Build the workflow templates.")
    parser.add_argument("name", nargs="?", default="", help="only those whose name contains it")
    parser.add_argument("--prompts", action="store_true", help="leave the workflows, write their prompts anew")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=HERE.work, prefix="templates-") as base:
        prepare_base(Path(base), HERE.root)
        place_empty_files(Path(base))  # else a message about them would lie over the page
        with Server(base=Path(base)) as server, Frontend(server.url) as frontend:
            _write_all(frontend, options)


def _write_all(frontend: Frontend, options: argparse.Namespace) -> None:
    for name, graph in TEMPLATES.items():
        if options.name not in name:
            continue
        if not options.prompts:
            ids = frontend.build(graph.nodes, graph.groups)
            frontend.load(frontend.saved())  # what a reader opens and saves again must not differ
            workflow = frontend.saved()
            workflow["extra"] = {"ds": {"scale": 0.9, "offset": [80, 100]}}
            if graph.app:
                add_app(workflow, graph.app, ids, frontend)
            write_workflow(name, workflow)
        frontend.load(json.loads((HERE.workflows / f"{name}.json").read_text(encoding="utf-8")))
        _write(HERE.prompts / f"{name}.json", frontend.prompt())
    for name, blueprint in BLUEPRINTS.items():
        if options.name in name and not options.prompts:
            _write(HERE.blueprints / f"{name}.json", build(name, blueprint, frontend))


if __name__ == "__main__":
    main()
