"""The committed results against the benchmarks: each row can be made again."""

from __future__ import annotations

import importlib

import pytest

from benchmarks.results import COMMITTED, read

ROWS_OF = ("cno_settings", "tpso_settings", "minority_settings", "ovi_images", "ovi_settings", "rarest_first")


@pytest.mark.parametrize("name", ROWS_OF)
def test_every_committed_row_is_one_of_the_benchmark(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    known = {*(module.RANKINGS if name == "rarest_first" else module.ROWS), *getattr(module, "BESIDE", ())}
    files = list(COMMITTED.glob(f"{name}_*.json"))
    assert files
    assert {row["row"] for file in files for row in read(file)["rows"]} <= known
