"""Conditioning of some images of a batch, as a guider holds it after processing."""

from __future__ import annotations

import comfy.conds
import comfy.controlnet
import comfy.samplers
import pytest
import torch
from comfyui_diversity.core.hooks.conditioning import conditioning_rows
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 6), batch=st.integers(1, 8), data=st.data())
def test_rows_are_those_that_comfyui_gives_each_image(rows: int, batch: int, data: st.DataObject) -> None:
    """ComfyUI repeats or cuts a conditioning to the batch; a part of the batch must get the same rows."""
    start = data.draw(st.integers(0, batch - 1))
    part = range(start, data.draw(st.integers(start + 1, batch)))
    tensor = torch.arange(rows * 6.0).reshape(rows, 2, 3)
    mask = torch.arange(rows * 4.0).reshape(rows, 2, 2)
    if batch % rows and rows < batch:
        mask = mask[:1]  # ComfyUI takes no other masks
    entry = {
        "model_conds": {
            "c_crossattn": comfy.conds.CONDCrossAttn(tensor),
            "several": comfy.conds.CONDList([tensor, tensor + 100]),
            "number": comfy.conds.CONDConstant(3),
        },
        "mask": mask,
        "uuid": 0,
    }
    image = torch.zeros(batch, 4, 2, 2)
    whole = comfy.samplers.get_area_and_mult(entry, image, torch.ones(batch))
    chosen = conditioning_rows({"positive": [entry]}, part)["positive"][0]
    some = comfy.samplers.get_area_and_mult(chosen, image[part.start : part.stop], torch.ones(len(part)))
    here = slice(part.start, part.stop)
    assert torch.equal(some.conditioning["c_crossattn"].cond, whole.conditioning["c_crossattn"].cond[here])
    for one, other in zip(some.conditioning["several"].cond, whole.conditioning["several"].cond, strict=True):
        assert torch.equal(one, other[here])
    assert some.conditioning["number"].cond == 3
    assert torch.equal(some.mult, whole.mult[here])
    assert entry["model_conds"]["c_crossattn"].cond is tensor


def test_a_controlnet_with_several_hints_is_refused() -> None:
    control = comfy.controlnet.ControlBase()
    control.set_cond_hint(torch.zeros(3, 3, 8, 8))
    last = comfy.controlnet.ControlBase()
    last.set_cond_hint(torch.zeros(1, 3, 8, 8))
    last.set_previous_controlnet(control)
    with pytest.raises(ValueError, match="3 hint"):
        conditioning_rows({"positive": [{"model_conds": {}, "control": last}]}, range(2))
    alone = comfy.controlnet.ControlBase()
    alone.set_cond_hint(torch.zeros(1, 3, 8, 8))
    assert conditioning_rows({"positive": [{"model_conds": {}, "control": alone}]}, range(2))["positive"]
