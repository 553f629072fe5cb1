"""Writes the tables of the help pages and the README from the nodes' schemas: `python -m devtools.help_tables`.

Each page in web/docs has its inputs and outputs between the markers `<!-- settings -->` and `<!-- /settings -->`; a
page without them gets them at its end. The README has the list of nodes between `<!-- nodes -->` and `<!-- /nodes -->`,
and that of released models between `<!-- models -->` and `<!-- /models -->`.
Everything else is written by hand. `--check` changes nothing and fails where a page is not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .pages import block_names, replace_block, table
from .places import HERE
from .released import MODELS, TESTED, time_words

PAGES = HERE.root / "web" / "docs"
README = HERE.root / "README.md"
BLOCK, LIST, SHELF = "settings", "nodes", "models"
_LARGEST_SEED = 2**64 - 1


def page_with_tables(page: str, schema: Any) -> str:
    """The page with the tables of a node's schema in their block."""
    if BLOCK not in block_names(page):
        page = f"{page.rstrip()}\n\n<!-- {BLOCK} -->\n<!-- /{BLOCK} -->\n"
    return replace_block(page, BLOCK, _tables(schema))


def _tables(schema: Any) -> str:
    parts = []
    if schema.inputs:
        rows = [_input_row(one) for one in schema.inputs]
        parts += ["## Inputs", table(["Input", "Default", "Allowed", "What it does"], rows)]
    if schema.outputs:
        rows = [_output_row(one) for one in schema.outputs]
        parts += ["## Outputs", table(["Output", "Type", "What it is"], rows)]
    return "\n\n".join(parts)


def _input_row(one: Any) -> list[str]:
    name = f"{one.id} (advanced)" if is_advanced(one) else one.id
    return [name, default_of(one), _allowed(one), one.tooltip or ""]


def _output_row(one: Any) -> list[str]:
    kind = one.get_io_type()
    return [one.display_name or kind, f"list of {kind}" if one.is_output_list else kind, one.tooltip or ""]


def is_advanced(one: Any) -> bool:
    """Whether the input is shown only when a user asks for advanced ones."""
    # ComfyUI before 0.4 has no such attribute: the pack passes the flag on beside the others.
    return bool(getattr(one, "advanced", None) or (one.extra_dict or {}).get("advanced"))


def default_of(one: Any) -> str:
    """The default as the node shows it; empty for sockets and empty texts."""
    value = getattr(one, "default", None)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _allowed(one: Any) -> str:
    kind = one.get_io_type()
    if kind == "COMBO":
        return ", ".join(map(str, one.options))
    if kind == "BOOLEAN":
        return "on, off"
    if kind == "STRING":
        return "text"
    least, most = getattr(one, "min", None), getattr(one, "max", None)
    if least is not None and most is not None:
        return "any whole number from 0" if most == _LARGEST_SEED else f"{least:g} to {most:g}"
    return f"{kind}, optional" if one.optional else kind


def list_of_nodes(schemas: Iterable[Any]) -> str:
    """A table of nodes by category, each with the first sentence of its description. Without options nodes."""
    shown = [schema for schema in schemas if not schema.node_id.endswith("Options")]
    rows = []
    for schema in sorted(shown, key=_place):
        sentence = re.split(r"(?<=\.) (?=[A-Z])", schema.description or "")[0].removesuffix(".")
        rows.append([f"[{schema.display_name}](web/docs/{schema.node_id}.md)", sentence])
    return table(["Node", "What it does"], rows)


def list_of_models() -> str:
    """A table of the released models that have a template: settings, where it was tested, what Diversify costs."""
    from comfyui_diversity.core.methods.diversify import Situation, plan

    rows = []
    for model in MODELS:
        run = Situation(model.steps, model.cfg != 1, 4)
        extra = plan(0.5, run).extra_passes(run)
        settings = f"{model.sampler}, {'its own scheduler' if model.scheduler == 'flux2' else model.scheduler}, "
        settings += f"{model.steps} steps, " + (
            f"guidance {model.guidance:g}" if model.guidance else f"CFG {model.cfg:g}"
        )
        tested = [version for version in TESTED if version not in model.missing_in]
        rows.append([model.title, settings, ", ".join(tested), time_words(extra)])
    return table(["Model", "Settings of its template", "Tested on ComfyUI", "Sampling time"], rows)


def _place(schema: Any) -> tuple[int, str]:
    """Diversify comes first, what belongs to no method (the demo world) last."""
    if schema.node_id.startswith("DiversityDiversify"):
        return 0, ""
    return 2 if schema.category == "diversity" else 1, schema.category


def outdated(nodes: Iterable[Any], folder: Path = PAGES) -> dict[Path, str]:
    """The README and the pages that are not up to date, and what they should say.

    Raises ValueError for a node without a page, a page without a node, and a page with half a block.
    """
    schemas = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in nodes}
    pages = {path.stem: path for path in folder.glob("*.md")}
    if schemas.keys() != pages.keys():
        missing, alone = sorted(schemas.keys() - pages.keys()), sorted(pages.keys() - schemas.keys())
        raise ValueError(f"{folder}: nodes without a page: {missing}; pages without a node: {alone}.")
    found = {}
    readme = README.read_text(encoding="utf-8")
    listed = replace_block(readme, LIST, list_of_nodes(schemas.values()))
    if (listed := replace_block(listed, SHELF, list_of_models())) != readme:
        found[README] = listed
    for node_id, schema in schemas.items():
        old = pages[node_id].read_text(encoding="utf-8")
        new = page_with_tables(old, schema)
        if new != old:
            found[pages[node_id]] = new
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is not up to date")
    options = parser.parse_args(arguments)
    for path, text in outdated(_nodes()).items():
        print(path.relative_to(HERE.root))
        if not options.check:
            path.write_text(text, encoding="utf-8")
    return 1 if options.check and outdated(_nodes()) else 0


def _nodes() -> list[Any]:
    from .pack import load_comfyui, load_pack

    # `python -m` puts the pack's root on the path, where its `nodes` would hide ComfyUI's.
    sys.path[:] = [entry for entry in sys.path if entry not in ("", str(HERE.root))]
    load_comfyui()
    load_pack()
    from comfyui_diversity.nodes import NODES

    return NODES


if __name__ == "__main__":
    sys.exit(main())
