"""Diverse Noise with mode published, against the procedures of paper and release written out in double precision.

The references below are written from the equations and from what the released code does, not from `core/methods`. They
share with ours the denoiser's weights and the noise, and nothing else.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import CFGGuider, RandomNoise
from comfyui_diversity.core.hooks.denoise import CleanEstimate
from comfyui_diversity.nodes.cno import DiverseNoise, DiverseNoiseForCustomSampler, DiverseNoiseToLatent
from comfyui_diversity.nodes.cno_options import DiverseNoiseOptions
from small.models import FAMILIES, conditioning, small_model
from torch import Tensor

BATCH, CFG, SEED, TAU, WINDOW, RATE, ITERATIONS = 3, 6.0, 11, 0.1, 16, 0.01, 3
FAST = pytest.param("eps", marks=pytest.mark.fast)
NOISE = comfy.sample.prepare_noise(torch.zeros(BATCH, *FAMILIES["eps"].latent), SEED)


# --- the references ---------------------------------------------------------------------------------------------------


def alphas_cumprod() -> Tensor:
    """abar_0 ... abar_999 of Stable Diffusion: betas linear in their square roots."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


class Denoiser:
    """A family's network in double precision at the noisiest level: noise to its guided one-step estimate."""

    def __init__(self, family: str, stopped: bool, late: bool) -> None:
        self.network = copy.deepcopy(small_model(family, inference=False).model.diffusion_model).double()
        self.network.requires_grad_(False)
        self.family, self.stopped, self.late = family, stopped, late
        [[positive, more]], [[negative, less]] = conditioning(family), conditioning(family, seed=1)
        self.texts = [
            (text.double(), extra.get("pooled_output")) for text, extra in ((positive, more), (negative, less))
        ]

    def __call__(self, z: Tensor) -> Tensor:
        t = torch.full((len(z),), 1000.0 if self.family == "sd3" else 999.0)
        outputs = []
        for text, pooled in self.texts:
            named = {} if pooled is None else {"y": pooled.double().expand(len(z), -1)}
            outputs.append(self.network(z, t, context=text.expand(len(z), -1, -1), **named))
        guided = outputs[1] + CFG * (outputs[0] - outputs[1])
        guided = guided.detach() if self.stopped else guided
        if self.family == "sd3":
            return z - guided  # a flow at sigma 1
        abar = alphas_cumprod()[998 if self.late else 999]
        return (z - (1 - abar).sqrt() * guided) / abar.sqrt()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of vectors over the channels, one for each cell: [C, P], [C, P] to [P]."""
    return (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0))


def paper_loss(clean: Tensor, reference: Tensor) -> Tensor:
    """All samples in the denominator at temperature tau, the attraction at gamma tau with gamma in closed form."""
    gamma = 1 / (TAU * math.log(len(clean) - 1) + 1)
    total = clean.new_zeros(())
    for i in range(len(clean)):
        below = torch.stack([(cosine(clean[i], other) / TAU).exp() for other in clean]).sum(0)
        total = total + (below.log() - cosine(clean[i], reference[i]) / (gamma * TAU)).mean()
    return total / len(clean)


def release_loss(clean: Tensor, reference: Tensor) -> Tensor:
    """The positive stands in the denominator in place of the sample itself; gamma is 1."""
    total = clean.new_zeros(())
    for i in range(len(clean)):
        positive = (cosine(clean[i], reference[i]) / TAU).exp()
        apart = [(cosine(clean[i], clean[j]) / TAU).exp() for j in range(len(clean)) if j != i]
        others = torch.stack(apart).sum(0)
        total = total - (positive / (positive + others)).log().mean()
    return total / len(clean)


def without_attraction(clean: Tensor, reference: Tensor) -> Tensor:
    total = clean.new_zeros(())
    for own in clean:
        total = total + torch.stack([(cosine(own, other) / TAU).exp() for other in clean]).sum(0).log().mean()
    return total / len(clean)


def without_repulsion(clean: Tensor, reference: Tensor) -> Tensor:
    gamma = 1 / (TAU * math.log(len(clean) - 1) + 1)
    drawn = torch.stack([cosine(a, b).mean() for a, b in zip(clean, reference, strict=True)])
    return -drawn.mean() / (gamma * TAU)


def pooled(clean: Tensor) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(clean, (WINDOW, WINDOW)).flatten(2)


def procedure(noise: Tensor, denoiser: Denoiser, loss: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """The noise before each iteration and after the last: Adam written out."""
    z = noise.double()
    with torch.no_grad():
        reference = pooled(denoiser(z))
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    found = [z]
    for k in range(1, ITERATIONS + 1):
        leaf = z.clone().requires_grad_()
        gradient = torch.autograd.grad(loss(pooled(denoiser(leaf)), reference), leaf)[0]
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        z = z - RATE * (first / (1 - 0.9**k)) / ((second / (1 - 0.999**k)).sqrt() + 1e-8)
        found.append(z)
    return found


# --- ours -------------------------------------------------------------------------------------------------------------


def options(**changed: Any) -> Any:
    return DiverseNoiseOptions.execute(**changed).args[0]


def guider(model: Any, family: str) -> Any:
    return CFGGuider.execute(model, conditioning(family), conditioning(family, seed=1), CFG).args[0]


def as_latent(family: str, **changed: Any) -> Tensor:
    """Diverse Noise to Latent, with the one widget turned to published and options as they are changed."""
    model = small_model(family)
    empty = {"samples": torch.zeros(BATCH, *FAMILIES[family].latent)}
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    with torch.inference_mode():
        return DiverseNoiseToLatent.execute(
            RandomNoise.execute(SEED).args[0],
            guider(model, family),
            sigmas,
            empty,
            0.5,
            3,
            "published",
            options(**changed) if changed else None,
        ).args[0]["samples"]


def trajectory(family: str, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> list[Tensor]:
    """The noise before each iteration, and the result."""
    return [*(noise for noise, _ in estimates(family, monkeypatch, **changed)), as_latent(family, **changed)]


def estimates(family: str, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> list[tuple[Tensor, Tensor]]:
    """The noise before each iteration, and its clean estimate."""
    seen: list[tuple[Tensor, Tensor]] = []
    real = CleanEstimate.__call__

    def spy(self: CleanEstimate, noise: Tensor) -> Any:
        clean, pullback = real(self, noise)
        seen.append((noise.clone(), clean.clone()))
        return clean, pullback

    with monkeypatch.context() as patched:
        patched.setattr(CleanEstimate, "__call__", spy)
        as_latent(family, **changed)
    return seen


def agree(ours: list[Tensor], reference: list[Tensor]) -> None:
    """To single precision's rounding: a thousandth of a step of Adam, but for a value whose gradient is nearly zero."""
    assert len(ours) == len(reference)
    for k, (own, other) in enumerate(zip(ours, reference, strict=True)):
        apart = (own.double() - other).abs()
        assert apart.max() < 0.05 * RATE, f"iteration {k}: {apart.max():.2e}"
        assert apart.flatten().quantile(0.99) < 1e-3 * RATE, f"iteration {k}: {apart.flatten().quantile(0.99):.2e}"


# --- agreement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [FAST, "sd3"])
def test_the_papers_form(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = comfy.sample.prepare_noise(torch.zeros(BATCH, *FAMILIES[family].latent), SEED)
    reference = procedure(noise, Denoiser(family, stopped=True, late=False), paper_loss)
    agree(trajectory(family, monkeypatch), reference)
    assert (reference[-1] - reference[0]).abs().max() > 2 * RATE


@pytest.mark.fast
def test_the_releases_form_and_its_late_alphas(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the alphas are late shows in the estimates; to cosines their length does not matter."""
    agree(
        trajectory("eps", monkeypatch, form="release"),
        procedure(NOISE, Denoiser("eps", stopped=False, late=True), release_loss),
    )
    clean = estimates("eps", monkeypatch, form="release")[0][1].double()
    for late, apart in ((True, (0, 1e-5)), (False, (1e-3, 1e-2))):
        expected = Denoiser("eps", stopped=True, late=late)(NOISE.double())
        assert apart[0] <= (clean - expected).norm() / expected.norm() < apart[1]


def test_without_attraction(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = procedure(NOISE, Denoiser("eps", stopped=True, late=False), without_attraction)
    agree(trajectory("eps", monkeypatch, terms="no attraction"), reference)


def test_without_repulsion_nothing_moves() -> None:
    """The gradient is zero at the start, and there the noise stays. What is 1e-13 by rounding Adam makes larger a
    million times an iteration, in any precision; so one iteration is compared."""
    reference = procedure(NOISE, Denoiser("eps", stopped=True, late=False), without_repulsion)
    assert (reference[1] - NOISE).abs().max() < 1e-6 * RATE
    assert torch.equal(as_latent("eps", terms="no repulsion"), NOISE)


def test_all_three_nodes_do_the_same() -> None:
    """And so does what the paper says in numbers."""
    model, empty = small_model("eps"), {"samples": torch.zeros(BATCH, *FAMILIES["eps"].latent)}
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    expected = as_latent("eps")
    noises = RandomNoise.execute(SEED).args[0]
    found: list[Tensor] = []

    def spy(executor: Any, guider: Any, sigmas: Any, extra: Any, callback: Any, noise: Tensor, *rest: Any) -> Tensor:
        found.append(noise.clone())
        return noise

    with torch.inference_mode():
        args = (noises, guider(model, "eps"), sigmas, 0.03, 3, -1, "published")
        assert torch.equal(DiverseNoiseForCustomSampler.execute(*args).args[0].generate_noise(empty), expected)
        patched = DiverseNoise.execute(model, 0.5, 3, "published").args[0]
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "spy", spy)
        guider(patched, "eps").sample(
            NOISE, empty["samples"], comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=SEED
        )
    assert torch.equal(found[0], expected)


# --- reports and refusals ---------------------------------------------------------------------------------------------


def test_what_is_not_as_published_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ComfyUI-Diversity"):
        as_latent("eps", terms="no repulsion")
        as_latent("sd3", form="release")
    first, second = (record.getMessage() for record in caplog.records if "Diverse Noise as" in record.getMessage())
    assert first.startswith("Diverse Noise as in the paper: 3 iterations at a learning rate of 0.01. No repulsion, an")
    assert "no noise moves" in first
    assert second.endswith("no discrete noise levels, so its alphas are not taken one level late.")


@pytest.mark.parametrize(
    ("mode", "given", "said"),
    [
        ("recommended", {"form": "release"}, "form is 'release'; it must be paper in recommended mode"),
        ("published", {"form": "release", "gamma": 0.8}, r"gamma is 0\.8; it must be 1 or auto"),
        ("published", {"form": "release", "denominator": "all"}, "denominator is 'all'; it must be positive or auto"),
        (
            "published",
            {"gradient": "full"},
            "gradient is 'full'; it must be stop in published mode with form \"paper\"",
        ),
    ],
)
def test_what_a_form_does_not_have_is_refused(mode: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DiverseNoise.execute(None, 0.5, 3, mode, options(**given))
