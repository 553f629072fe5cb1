"""Markdown pages with generated blocks: tables, and what stands between two markers."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. Line breaks and pipes in cells are escaped."""
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text).replace("|", "\\|")


def block_names(page: str) -> list[str]:
    """Names of a page's blocks, `<!-- NAME -->` to `<!-- /NAME -->`, in their order."""
    return re.findall(r"^<!-- /(.+) -->$", page, re.MULTILINE)


def replace_block(page: str, name: str, content: str) -> str:
    """The page with `content` between the markers of the block `name`.

    Raises ValueError for a page that does not have that block exactly once.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if page.count(start) != 1 or page.count(end) != 1:
        raise ValueError(f"The page must have one block from {start.strip()} to {end}.")
    before, rest = page.split(start)
    return f"{before}{start}\n{content}\n\n{end}{rest.split(end)[1]}"


def without_blocks(page: str) -> str:
    """What people wrote: the page without its generated blocks."""
    for name in block_names(page):
        page = re.sub(rf"<!-- {re.escape(name)} -->\n.*?<!-- /{re.escape(name)} -->", "", page, flags=re.DOTALL)
    return page
