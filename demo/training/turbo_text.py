"""The language model that reads prompts for the demo's Z-Image: ComfyUI's Qwen3 class, at a small size.

It learns to continue captions, and linear readers ask the hidden states that the denoiser will read for every
attribute, stated or left open; they are thrown away afterwards. Only the words of captions have embeddings of their
own. All others share a few, picked by their token's number, and captions with such words in between teach the model to
read past them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .comfy_boot import DEVICE, autocast  # isort: skip
import comfy.ops
from comfy.text_encoders.llama import Qwen3_4B
from comfy.text_encoders.z_image import ZImageTokenizer

from ..architectures import QWEN, QWEN_OTHERS
from ..world.attributes import VALUES, Scene, sample_scene, sample_uniform_scene
from ..world.captions import OPTIONAL, caption
from .initialise import initialise
from .loop import Schedule, train

SCHEDULE, BATCH = Schedule(1_200, 3e-3, warmup=60, weight_decay=0.05, average=0.99), 32
CAPTIONS = 12_000
LONGEST = 40  # no caption is longer in tokens, with the chat template around it
READ = QWEN["num_hidden_layers"] - 2  # the layer whose output Z-Image reads: the last but one
SUFFIX = 5  # tokens of the chat template behind a caption
_NOT_ASKED = -100  # what PyTorch's cross-entropy passes over


class Words:
    """Qwen's tokens, numbered compactly: those of captions, then the shared embeddings of all others."""

    def __init__(self) -> None:
        self._tokenizer = ZImageTokenizer()
        rng = np.random.default_rng(5)
        seen = {self._tokenizer.qwen3_4b.pad_token}
        for _ in range(4000):
            scene = sample_uniform_scene(rng)
            seen.update(self.tokens(caption(scene, [n for n in OPTIONAL if rng.random() < 0.8], rng)))
        self.ids = sorted(seen)
        self._compact = {token: k for k, token in enumerate(self.ids)}

    def tokens(self, text: str) -> list[int]:
        """Qwen's own numbers, with Z-Image's chat template around the text."""
        return [token for token, _ in self._tokenizer.tokenize_with_weights(text)["qwen3_4b"][0]]

    def compact(self, tokens: list[int]) -> list[int]:
        known = len(self.ids)
        return [self._compact.get(token, known + token % QWEN_OTHERS) for token in tokens]

    def __len__(self) -> int:
        return len(self.ids) + QWEN_OTHERS


class Reading(nn.Module):
    """The language model and the readers of its hidden states: each attribute's value, or that it is left open."""

    def __init__(self, words: Words) -> None:
        super().__init__()
        self.qwen = Qwen3_4B(
            {**QWEN, "vocab_size": len(words)}, torch.float32, torch.device("cpu"), comfy.ops.disable_weight_init
        )
        initialise(self.qwen)
        nn.init.normal_(self.qwen.model.embed_tokens.weight, std=QWEN["hidden_size"] ** -0.5)
        width = QWEN["hidden_size"]
        self.readers = nn.ModuleDict({name: nn.Linear(width, len(values) + 1) for name, values in VALUES.items()})

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[N, L, words]` of each token's follower, and the hidden states `[N, L, D]` that Z-Image reads."""
        last, hidden = self.qwen.model(rows, intermediate_output=READ, final_layer_norm_intermediate=False)[:2]
        return last @ self.qwen.model.embed_tokens.weight.T, hidden

    def read(self, hidden: Tensor) -> dict[str, Tensor]:
        """Logits of every attribute; a hidden state's length says nothing, as the denoiser normalises it."""
        unit = F.rms_norm(hidden, hidden.shape[-1:])
        return {name: reader(unit) for name, reader in self.readers.items()}


def train_turbo_text(folder: Path) -> tuple[nn.Module, Words]:
    torch.manual_seed(110)
    words = Words()
    rows, lengths, truths = _captions(words)

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        assert isinstance(model, Reading)
        chosen = torch.from_numpy(rng.integers(CAPTIONS, size=BATCH))
        ends = lengths[chosen]
        tokens = rows[chosen, : int(ends.max())].to(DEVICE)
        with autocast():
            logits, hidden = model(tokens)
        following = tokens[:, 1:].clone()
        following[torch.arange(following.shape[1]) + 1 >= ends[:, None]] = _NOT_ASKED
        language = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), following.flatten(), ignore_index=_NOT_ASKED)
        behind = ends[:, None] - 1 - torch.arange(SUFFIX)
        states = hidden.gather(1, behind[..., None].expand(-1, -1, hidden.shape[2]).to(DEVICE)).float()
        reading = sum(
            F.cross_entropy(values.flatten(0, 1), truths[name][chosen].repeat_interleave(SUFFIX).to(DEVICE))
            for name, values in model.read(states).items()
        )
        return language + reading / len(VALUES)

    model = train("turbo_text", Reading(words).to(DEVICE), loss_at, SCHEDULE, folder, seed=111)
    return model, words


def _captions(words: Words) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Rows of compact tokens `[CAPTIONS, LONGEST]`, their lengths, and each attribute's value or, last, "left open"."""
    rng = np.random.default_rng(112)
    others = [word for word in range(1000, 100_000, 7)]  # any tokens that no caption has
    rows, lengths = torch.zeros(CAPTIONS, LONGEST, dtype=torch.long), torch.zeros(CAPTIONS, dtype=torch.long)
    truths = {name: torch.zeros(CAPTIONS, dtype=torch.long) for name in VALUES}
    for k in range(CAPTIONS):
        scene, stated, text = _captioned(rng)
        tokens = words.tokens(text)
        if text and rng.random() < 0.25:
            for _ in range(rng.integers(1, 3)):
                tokens.insert(int(rng.integers(3, len(tokens) - SUFFIX + 1)), int(rng.choice(others)))
        compact = words.compact(tokens)
        rows[k, : len(compact)] = torch.tensor(compact)
        lengths[k] = len(compact)
        for name, values in VALUES.items():
            truths[name][k] = values.index(getattr(scene, name)) if name in stated else len(values)
    return rows, lengths, truths


def _captioned(rng: np.random.Generator) -> tuple[Scene, tuple[str, ...], str]:
    """A scene, what its caption states, and the caption; an empty one, which states nothing, once in 25."""
    scene = sample_scene(rng) if rng.random() < 0.3 else sample_uniform_scene(rng)
    if rng.random() < 0.04:
        return scene, (), ""
    stated = [name for name in OPTIONAL if rng.random() < 0.5]
    return scene, ("object", *stated), caption(scene, stated, rng)
