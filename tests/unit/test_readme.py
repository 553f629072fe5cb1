"""The README's table knows every node, and no other."""

from __future__ import annotations

import re

from devtools.places import HERE


def test_every_node_is_in_the_table() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (HERE.root / "nodes").glob("*.py")]
    names = {name for source in sources for name in re.findall(r'node_id="\w+",\s+display_name="([^"]+)"', source)}
    readme = (HERE.root / "README.md").read_text(encoding="utf-8")
    table = readme.split("\n## Nodes\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)
    assert {name for cell in cells[2:] for name in cell.split(", ")} == names
