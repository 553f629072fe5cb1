"""Clean estimates of real ComfyUI models of every prediction type, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from comfyui_diversity.core.hooks import denoise
from comfyui_diversity.core.hooks.denoise import CleanEstimate
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.sampling import SamplerRun, changed_noise
from comfyui_diversity.core.methods.cno import Settings, optimise_noise
from small.models import FAMILIES, conditioning, random_latent, small_model
from torch import Tensor

BATCH = 3
# One family of each prediction type and rank, and one of each architecture that gradients pass through.
every_kind = pytest.mark.parametrize("family", [pytest.param("eps", marks=pytest.mark.fast), "v", "edm", "sd3", "wan"])
every_architecture = pytest.mark.parametrize(
    "family", [pytest.param("eps", marks=pytest.mark.fast), "sd3", "flux", "wan"]
)


def guider(family: str, model: Any = None, rows: int = BATCH) -> comfy.samplers.CFGGuider:
    made = comfy.samplers.CFGGuider(small_model(family) if model is None else model)
    made.set_conds(conditioning(family, rows), conditioning(family, seed=1))
    made.set_cfg(3.0)
    return made


def sigmas(of: comfy.samplers.CFGGuider, start: int = 0) -> Tensor:
    return comfy.samplers.calculate_sigmas(of.model_patcher.get_model_object("model_sampling"), "simple", 4)[start:]


def in_a_run(
    work: Callable[[SamplerRun], Any],
    family: str,
    *,
    start: int = 0,
    latent: Tensor | None = None,
    mask: Tensor | None = None,
    of: comfy.samplers.CFGGuider | None = None,
) -> Any:
    """What `work` returns for a run as the sampler has it, under inference mode as in ComfyUI's executor."""
    results = []

    def change(run: SamplerRun) -> Tensor:
        results.append(work(run))
        return run.noise

    noise = random_latent(family, BATCH)
    of = guider(family) if of is None else of
    samples = {"samples": torch.zeros_like(noise) if latent is None else latent}
    if mask is not None:
        samples["noise_mask"] = mask
    with torch.inference_mode():
        changed_noise(of, sigmas(of, start), noise, samples, 0, change)
    return results[0]


def half_mask(family: str) -> Tensor:
    """1 on the left half, then a soft edge, then 0."""
    width = FAMILIES[family].latent[-1]
    mask = torch.zeros(1, 1, *FAMILIES[family].latent[-2:])
    mask[..., : width // 2] = 1
    mask[..., width // 2] = 0.25
    return mask


@pytest.mark.parametrize(("start", "masked"), [(0, False), (2, True)], ids=["from noise", "from a masked image"])
@every_kind
def test_estimate_is_the_samplers_own_first_one(family: str, start: int, masked: bool) -> None:
    """Bit for bit what KSampler's first step shows as denoised."""
    latent = random_latent(family, BATCH, seed=5) if start or masked else None
    mask = half_mask(family) if masked else None

    def estimate(run: SamplerRun) -> Tensor:
        with gradients():
            return CleanEstimate(run)(run.noise.clone())[0]

    ours = in_a_run(estimate, family, start=start, latent=latent, mask=mask)
    of, noise, seen = guider(family), random_latent(family, BATCH), []
    with torch.inference_mode():
        of.sample(
            noise,
            torch.zeros_like(noise) if latent is None else latent,
            comfy.samplers.sampler_object("euler"),
            sigmas(of, start),
            denoise_mask=mask,
            callback=lambda step, denoised, x, total: seen.append(denoised.clone()),
            disable_pbar=True,
            seed=0,
        )
    assert torch.equal(ours, seen[0])


# d clean / d noise with the network's output held fixed, by hand; s is sigma, and noise is scaled by sqrt(1 + s^2) at
# the highest sigma in the variance-exploding kinds.
SLOPES: dict[str, Callable[[float], float]] = {
    "eps": lambda s: math.sqrt(1 + s**2),
    "v": lambda s: math.sqrt(1 + s**2) / (1 + s**2),
    "edm": lambda s: math.sqrt(1 + s**2) / (1 + s**2),
    "sd3": lambda s: s,
    "wan": lambda s: s,
}


@every_kind
def test_stop_gradient_has_the_slope_of_its_prediction_type(family: str) -> None:
    def slope(run: SamplerRun) -> tuple[Tensor, float]:
        with gradients():
            _, pullback = CleanEstimate(run)(run.noise.clone())
            return pullback(torch.ones_like(run.noise)), float(run.sigmas[0])

    found, sigma = in_a_run(slope, family)
    assert torch.allclose(found, torch.full_like(found, SLOPES[family](sigma)), rtol=1e-5)


def test_stop_gradient_fades_with_the_mask() -> None:
    """The noise counts through the mask twice: into the model's input and out of its estimate."""

    def slopes(run: SamplerRun) -> Tensor:
        with gradients():
            return CleanEstimate(run)(run.noise.clone())[1](torch.ones_like(run.noise))

    latent = random_latent("eps", BATCH, seed=5)
    found = in_a_run(slopes, "eps", latent=latent, mask=half_mask("eps")) / in_a_run(slopes, "eps", latent=latent)
    # Where the mask is soft, the kept part of the input holds the same noise, scaled alike.
    expected = half_mask("eps").expand_as(found)
    assert torch.allclose(found, expected, atol=5e-3)


@every_architecture
def test_full_gradient_agrees_with_finite_differences(family: str) -> None:
    def compare(run: SamplerRun) -> tuple[float, float]:
        direction, weights = (random_latent(family, BATCH, seed=seed) for seed in (7, 8))
        with gradients():
            estimate = CleanEstimate(run, "full")
            noise = run.noise.clone()
            exact = (estimate(noise)[1](weights) * direction).sum().item()
            step = 1e-2
            ahead, behind = (estimate(noise + sign * step * direction)[0] for sign in (1, -1))
            return exact, ((ahead - behind).double() * weights).sum().item() / (2 * step)

    exact, differences = in_a_run(compare, family)
    assert exact != 0
    assert exact == pytest.approx(differences, rel=0.02, abs=0.05)


@pytest.mark.parametrize("chunk_size", [-1, 2])
@pytest.mark.parametrize("cut", [False, True], ids=["a gradient", "cut off in silence"])
def test_full_that_does_what_stop_does_is_said(cut: bool, chunk_size: int, caplog: pytest.LogCaptureFixture) -> None:
    model = small_model("sd3")
    network = model.model.diffusion_model
    hook = network.register_forward_hook(lambda _module, _args, found: found.detach() if cut else found)

    def work(run: SamplerRun) -> Tensor:
        with gradients():
            estimate = CleanEstimate(run, "full", chunk_size)
            for first in (torch.zeros_like(run.noise), torch.ones_like(run.noise)):  # of nothing it tells nothing
                estimate(run.noise.clone())[1](first)
            return estimate(run.noise.clone())[1](torch.ones_like(run.noise))

    try:
        in_a_run(work, "sd3", of=guider("sd3", model))
    finally:
        hook.remove()
    said = [record.message for record in caplog.records if "passes no gradient on" in record.message]
    assert len(said) == cut


@pytest.mark.parametrize(("family", "inference"), [("eps", False), ("eps", True), ("sd3", True)])
def test_the_model_is_left_as_it_was(family: str, inference: bool) -> None:
    """No weight changes, gets a gradient, or becomes another tensor."""
    model = small_model(family, inference)
    network = model.model.diffusion_model
    before = [(name, id(weight), weight.clone(), weight.requires_grad) for name, weight in network.named_parameters()]

    def optimise(run: SamplerRun) -> Tensor:
        with gradients():
            return optimise_noise(run.noise.clone(), CleanEstimate(run, "full"), Settings(iterations=2))

    in_a_run(optimise, family, of=guider(family, model))
    for (name, identity, weight, wanted), (name_now, now) in zip(before, network.named_parameters(), strict=True):
        assert (name, identity, wanted) == (name_now, id(now), now.requires_grad)
        assert torch.equal(weight, now)
        assert now.grad is None


# --- chunks ----------------------------------------------------------------------------------------------------------


def optimised(family: str, gradient: str, chunk_size: int, of: comfy.samplers.CFGGuider | None = None) -> Tensor:
    def optimise(run: SamplerRun) -> Tensor:
        with gradients():
            estimate = CleanEstimate(run, gradient, chunk_size)
            return optimise_noise(run.noise.clone(), estimate, Settings(iterations=3))

    mask = torch.ones(BATCH, 1, *FAMILIES[family].latent[-2:])  # of its own for each image
    mask[1, ..., :3] = 0
    latent = random_latent(family, BATCH, seed=5)
    return in_a_run(optimise, family, of=of, latent=latent, mask=mask)


def estimated(family: str, gradient: str, chunk_size: int, rows: int = BATCH) -> tuple[Tensor, Tensor]:
    """Clean estimate, and what comes back of a random gradient."""

    def work(run: SamplerRun) -> tuple[Tensor, Tensor]:
        with gradients():
            clean, pullback = CleanEstimate(run, gradient, chunk_size)(run.noise.clone())
            return clean, pullback(random_latent(family, BATCH, seed=3))

    return in_a_run(work, family, of=guider(family, rows=rows))


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Up to rounding, which depends on how many rows a matrix product has."""
    return all((a - b).norm() < 1e-4 * b.norm() for a, b in zip(one, other, strict=True))


@every_architecture
def test_chunks_give_each_image_its_own_conditioning(family: str) -> None:
    assert same(estimated(family, "full", 2), estimated(family, "full", -1))


def test_wrong_rows_would_be_noticed() -> None:
    """The test above means something only if the images' conditionings matter."""
    assert not same(estimated("eps", "stop", 1, rows=1), estimated("eps", "stop", 1))


def image_by_image(model: Any) -> Any:
    """A clone whose network computes one image after another, so that rounding is the same in every chunk."""

    def wrapper(executor: Any, x: Tensor, timestep: Tensor, context: Tensor, *rest: Any, **named: Any) -> Tensor:
        rows = [executor(x[k : k + 1], timestep[k : k + 1], context[k : k + 1], *rest, **named) for k in range(len(x))]
        return torch.cat(rows)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "one by one", wrapper)
    return patched


@pytest.mark.parametrize("gradient", ["stop", "full"])
def test_chunks_change_no_bit_when_each_image_is_computed_alike(gradient: str) -> None:
    of = guider("eps", image_by_image(small_model("eps")))
    whole = optimised("eps", gradient, -1, of)
    assert torch.equal(optimised("eps", gradient, 2, of), whole)  # two images, then one


@pytest.mark.parametrize("gradient", ["stop", "full"])
def test_fewer_images_at_once_when_memory_runs_out(gradient: str) -> None:
    sizes = []

    def small_memory(executor: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        sizes.append(len(x))
        if len(x) > 2 * 2:  # two images, each with and without the prompt
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return executor(x, *rest, **named)

    model = small_model("eps").clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "small memory", small_memory)
    result = optimised("eps", gradient, -1, guider("eps", model))
    assert sizes[0] == 2 * BATCH
    assert max(sizes[1:]) == 4
    assert torch.equal(result, optimised("eps", gradient, 2))


def little_memory_back(fits: int, times: int = 1000) -> tuple[Any, list[int]]:
    """A small model through which no more than so many images go back at once, so many `times`; how many were tried."""
    sizes: list[int] = []

    def back(gradient: Tensor) -> None:
        sizes.append(len(gradient) // 2)  # with and without the prompt
        if sizes[-1] > fits and len(sizes) <= times:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")

    def wrapper(executor: Any, *rest: Any, **named: Any) -> Tensor:
        output = executor(*rest, **named)
        if output.requires_grad:
            output.register_hook(back)
        return output

    model = small_model("eps").clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "little memory", wrapper)
    return model, sizes


def test_fewer_images_at_once_when_memory_runs_out_on_the_way_back() -> None:
    model, sizes = little_memory_back(2)
    result = optimised("eps", "full", -1, guider("eps", model))
    assert (sizes[0], max(sizes[1:])) == (BATCH, 2)
    expected = optimised("eps", "full", -1)
    assert (result - expected).norm() < 1e-4 * expected.norm()


def test_where_not_even_one_image_goes_back_layers_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    again: list[int] = []
    real = denoise.checkpointed
    monkeypatch.setattr(denoise, "checkpointed", lambda *modules: again.append(1) or real(*modules))
    model, sizes = little_memory_back(0, times=3)
    result = optimised("eps", "full", -1, guider("eps", model))
    assert sizes[:3] == [3, 2, 1]
    assert again
    expected = optimised("eps", "full", -1)
    assert (result - expected).norm() < 1e-4 * expected.norm()
    model, _ = little_memory_back(0)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        optimised("eps", "full", -1, guider("eps", model))


def test_memory_for_not_even_one_image_is_an_error() -> None:
    def no_memory(executor: Any, *rest: Any, **named: Any) -> Tensor:
        raise comfy.model_management.OOM_EXCEPTION("out of memory")

    model = small_model("eps").clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "no memory", no_memory)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        optimised("eps", "stop", -1, guider("eps", model))


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_model_that_predicts_the_image_needs_the_full_gradient() -> None:
    model = ModelSamplingDiscrete().patch(small_model("eps"), "x0", False)[0]

    def optimise(gradient: str) -> Callable[[SamplerRun], Tensor]:
        def work(run: SamplerRun) -> Tensor:
            with gradients():
                return optimise_noise(run.noise.clone(), CleanEstimate(run, gradient), Settings(iterations=2))

        return work

    with pytest.raises(ValueError, match='set gradient to "full"'):
        in_a_run(optimise("stop"), "eps", of=guider("eps", model))
    moved = in_a_run(optimise("full"), "eps", of=guider("eps", model))
    assert not torch.equal(moved, random_latent("eps", BATCH))


@pytest.mark.parametrize(
    ("options", "said"), [({"gradient": "half"}, "gradient is 'half'"), ({"chunk_size": 0}, "chunk_size is 0")]
)
def test_bad_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        in_a_run(lambda run: CleanEstimate(run, **options), "eps")
