"""The demo's figures as a Markdown table, for the README and the model card: `python -m benchmarks.demo_markdown`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devtools.places import HERE

from .command import exit_code

FIGURES = HERE.root / "demo" / "output" / "figures.json"
ATTRIBUTES = ("colour", "size", "place", "background")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with one line a row of figures.json."""
    head = [
        "model",
        "method",
        "CFG",
        "steps",
        "prompts",
        "adherence",
        "fidelity",
        "quality Vendi",
        *(f"{name} (eff.)" for name in ATTRIBUTES),
    ]
    head += ["rare share", "MSS", "centred MSS", "Vendi", "seconds"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        numbers = row["effective_number"]
        lines.append(
            [row["model"], row["method"], f"{row['cfg']:g}", str(row["steps"]), str(row["prompts"])]
            + [f"{row['adherence']:.3f}", f"{row['fidelity']:.3f}", f"{row['quality_vendi']:.2f}"]
            + [f"{numbers[name]:.2f}" for name in ATTRIBUTES]
            + [f"{row[name]:.3f}" for name in ("rare_share", "mss", "mss_centred")]
            + [f"{row['vendi']:.2f}", f"{row['seconds']:.0f}"]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_file(path: Path) -> str:
    """The table of a figures.json. Raises ValueError for a file that is missing or damaged."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not rows:
            raise ValueError("it has no rows")
        return markdown(rows)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: run `python dev.py demo` first.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): run `python dev.py demo`, which makes it again.") from error


def main() -> int:
    """Returns the exit code."""
    return exit_code(lambda: print(of_file(FIGURES)))


if __name__ == "__main__":
    sys.exit(main())
