"""The benchmarks' tables: changes against the baseline, the newest of equal names."""

from __future__ import annotations

from benchmarks.table import table


def row(name: str, adherence: float, mss: float, vendi: float) -> dict:
    numbers = {"colour": 2.0, "size": 1.0, "place": 1.0, "background": 1.0}
    return {
        "row": name,
        "adherence": adherence,
        "mss": mss,
        "mss_centred": mss - 0.3,
        "vendi": vendi,
        "effective_number": numbers,
        "rare_share": 0.1,
        "seconds": 3.2,
    }


def test_rows_stand_beside_their_baseline() -> None:
    text = table([row("baseline", 0.95, 0.8, 2.0), row("shipped", 0.5, 0.1, 9), row("shipped", 0.94, 0.6, 3.0)])
    assert text.splitlines()[2:] == [
        "| baseline | 0.950 | 0.800 | 0.500 | 2.00 | 2.00 | 0.100 | 3 |",
        "| shipped | 0.940 (-1.0) | 0.600 (-25 %) | 0.300 (-40 %) | 3.00 (+50 %) | 2.00 | 0.100 | 3 |",
    ]


def test_without_a_baseline_there_are_no_changes() -> None:
    assert "shipped | 0.940 | 0.600 |" in table([row("shipped", 0.94, 0.6, 3.0)])
