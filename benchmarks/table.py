"""Rows that a benchmark wrote, as a Markdown table beside their baseline: `python -m benchmarks.table FILE.jsonl ...`.

Of rows with the same name the newest counts. Changes are relative to the row "baseline" of the same file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = ["row", "adherence", "MSS", "centred MSS", "Vendi", "colours (eff.)", "rare share", "seconds"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a row; MSS and Vendi with their change from the baseline, adherence with its change in points."""
    newest = {row["row"]: row for row in rows}
    baseline = newest.get("baseline")
    lines = [HEAD, ["---"] * len(HEAD)]
    for name, row in newest.items():
        compared = baseline if row is not baseline else None
        lines.append(
            [
                name,
                f"{row['adherence']:.3f}{_points(row, compared)}",
                f"{row['mss']:.3f}{_change(row, compared, 'mss')}",
                f"{row['mss_centred']:.3f}{_change(row, compared, 'mss_centred')}",
                f"{row['vendi']:.2f}{_change(row, compared, 'vendi')}",
                f"{row['effective_number']['colour']:.2f}",
                f"{row['rare_share']:.3f}",
                f"{row['seconds']:.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _points(row: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> str:
    return "" if baseline is None else f" ({100 * (row['adherence'] - baseline['adherence']):+.1f})"


def _change(row: Mapping[str, Any], baseline: Mapping[str, Any] | None, name: str) -> str:
    return "" if baseline is None else f" ({100 * (row[name] / baseline[name] - 1):+.0f} %)"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args(arguments).files:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        print(f"{path.stem}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
