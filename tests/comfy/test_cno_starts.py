"""Diverse noise that begins with pink noise, or with the most different of several, under real samplers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from comfyui_diversity.core.drivers.schedule import scheduled
from comfyui_diversity.core.methods.schedule import Window
from comfyui_diversity.core.methods.starts import candidates, pink, wide
from comfyui_diversity.nodes._inputs import PUBLISHED
from comfyui_diversity.nodes.cno import DiverseNoise
from comfyui_diversity.nodes.cno_options import DiverseNoiseOptions
from small.attached import small_controlnet
from small.diverse_noise import STEPS, diverse, sample, started_from
from small.models import Counter, conditioning, random_latent, small_model


@pytest.mark.parametrize("family", ["eps", "sd3"])
def test_with_strength_0_the_noise_is_pink_and_nothing_else(family: str) -> None:
    counter, model = Counter(), small_model(family)
    found = started_from(counter.on(diverse(model, strength=0.0, pink=0.6)), family=family)
    assert torch.equal(found, pink(random_latent(family, 3), 0.6))
    assert len(counter.sizes) == STEPS


def test_pink_noise_is_moved_on_from() -> None:
    model, start = small_model("eps"), random_latent("eps", 3)
    both = started_from(diverse(model, pink=0.6))
    assert torch.equal(both, started_from(diverse(model), noise=pink(start, 0.6)))
    assert not torch.equal(both, pink(start, 0.6))


def test_one_image_can_be_pink() -> None:
    found = started_from(diverse(small_model("eps"), strength=0.0, pink=0.6), batch=1)
    assert torch.equal(found, pink(random_latent("eps", 1), 0.6))


@pytest.mark.parametrize("batch", [1, 3])
def test_with_strength_0_the_noise_is_wide_and_nothing_else(batch: int) -> None:
    counter, model = Counter(), small_model("sd3")
    found = started_from(counter.on(diverse(model, strength=0.0, wide=2.0)), family="sd3", batch=batch)
    assert torch.equal(found, wide(random_latent("sd3", batch), 2.0))
    assert len(counter.sizes) == STEPS


def test_wide_noise_is_moved_on_from() -> None:
    model, start = small_model("eps"), random_latent("eps", 3)
    both = started_from(diverse(model, pink=0.4, wide=2.0))
    assert torch.equal(both, started_from(diverse(model), noise=wide(pink(start, 0.4), 2.0)))


def test_images_start_from_different_candidates_and_differ_more() -> None:
    model, start, counter = small_model("eps"), random_latent("eps", 5), Counter()
    found = started_from(counter.on(diverse(model, strength=0.0, candidates=6)), batch=5)
    which = places(found, candidates(start, 6))
    assert which[0] == (0, 0)
    assert len(set(which)) == 5
    assert any(place != row for row, (_, place) in enumerate(which))
    assert counter.sizes == [2 * 5] * (6 + STEPS)
    plain, chosen = (sample(diverse(model, strength=0.0, candidates=count), batch=5) for count in (1, 12))
    assert spread(chosen) > spread(plain)


def prompts_of_their_own() -> dict:
    return {"positive": conditioning("eps", rows=5)}


def variants_that_fade() -> dict:
    return {"positive": scheduled(conditioning("eps", rows=5), conditioning("eps"), Window(0.5))}


def pooled_of_their_own() -> dict:
    own = conditioning("sd3", rows=5)
    return {"family": "sd3", "positive": [[conditioning("sd3")[0][0], own[0][1]]]}


def images_to_start_from() -> dict:
    return {"latent_image": random_latent("eps", 5, seed=5)}


def part_of_the_image() -> dict:
    return {"latent_image": torch.zeros(5, 4, 16, 16), "noise_mask": torch.ones(1, 1, 16, 16)}


def hints_of_a_controlnet() -> dict:
    control = small_controlnet()
    control.set_cond_hint(torch.rand(5, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    return {"positive": [[cond, {**extras, "control": control}] for cond, extras in conditioning("eps")]}


def areas_of_their_own() -> dict:
    mask = torch.ones(5, 128, 128)
    mask[2, :64] = 0
    cond, extras = conditioning("eps")[0]
    return {"positive": [[cond, {**extras, "mask": mask, "mask_strength": 1.0}]]}


@pytest.mark.parametrize(
    "differing",
    [
        prompts_of_their_own,
        variants_that_fade,
        pooled_of_their_own,
        images_to_start_from,
        part_of_the_image,
        areas_of_their_own,
    ],
)
def test_images_that_differ_by_more_than_noise_keep_to_their_own_candidates(differing: Callable[[], dict]) -> None:
    options = differing()
    family = options.get("family", "eps")
    found = started_from(diverse(small_model(family), strength=0.0, candidates=6), batch=5, **options)
    which = places(found, candidates(random_latent(family, 5), 6))
    assert [place for _, place in which] == list(range(5))
    assert len({choice for choice, _ in which}) > 1


def places(found: torch.Tensor, drawn: list[torch.Tensor]) -> list[tuple[int, int]]:
    """The candidate and the image whose noise each image starts from."""
    options = [(choice, place) for choice in range(len(drawn)) for place in range(len(found))]
    matches = [[(c, i) for c, i in options if torch.equal(drawn[c][i], row)] for row in found]
    assert [len(one) for one in matches] == [1] * len(found)
    return [one[0] for one in matches]


def spread(images: torch.Tensor) -> float:
    """Mean distance between images."""
    flat = images.flatten(1)
    return torch.pdist(flat).mean().item()


def test_candidates_are_the_same_again_and_in_chunks() -> None:
    model = small_model("eps")
    first = started_from(diverse(model, candidates=4), batch=3)
    assert torch.equal(first, started_from(diverse(model, candidates=4), batch=3))
    whole, chunks = (started_from(diverse(model, strength=0.0, candidates=4, chunk_size=size)) for size in (-1, 1))
    assert torch.equal(whole, chunks)


def test_the_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    sample(small_model("eps"))
    expected = torch.rand(1)
    torch.manual_seed(3)
    sample(diverse(small_model("eps"), candidates=3, pink=0.5))
    assert torch.equal(torch.rand(1), expected)


def test_only_the_masked_part_is_changed() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    latent, noise = random_latent("eps", 3, seed=5), random_latent("eps", 3)
    named = {"latent_image": latent, "noise_mask": mask}
    for options in ({"pink": 0.6}, {"wide": 2.0}, {"candidates": 4}):
        found = started_from(diverse(small_model("eps"), strength=0.0, **options), **named)
        assert torch.equal(found[..., 8:], noise[..., 8:])
        assert not torch.equal(found[..., :8], noise[..., :8])


def test_one_image_has_nothing_to_be_chosen_by() -> None:
    with pytest.raises(ValueError, match=r"The batch holds 1 image"):
        sample(diverse(small_model("eps"), strength=0.0, candidates=4), batch=1)


@pytest.mark.parametrize(("name", "value"), [("pink", 0.5), ("candidates", 2), ("wide", 1.5)])
def test_published_has_none_of_them(name: str, value: float) -> None:
    chosen = DiverseNoiseOptions.execute(**{name: value}).args[0]
    with pytest.raises(ValueError, match=rf"{name} is {value}; it must be .* in published mode"):
        DiverseNoise.execute(small_model("eps"), 0.5, 3, PUBLISHED, chosen)
