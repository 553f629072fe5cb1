"""Help pages against the schemas: tables are up to date, and what stands in them stands nowhere else on the page."""

from __future__ import annotations

import re

from comfyui_diversity.nodes import NODES

from devtools.help_tables import PAGES, default_of, outdated
from devtools.pages import without_blocks


def test_tables_are_up_to_date() -> None:
    assert not outdated(NODES), "run `python -m devtools.help_tables`"


def test_no_setting_is_told_twice() -> None:
    """Neither a table of settings written by hand, nor a default beside its name."""
    twice = []
    for node in NODES:
        schema = node.GET_SCHEMA()
        prose = without_blocks((PAGES / f"{schema.node_id}.md").read_text(encoding="utf-8"))
        for one in filter(lambda one: hasattr(one, "default"), schema.inputs):
            default = re.escape(default_of(one)) if one.get_io_type() in ("INT", "FLOAT") else "(?!)"
            name = rf"\*{{1,2}}{one.id}\*{{1,2}}"
            patterns = rf"^\| \**{one.id}\** \|", rf"{name}(?: is| of|:)? {default}(?![\d.]\d)"
            twice += [(schema.node_id, one.id) for pattern in patterns if re.search(pattern, prose, re.MULTILINE)]
    assert not twice
