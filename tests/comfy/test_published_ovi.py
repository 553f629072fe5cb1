"""Text to Vision Embedding with mode published, against the procedure of paper and code in double precision.

The reference is written from the paper and from what its ancestor's code does, not from `core/methods`. It shares with
ours the weights of both towers, the random start and the bank's members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from comfyui_diversity.core.methods.image_bank import ImageBank
from comfyui_diversity.core.methods.ovi import initial_tokens
from comfyui_diversity.nodes import ovi as node
from comfyui_diversity.nodes.image_bank import MakeImageBank
from comfyui_diversity.nodes.ovi import TextToVision, TextToVisionOptions
from small.encoders import small_encoder
from small.vision import SIZES, small_vision
from torch import Tensor

TEXT, SEED, TOKENS = "a red fish", 5, 6
TOWER = {"image_size": 24, "num_hidden_layers": 2}  # 3 x 3 patches, so that a thousand steps take seconds
RATE, DECAY = 0.02, 0.01
SHORT = 60  # steps where not all are wanted


# --- the reference ----------------------------------------------------------------------------------------------------


def text_vector() -> Tensor:
    """Projected pooled vector of the text in double precision: BOS, words, EOS, and nothing after it."""
    clip = small_encoder("sd1", inference=False)
    model = copy.deepcopy(clip.cond_stage_model.clip_l.transformer).double()
    ids = [token for token, _ in clip.tokenize(TEXT)["l"][0]]
    ids = ids[: ids.index(49407) + 1]
    with torch.no_grad():
        embeds = model.text_model.embeddings.token_embedding.weight[ids][None]
        outputs = model.text_model(None, embeds=padded(embeds), num_tokens=[len(ids)], dtype=torch.float64)
        return model.text_projection(outputs[2])[0]


def padded(embeds: Tensor) -> Tensor:
    return torch.cat([embeds, embeds[:, -1:].expand(-1, 77 - embeds.shape[1], -1)], dim=1)


class Tower:
    """Pseudo-tokens [P, D] to an embedding [E] in double precision."""

    def __init__(self) -> None:
        self.model = copy.deepcopy(small_vision(inference=False, **TOWER).model).double().requires_grad_(False)

    def __call__(self, tokens: Tensor) -> Tensor:
        vision, (count, _) = self.model.vision_model, tokens.shape
        patches = len(vision.embeddings.position_embedding.weight) - 1
        repeated = torch.stack([tokens[k * count // patches] for k in range(patches)])
        x = torch.cat([vision.embeddings.class_embedding[None], repeated]) + vision.embeddings.position_embedding.weight
        x = vision.pre_layrnorm(x[None])
        x = vision.encoder(x, mask=None)[0]
        return self.model.visual_projection(vision.post_layernorm(x[:, 0]))[0]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def mahalanobis(bank: ImageBank) -> Callable[[Tensor], Tensor]:
    """sqrt((e - mean)^T covariance^-1 (e - mean)), the covariance shrunk by the rule of its paper."""
    members = bank.members.double()
    count, width = members.shape
    mean = members.mean(0)
    own = (members - mean).T @ (members - mean) / count
    trace, squared = own.trace(), (own @ own).trace()
    # Oracle approximating shrinkage, equation 23 of Chen et al. in scikit-learn's form.
    alpha, scale = squared / width**2, trace / width
    shrinkage = ((alpha + scale**2) / ((count + 1) * (alpha - scale**2 / width))).clamp(max=1)
    covariance = (1 - shrinkage) * own + shrinkage * scale * torch.eye(width, dtype=torch.float64)
    return lambda e: ((e - mean) @ torch.linalg.solve(covariance, e - mean)).sqrt()


def nearest(bank: ImageBank) -> Callable[[Tensor], Tensor]:
    """1 - cosine to the nearest of the bank."""
    return lambda e: 1 - cosine(e[None], bank.members.double()).max()


def procedure(
    steps: int, variants: int, constraint: Callable[[Tensor], Tensor] | None, weight: float, rate: float
) -> tuple[Tensor, Tensor]:
    """Cosines [steps + 1, N] before the first step and after each, and the last embeddings [N, E]: AdamW written out,
    a fixed number of steps, one variant after the other."""
    tower, target = Tower(), text_vector()
    cosines, found = [], []
    for start in initial_tokens(variants, TOKENS, SIZES["hidden_size"], SEED).double():
        tokens, first, second, own = start, torch.zeros_like(start), torch.zeros_like(start), []
        for k in range(1, steps + 1):
            leaf = tokens.clone().requires_grad_()
            embedding = tower(leaf)
            own.append(cosine(embedding.detach(), target))
            loss = 1 - cosine(embedding, target)
            if constraint is not None:
                loss = loss + weight * constraint(embedding)
            gradient = torch.autograd.grad(loss, leaf)[0]
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            step = (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
            tokens = tokens * (1 - rate * DECAY) - rate * step
        last = tower(tokens)
        cosines.append(torch.stack([*own, cosine(last, target)]))
        found.append(last)
    return torch.stack(cosines, dim=1), torch.stack(found)


# --- ours -------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def as_nodes_run() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def bank() -> ImageBank:
    with torch.inference_mode():
        images = torch.rand(30, 40, 40, 3, generator=torch.Generator().manual_seed(0))
        return MakeImageBank.execute([images], [small_vision(**TOWER)], ["center"], None).args[0]


def ours(
    monkeypatch: pytest.MonkeyPatch, variants: int, constraint: str = "off", bank: Any = None, **changed: Any
) -> tuple:
    """Cosines and embeddings as above, and the report, of the node with one widget turned to published."""
    kept: list[Any] = []
    real = node.invert_text
    monkeypatch.setattr(node, "invert_text", lambda *args, **named: kept.append(real(*args, **named)) or kept[-1])
    options = TextToVisionOptions.execute(**changed).args[0] if changed else None
    outputs, _, _, report = TextToVision.execute(
        small_encoder("sd1"),
        small_vision(**TOWER),
        TEXT,
        variants,
        constraint,
        SEED,
        "published",
        bank,
        options=options,
    ).args
    return kept[0].inversion.cosines, torch.cat([output.image_embeds for output in outputs]), report


def reference(
    steps: int, variants: int, constraint: Any = None, weight: float = 0.0, rate: float = RATE
) -> tuple[Tensor, Tensor]:
    # ComfyUI's layers add in place to what autograd has saved.
    hooks = torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved)
    with torch.inference_mode(False), torch.enable_grad(), hooks:
        return procedure(steps, variants, constraint, weight, rate)


def agree(found: tuple, expected: tuple, tolerance: float) -> None:
    assert found[0].shape == expected[0].shape
    assert (found[0].double() - expected[0]).abs().max() < tolerance
    assert (found[1].double() - expected[1]).norm() < tolerance * expected[1].norm()


# --- agreement --------------------------------------------------------------------------------------------------------


def test_a_thousand_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding grows on the way: cosines agree to 1e-4 at first, and to 1e-2 at the end."""
    found, (cosines, embeddings) = ours(monkeypatch, 1), reference(1000, 1)
    assert found[0].shape == (1001, 1)
    assert (found[0][:SHORT].double() - cosines[:SHORT]).abs().max() < 1e-4
    agree(found, (cosines, embeddings), 1e-2)
    assert "after 1000 steps (last step)" in found[2]
    assert "As published." in found[2]
    assert "Not as published" not in found[2]


def test_the_last_result_is_kept_and_not_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate at which the last is not the best."""
    found, expected = ours(monkeypatch, 2, steps=20, learning_rate=0.5), reference(20, 2, rate=0.5)
    assert (expected[0].amax(0) - expected[0][-1]).max() > 0.01
    agree(found, expected, 1e-3)
    assert "Not as published: 20 steps (it has 1000), a learning rate of 0.5 (it has 0.02)." in found[2]


@pytest.mark.parametrize(
    ("name", "make", "weight"), [("nearest neighbour", nearest, 0.5), ("mahalanobis", mahalanobis, 0.009)]
)
def test_the_constraints_at_the_papers_weights(
    name: str, make: Any, weight: float, bank: ImageBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode(False):
        constraint = make(ImageBank(bank.members.clone(), bank.origin.clone()))
    found = ours(monkeypatch, 2, name, bank, steps=SHORT)
    agree(found, reference(SHORT, 2, constraint, weight), 1e-4)
    with pytest.raises(AssertionError):
        agree(found, reference(SHORT, 2), 1e-4)  # the constraint counts
    assert "form of the paper's constraint is not public" in found[2]
    assert f"Not as published: {SHORT} steps (it has 1000)." in found[2]
