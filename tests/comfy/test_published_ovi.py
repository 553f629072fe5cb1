"""Text to Vision Embedding with mode published, against the procedure of paper and code in double precision.

The reference is written from the paper and from what its ancestor's code does, not from `core/methods`. It shares with
ours the weights of both towers, the random start and the bank's members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui_diversity.core.drivers.ovi import published
from comfyui_diversity.core.methods.image_bank import ImageBank
from comfyui_diversity.core.methods.ovi import initial_tokens, invert
from comfyui_diversity.nodes import ovi as node
from comfyui_diversity.nodes.image_bank import MakeImageBank
from comfyui_diversity.nodes.ovi import TextToVision
from comfyui_diversity.nodes.ovi_options import TextToVisionOptions
from small.encoders import small_encoder
from small.vision import SIZES, small_vision
from torch import Tensor

TEXT, SEED, TOKENS = "a red fish", 5, 6
TOWER: dict[str, Any] = {"image_size": 24, "num_hidden_layers": 2}  # 3 x 3 patches
RATE, DECAY = 0.02, 0.01
SHORT = 60  # steps; over more, single precision goes its own way about the plateau


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
    starts: Tensor,
    tower: Callable[[Tensor], Tensor],
    target: Tensor,
    steps: int,
    constraint: Callable[[Tensor], Tensor] | None = None,
    weight: float = 0.0,
    rate: float = RATE,
) -> tuple[Tensor, Tensor]:
    """Cosines [steps + 1, N] before the first step and after each, and the last embeddings [N, E]: AdamW written out,
    a fixed number of steps, one variant after the other."""
    cosines, found = [], []
    for tokens in starts.double():
        first, second, own = torch.zeros_like(tokens), torch.zeros_like(tokens), []
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


def ours(monkeypatch: pytest.MonkeyPatch, constraint: str = "off", bank: Any = None) -> tuple:
    """Cosines and embeddings as above, and the report, of the node with one widget turned to published."""
    kept: list[Any] = []
    real = node.invert_text
    monkeypatch.setattr(node, "invert_text", lambda *args, **named: kept.append(real(*args, **named)) or kept[-1])
    options = TextToVisionOptions.execute(steps=SHORT).args[0]
    main = (TEXT, 2, constraint, SEED, "published", bank)
    outputs, _, _, report = TextToVision.execute(
        small_encoder("sd1"), small_vision(**TOWER), *main, options=options
    ).args
    return kept[0].inversion.cosines, torch.cat([output.image_embeds for output in outputs]), report


def reference(constraint: Any = None, weight: float = 0.0) -> tuple[Tensor, Tensor]:
    # ComfyUI's layers add in place to what autograd has saved.
    hooks = torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved)
    with torch.inference_mode(False), torch.enable_grad(), hooks:
        starts = initial_tokens(2, TOKENS, SIZES["hidden_size"], SEED)
        return procedure(starts, Tower(), text_vector(), SHORT, constraint, weight)


def agree(found: tuple, expected: tuple, tolerance: float) -> None:
    assert found[0].shape == expected[0].shape
    assert (found[0].double() - expected[0]).abs().max() < tolerance
    assert (found[1].double() - expected[1]).norm() < tolerance * expected[1].norm()


# --- agreement --------------------------------------------------------------------------------------------------------


def test_through_both_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ours(monkeypatch)
    agree(found, reference(), 1e-4)
    assert f"after {SHORT} steps (last step)" in found[2]
    assert f"As published. Not as published: {SHORT} steps (it has 1000)." in found[2]


@pytest.mark.parametrize(
    ("name", "make", "weight"), [("nearest neighbour", nearest, 0.5), ("mahalanobis", mahalanobis, 0.009)]
)
def test_the_constraints_at_the_papers_weights(
    name: str, make: Any, weight: float, bank: ImageBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode(False):
        constraint = make(ImageBank(bank.members.clone(), bank.origin.clone()))
    found = ours(monkeypatch, name, bank)
    agree(found, reference(constraint, weight), 1e-4)
    assert "form of the paper's constraint is not public" in found[2]


@pytest.mark.parametrize(
    ("steps", "rate"),
    [
        (1000, RATE),  # until long after its plateau
        (24, 0.05),  # it overshoots, so that the last step, which is kept, is not the best
    ],
)
def test_all_steps_in_double_precision(steps: int, rate: float) -> None:
    """The optimisation with the published plan through a small network."""
    with torch.inference_mode(False), torch.enable_grad():
        generator = torch.Generator().manual_seed(0)
        one, other = (torch.randn(24, 40, generator=generator).double() for _ in range(2))
        target = torch.randn(24, generator=generator).double()
        starts = initial_tokens(2, TOKENS, 4, SEED).double()

        def tower(tokens: Tensor) -> Tensor:
            return torch.tanh(3 * tokens.flatten() @ one) @ other.T

        def encode(tokens: Tensor) -> tuple[Tensor, Any]:
            leaf = tokens.detach().requires_grad_()
            embeddings = torch.stack([tower(row) for row in leaf])
            return embeddings.detach(), lambda gradient: torch.autograd.grad(embeddings, leaf, gradient)[0]

        plan = published()
        found = invert(starts, target[None], encode, replace(plan.settings, steps=steps, learning_rate=rate))
        expected = procedure(starts, tower, target, steps, rate=rate)
    assert plan.unpublished() == ""
    assert (plan.settings.steps, plan.settings.learning_rate) == (1000, RATE)
    assert found.steps.tolist() == [steps, steps]
    assert (steps == 1000) == bool((expected[0][-1] > expected[0].amax(0) - 1e-3).all())
    agree((found.cosines, found.embeddings), expected, 1e-6)
