"""The committed tables of families and set-ups are complete, and their cells come out again."""

from __future__ import annotations

import pytest
import torch
from small import models, released
from small.families import WHOLE

from benchmarks import families, families_page
from benchmarks.families_methods import METHODS, methods_of
from benchmarks.families_methods import rows as all_rows
from devtools.comfy_source import release
from devtools.places import HERE
from devtools.released import MODELS, TESTED

# Nodes that are no method: options, loaders, what keeps things, and what draws the demo world.
OTHERS = (
    "Options", "DiversityLoadDemoWorld", "DiversityLoadDemoUnclip", "DiversityDemoImages", "DiversityImageBank",
    "DiversitySaveImageBank", "DiversityLoadImageBank",
)  # fmt: skip


def test_no_cell_is_empty_and_none_fails() -> None:
    rows, cells = families_page.found()
    assert [(row["family"], row["setup"]) for row in rows] == all_rows()
    for family, setup in all_rows():
        row = cells[f"{family}, {setup}"]
        assert row.keys() == methods_of(family, setup).keys()
        for method, by_version in row.items():
            assert tuple(by_version) == TESTED
            for text in by_version.values():
                assert text.startswith(("works", "refused: ", "not there: ")), (family, setup, method, text)


def test_every_small_family_and_every_node_has_its_cell() -> None:
    from comfyui_diversity.nodes import NODES

    nodes = {node.GET_SCHEMA().node_id for node in NODES}
    run = {node for method in METHODS.values() for node in method.nodes}
    assert run == {node for node in nodes if not node.endswith(OTHERS)}
    made = {whole.make for whole in WHOLE.values()}
    assert {make for make, _ in released._WHOLE.values()} <= made
    assert {released.SAME.get(model.title, model.title) for model in MODELS} == set(released._WHOLE)
    assert len(WHOLE) > len(released._WHOLE) + len(models.FAMILIES)


@pytest.mark.parametrize(("family", "setup", "methods"), [
    ("AuraFlow", "plain", ("Diverse Prompts", "Diverse Noise")),
    ("SD1.5", "one image", ("Diverse Noise", "Schedule Conditioning")),
])  # fmt: skip
def test_cells_come_out_as_committed(family: str, setup: str, methods: tuple[str, ...]) -> None:
    _, cells = families_page.found()
    with torch.inference_mode():
        world = families.World(family, setup)
        for method in methods:
            committed = cells[f"{family}, {setup}"][method][release(HERE.comfyui())]
            assert families.cell(world, METHODS[method]) == committed
