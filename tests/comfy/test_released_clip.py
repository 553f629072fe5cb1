"""The CLIP file that `benchmarks.released` is given, beside the same file read by transformers."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import numpy as np
import pytest
import torch
from comfy.sd1_clip import SDTokenizer
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from benchmarks.released_judge import ClipFile

LAYERS = 24  # by its number of layers ComfyUI knows ViT-L
WIDTH = 32  # of the text tower and of what both give
TOWER = {"intermediate_size": 64, "num_attention_heads": 2, "hidden_act": "quick_gelu", "projection_dim": WIDTH}
TEXT = {**TOWER, "hidden_size": WIDTH, "num_hidden_layers": 3, "eos_token_id": 49407}
VISION = {**TOWER, "hidden_size": 48, "num_hidden_layers": LAYERS, "image_size": 32, "patch_size": 8}
PROMPT = "a red fish in deep water"


def saved(folder: Path, layers: int = LAYERS) -> CLIPModel:
    """A small CLIP with random weights, kept in the folder as those on the Hub are."""
    vision = {**VISION, "num_hidden_layers": layers}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=WIDTH)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name and weight.ndim:
                weight.normal_(std=0.15)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def small_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI takes a ViT-L to be as large as the released one; here it is small."""
    config = tmp_path / "vision.json"
    config.write_text(json.dumps({**VISION, "model_type": "clip_vision_model", "num_channels": 3}))
    vision, text = comfy.clip_vision.ClipVisionModel, comfy.sd.load_text_encoder_state_dicts
    monkeypatch.setattr(comfy.clip_vision, "ClipVisionModel", lambda _: vision(str(config)))
    options = {"model_config": dict(TEXT)}
    monkeypatch.setattr(comfy.sd, "load_text_encoder_state_dicts", functools.partial(text, model_options=options))


def test_both_towers_give_what_transformers_gives(tmp_path: Path, small_sizes: None) -> None:
    model, judge = saved(tmp_path), ClipFile(tmp_path / "model.safetensors")
    images = np.random.default_rng(0).integers(256, size=(3, 32, 32, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(images) / 255 - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    ids = [token for token, _ in SDTokenizer().tokenize_with_weights(PROMPT)[0]]
    with torch.no_grad():
        expected: Any = model.get_image_features(pixels.float().movedim(-1, 1))
        vector: Any = model.get_text_features(torch.tensor([ids]))[0]
    found, text = judge.images(images), judge.text(PROMPT)
    assert F.cosine_similarity(found, expected).min() > 0.9999
    assert F.cosine_similarity(text, vector, dim=0) > 0.9999
    # So that this could fail: images differ from one another, and a text from another.
    assert F.cosine_similarity(found[0], found[1], dim=0) < 0.99
    assert F.cosine_similarity(text, judge.text("a wooden boat"), dim=0) < 0.99


def test_files_of_another_kind_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        ClipFile(tmp_path / "gone.safetensors")
    saved(tmp_path, layers=12)
    with pytest.raises(ValueError, match="vision tower ComfyUI cannot read; it reads ViT-L"):
        ClipFile(tmp_path / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    text_alone = {name: value for name, value in weights.items() if name.startswith("text_")}
    save_file(text_alone, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match=r"has no vision_model\.\*; it must be a CLIP with both towers"):
        ClipFile(tmp_path / "text.safetensors")
