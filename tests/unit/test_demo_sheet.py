"""Contact sheets show the right image in the right place; the table has every row."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from benchmarks.demo_sheet import (
    BLOCK_GAP,
    BROKEN,
    GAP,
    HEAD_HEIGHT,
    LABEL_WIDTH,
    MARGIN,
    PAPER,
    Block,
    caption,
    contact_sheet,
    table,
)
from devtools.images import grid as make_grid

SIDE, COLUMNS = 32, 3
ROW = {
    "workflow": "baseline_unet",
    "model": "unet",
    "method": "baseline",
    "settings": {},
    "cfg": 6,
    "steps": 20,
    "prompts": 10,
    "images": 100,
    "adherence": 0.987,
    "fidelity": 0.912,
    "quality_vendi": 2.89,
    "effective_number": {"colour": 2.345, "background": 1.5},
    "rare_share": 0.123,
    "mss": 0.456,
    "mss_centred": 0.234,
    "vendi": 3.21,
    "seconds": 12.3,
}


def coloured(count: int, seed: int) -> np.ndarray:
    """Images of one flat colour each, all different."""
    colours = np.random.default_rng(seed).integers(0, 255, (count, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (count, 16, 16, 3)).copy()


def test_every_image_is_in_its_place() -> None:
    rows = [[coloured(COLUMNS, 10 * block + row) for row in range(2)] for block in range(2)]
    sheet = contact_sheet(["a heart", "a star"], [Block("A", "", rows[0]), Block("B", "", rows[1])], COLUMNS, SIDE)
    block_width = COLUMNS * (SIDE + GAP) - GAP
    for block in range(2):
        for row in range(2):
            for column in range(COLUMNS):
                x = MARGIN + LABEL_WIDTH + block * (block_width + BLOCK_GAP) + column * (SIDE + GAP) + SIDE // 2
                y = MARGIN + HEAD_HEIGHT + row * (SIDE + GAP) + SIDE // 2
                assert sheet.getpixel((x, y)) == tuple(rows[block][row][column, 0, 0])


def test_broken_images_are_marked_and_no_others() -> None:
    rows = [coloured(COLUMNS, 1), coloured(COLUMNS, 2)]
    marks = [[False, True, False], [False, False, False]]
    plain = contact_sheet(["a", "b"], [Block("A", "", rows)], COLUMNS, SIDE)
    marked = contact_sheet(["a", "b"], [Block("A", "", rows, marks)], COLUMNS, SIDE)
    y, x = np.nonzero((np.asarray(plain) != np.asarray(marked)).any(-1))
    left, top = MARGIN + LABEL_WIDTH + SIDE + GAP, MARGIN + HEAD_HEIGHT
    assert len(x)
    assert left <= x.min() <= x.max() < left + SIDE
    assert top <= y.min() <= y.max() < top + SIDE
    assert BROKEN in {marked.getpixel((int(a), int(b))) for a, b in zip(x, y, strict=True)}


def test_titles_and_labels_are_drawn() -> None:
    rows = [coloured(COLUMNS, 1)]
    sheet = np.asarray(contact_sheet(["a heart"], [Block("Title", "figures", rows)], COLUMNS, SIDE))
    label, head = sheet[MARGIN + HEAD_HEIGHT :, :LABEL_WIDTH], sheet[MARGIN : MARGIN + HEAD_HEIGHT, LABEL_WIDTH:]
    assert (label != PAPER).any()
    assert (head != PAPER).any()


def test_a_row_may_be_short() -> None:
    sheet = contact_sheet(["a heart"], [Block("A", "", [coloured(1, 1)])], COLUMNS, SIDE)
    assert sheet.getpixel((sheet.width - MARGIN - SIDE // 2, sheet.height - MARGIN - SIDE // 2)) == PAPER


def test_refuses_blocks_of_other_prompts() -> None:
    with pytest.raises(ValueError, match="Block 'A' has 1 rows; there are 2 labels"):
        contact_sheet(["a heart", "a star"], [Block("A", "", [coloured(1, 1)])], COLUMNS, SIDE)


def test_grid_shows_all() -> None:
    images = coloured(5, 3)
    sheet = make_grid(images, columns=3, side=16, gap=4)
    assert sheet.size == (3 * 20 + 4, 2 * 20 + 4)
    assert sheet.getpixel((4 + 20 + 8, 4 + 20 + 8)) == tuple(images[4, 0, 0])


def test_caption() -> None:
    assert caption(ROW) == "adherence 99%   sound 91%   rare 12%   Vendi 3.21   quality x Vendi 2.89"


def test_table_has_every_row_and_figure() -> None:
    shown = io.StringIO()
    every = {"colour": 2.345, "size": 1.5, "place": 4.5, "background": 3.5}
    rows = [
        {**ROW, "effective_number": every},
        {**ROW, "model": "distilled", "method": "tpso+cno", "effective_number": {"size": 2.5}},
    ]
    Console(file=shown, width=80).print(table(rows))
    text = shown.getvalue()
    for figure in (
        "unet",
        "distilled",
        "tpso+cno",
        "99%",
        "91%",
        "2.89",
        "2.35",
        "1.50",
        "2.50",
        "12%",
        "0.46",
        "0.23",
        "3.21",
    ):
        assert figure in text, figure
    assert "…" not in text, "something does not fit into 80 columns"


def test_rows_of_fewer_prompts_are_marked() -> None:
    shown = io.StringIO()
    Console(file=shown, width=80).print(table([ROW, {**ROW, "cfg": 3, "prompts": 5}]))
    assert shown.getvalue().count("*") == 1
    assert "3*" in shown.getvalue()
