"""All that a model reads of a text is blended with it, or the run is refused before its first step."""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.sample
import pytest
import torch
from comfyui_diversity.core.drivers.schedule import can_blend, scheduled
from comfyui_diversity.core.hooks.blending import blended
from comfyui_diversity.core.methods.schedule import Window
from small.models import Counter, conditioning, random_latent, small_model
from torch import Tensor


def regular(**values: Any) -> dict[str, Any]:
    return {
        name: comfy.conds.CONDRegular(value) if isinstance(value, Tensor) else comfy.conds.CONDConstant(value)
        for name, value in values.items()
    }


def text(tokens: int, read: int | None = None) -> dict[str, Any]:
    """As OmniGen 2, Lumina 2 and Z-Image read a text."""
    mask = (torch.arange(tokens) < (read or tokens)).long()[None]
    return regular(c_crossattn=torch.ones(1, tokens, 8), attention_mask=mask, num_tokens=int(mask.sum()))


def test_the_number_of_tokens_and_the_mask_are_those_of_the_longer_text() -> None:
    for first, second in ((text(5), text(10)), (text(10), text(5)), (text(10, 3), text(10, 7))):
        found = blended(first, second, 0.5, 1)
        longest = max(first["num_tokens"].cond, second["num_tokens"].cond)
        assert found["num_tokens"].cond == longest
        assert found["c_crossattn"].cond.shape[1] == found["attention_mask"].cond.shape[1] == 10
        assert int(found["attention_mask"].cond.sum()) == longest
    no_mask = {name: cond for name, cond in text(10).items() if name != "attention_mask"}
    assert "attention_mask" not in blended(text(10, 3), no_mask, 0.5, 1)


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        pytest.param({"input_ids": torch.tensor([[1, 2]])}, {"input_ids": torch.tensor([[1, 3]])}, "input_ids"),
        pytest.param({"llama3": torch.ones(1, 2, 130, 8)}, {"llama3": torch.ones(1, 2, 128, 8)}, "llama3"),
        pytest.param({"t5": torch.ones(1, 256, 8)}, {"t5": torch.ones(1, 407, 8)}, "t5"),
        pytest.param({"frame_rate": 24}, {"frame_rate": 25}, "frame_rate"),
    ],
)
def test_a_run_is_refused_before_its_first_step(
    first: dict, second: dict, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of models that read more than a sequence of embeddings."""
    model, counter = small_model("eps"), Counter()
    real = model.model.extra_conds

    def extra_conds(**named: Any) -> dict[str, Any]:
        return {**real(**named), **(regular(**named["more"]) if "more" in named else {})}

    monkeypatch.setattr(model.model, "extra_conds", extra_conds)
    conds = [[[conditioning("eps", seed=k)[0][0], {"more": more}]] for k, more in enumerate((first, second))]
    noise = random_latent("eps", 1)
    with torch.inference_mode(), pytest.raises(ValueError, match=f"cannot be blended for this model: {named} is"):
        comfy.sample.sample(
            counter.on(model), noise, 2, 3.0, "euler", "simple", scheduled(*conds, Window(0.5)),
            conditioning("eps", seed=2), noise, disable_pbar=True,
        )  # fmt: skip
    assert counter.sizes == []
    for nothing_to_blend in (Window(0.5, easing="hold"), Window(0.0)):
        assert not nothing_to_blend.fades
    same = scheduled(conds[0], conds[0], Window(0.5))
    assert same[0][1]["more"] is first


def test_other_sequences_of_a_conditioning_count() -> None:
    """HiDream-I1 and HunyuanDiT read two."""
    cond = torch.ones(1, 128, 8)

    def of(length: int) -> list:
        return [[cond, {"conditioning_llama3": torch.ones(1, 2, length, 8)}]]

    assert can_blend(of(128), of(128))
    assert not can_blend(of(130), of(128))


def test_texts_that_switch_may_have_any_length() -> None:
    first, second = conditioning("eps", tokens=20), conditioning("eps", seed=1, tokens=77)
    model, negative, noise = small_model("eps"), conditioning("eps", seed=2), random_latent("eps", 1)
    with torch.inference_mode():
        images = comfy.sample.sample(
            model, noise, 2, 3.0, "euler", "simple", scheduled(first, second, Window(0.5, easing="hold")), negative,
            noise, disable_pbar=True,
        )  # fmt: skip
    assert torch.isfinite(images).all()
