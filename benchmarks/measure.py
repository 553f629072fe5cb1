"""Figures of one row of the demo: what is read off the images of every prompt, averaged over prompts.

Every figure has an interval, `NAME_interval`: 95 % of what comes out when the prompts are drawn again, with
replacement, from those there are (bootstrap). Rows of the same prompts are compared in pairs: see `difference`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from devtools.pack import load_pack

load_pack()

from comfyui_diversity.demo.world.attributes import VALUES, distribution, rare_values, sample_scene  # noqa: E402
from comfyui_diversity.demo.world.draw import draw  # noqa: E402

if TYPE_CHECKING:
    from comfyui_diversity.demo.scorer import Scorer
    from comfyui_diversity.demo.world.prompts import Prompt

RESAMPLES = 2000
_DRAWN = 10  # scenes of each prompt that KID compares with
# Figures of a prompt's images, averaged over prompts.
AVERAGED = (
    "adherence",
    "fidelity",
    "residual",
    "good_share",
    "quality_vendi",
    "rare_share",
    "mss",
    "mss_centred",
    "vendi",
)
# From the numbers of times that each prompt was drawn, `[B, P]`, to `[B]` values.
_Figure = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Group:
    """The images of one prompt, `uint8 [N, H, W, 3]`."""

    prompt: Prompt
    images: np.ndarray


@dataclass(frozen=True)
class Judged:
    """What is read off the images of one prompt: attributes, features `[N, 128]`, residuals `[N]`, what is broken."""

    prompt: Prompt
    read: Sequence[Mapping[str, str]]
    features: Any
    residuals: np.ndarray
    broken: np.ndarray


def judge(groups: Sequence[Group], scorer: Scorer) -> list[Judged]:
    """Reads all images. Raises ValueError for images of another size than 128 x 128."""
    # Here, not above: these take seconds to import (torch), and the demo's server is to start before that.
    from comfyui_diversity.demo.fidelity import Judge

    fidelity, judged = Judge.load(), []
    for group in groups:
        read = scorer.read(group.images)
        found = fidelity.residuals(group.images, read)
        features = scorer.features(group.images)
        judged.append(Judged(group.prompt, read, features, found.numpy(), fidelity.broken(found).numpy()))
    return judged


def measure(groups: Sequence[Group], scorer: Scorer) -> dict[str, Any]:
    """Figures of the images of several prompts: `figures` of what `judge` reads."""
    return figures(judge(groups, scorer), scorer)


def figures(judged: Sequence[Judged], scorer: Scorer) -> dict[str, Any]:
    """Adherence, fidelity and diversity of the images of several prompts, and their intervals.

    Taken within the images of one prompt and then averaged over prompts are `adherence` (share of images that show
    everything stated), `fidelity` (share of unbroken images), `residual` (mean of min(residual, 1)), `good_share`
    (share of images that show everything stated and are unbroken), `quality_vendi` (that share times Vendi: Nguyen and
    Dieng 2024, quality being 1 or 0), `rare_share` (share of unstated attributes whose value fewer than a tenth of
    such scenes have), `mss`, `mss_centred` (of features less what the features of all images have in common: 0 for
    unrelated scenes), `vendi` and `effective_number` (attribute to effective number of its values; an attribute that
    every prompt states has none). What a prompt states is left out of effective numbers and rare share.

    Taken over all images are `divergence` (Jensen-Shannon, in bits, between the values of what is open and their
    distribution in the world, mean over objects and attributes: 0 is as the world has it, too much of the rare counts
    as too little does) and `kid` (squared maximum mean discrepancy, kernel (x y / 128 + 1)^3, between the classifier's
    features of the images and of scenes drawn under the same prompts).

    `by_prompt` has the averaged figures prompt by prompt, for `difference`.
    """
    table = {name: np.array(values) for name, values in _by_prompt(judged, scorer).items()}
    found: dict[str, _Figure] = {name: _mean_of(table[name]) for name in AVERAGED}
    found["divergence"] = _divergence(judged)
    found["kid"] = _kid(judged, scorer)
    draws = _draws(len(judged))
    result: dict[str, Any] = {}
    for name, figure in found.items():
        result[name], result[f"{name}_interval"] = _with_interval(figure, draws, centred=name not in AVERAGED)
    numbers = {name: table[f"effective {name}"] for name in VALUES}
    numbers = {name: values for name, values in numbers.items() if np.isfinite(values).any()}
    both = {name: _with_interval(_mean_of(values), draws) for name, values in numbers.items()}
    result["effective_number"] = {name: value for name, (value, _) in both.items()}
    result["effective_number_interval"] = {name: pair for name, (_, pair) in both.items()}
    result["by_prompt"] = {name: [_rounded(value) for value in table[name]] for name in AVERAGED}
    return result


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def difference(row: Mapping[str, Any], other: Mapping[str, Any], name: str) -> tuple[float, tuple[float, float]]:
    """How much higher the figure `name` is in one row than in another of the same prompts, and the 95 % interval.

    Raises ValueError for rows of different numbers of prompts.
    """
    one, two = (np.array(each["by_prompt"][name], float) for each in (row, other))
    if len(one) != len(two):
        raise ValueError(f"The rows have {len(one)} and {len(two)} prompts; only rows of the same prompts compare.")
    value, (low, high) = _with_interval(_mean_of(one - two), _draws(len(one)))
    return value, (low, high)


def _by_prompt(judged: Sequence[Judged], scorer: Scorer) -> dict[str, list[float]]:
    from comfyui_diversity.core.methods.metrics import effective_number, mean_pairwise_similarity, vendi_score
    from comfyui_diversity.demo.scorer import satisfies

    table: dict[str, list[float]] = {name: [] for name in (*AVERAGED, *(f"effective {name}" for name in VALUES))}
    for one in judged:
        prompt, read = one.prompt, one.read
        adherent = np.array([satisfies(dict(attributes), prompt) for attributes in read])
        uncommon = rare_values(prompt.object)
        vendi, good = vendi_score(one.features), float((adherent & ~one.broken).mean())
        found = {
            "adherence": float(adherent.mean()),
            "fidelity": float(1 - one.broken.mean()),
            "residual": float(one.residuals.clip(max=1).mean()),
            "good_share": good,
            "quality_vendi": good * vendi,
            "rare_share": fmean(a[name] in uncommon[name] for a in read for name in prompt.unstated)
            if prompt.unstated
            else np.nan,
            "mss": mean_pairwise_similarity(one.features),
            "mss_centred": mean_pairwise_similarity(one.features - scorer.common),
            "vendi": vendi,
        }
        for name in VALUES:
            values = [attributes[name] for attributes in read]
            found[f"effective {name}"] = effective_number(values) if name in prompt.unstated else np.nan
        for name, value in found.items():
            table[name].append(value)
    return table


def _draws(prompts: int) -> np.ndarray:
    """How often each prompt is drawn, `[1 + RESAMPLES, P]`; first each once. The same for all rows of as many prompts,
    so that rows compare in pairs."""
    drawn = np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)
    return np.concatenate([np.ones((1, prompts)), drawn])


def _with_interval(figure: _Figure, draws: np.ndarray, centred: bool = False) -> tuple[float, list[float]]:
    """centred: of a figure that is no mean over prompts. Prompts drawn again are fewer different ones, which makes a
    divergence greater; the values are moved so that their mean is the figure, or the interval might not hold it."""
    value, *drawn = figure(draws)
    others = np.array(drawn)
    if centred:
        others = others - (np.nanmean(others) - value)
    low, high = np.nanquantile(others, [0.025, 0.975])
    return round(float(value), 4), [round(float(low), 4), round(float(high), 4)]


def _mean_of(values: np.ndarray) -> _Figure:
    """The mean over prompts that have a value."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)

    def figure(draws: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a draw may have no such prompt
            return draws @ filled / (draws @ known)

    return figure


def _divergence(judged: Sequence[Judged]) -> _Figure:
    tables = []
    for obj in dict.fromkeys(one.prompt.object for one in judged):
        for name in VALUES:
            if name == "object":
                continue
            expected = distribution(name, obj)
            counts = np.zeros((len(judged), len(expected)))
            for k, one in enumerate(judged):
                if one.prompt.object == obj and name in one.prompt.unstated:
                    # An image of another object shows nothing of this one's attributes.
                    values = [a[name] for a in one.read if a["object"] == obj]
                    counts[k] = [values.count(value) for value in expected]
            if counts.any():
                tables.append((counts, np.array(list(expected.values()))))

    def figure(draws: np.ndarray) -> np.ndarray:
        found = []
        for counts, expected in tables:
            seen = draws @ counts
            with np.errstate(invalid="ignore"):  # a draw may have no image of this object
                found.append(_jensen_shannon(seen / seen.sum(1, keepdims=True), expected))
        return np.nanmean(found, 0) if found else np.full(len(draws), np.nan)

    return figure


def _jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """In bits, 0..1, between distributions along the last axis."""
    middle = (p + q) / 2
    return _entropy(middle) - (_entropy(p) + _entropy(np.broadcast_to(q, p.shape))) / 2


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)


def _kid(judged: Sequence[Judged], scorer: Scorer) -> _Figure:
    ours = [one.features.double().numpy() for one in judged]
    real = [_drawn_features(one.prompt, scorer) for one in judged]

    def sums(first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
        """Kernel values summed over the images of each pair of prompts, `[P, P]`; none of an image with itself."""
        kernel = (np.concatenate(first) @ np.concatenate(second).T / first[0].shape[1] + 1) ** 3
        if first is second:
            np.fill_diagonal(kernel, 0)
        rows, columns = (np.cumsum([0, *map(len, side)])[:-1] for side in (first, second))
        return np.add.reduceat(np.add.reduceat(kernel, rows, 0), columns, 1)

    own, world, across = sums(ours, ours), sums(real, real), sums(ours, real)
    sizes = [np.array([len(one) for one in side], float) for side in (ours, real)]

    def within(total: np.ndarray, draws: np.ndarray, size: np.ndarray) -> np.ndarray:
        pairs = np.outer(size, size) - np.diag(size)
        return _quadratic(draws, total, draws) / _quadratic(draws, pairs, draws)

    def figure(draws: np.ndarray) -> np.ndarray:
        mixed = _quadratic(draws, across, draws) / _quadratic(draws, np.outer(*sizes), draws)
        return within(own, draws, sizes[0]) + within(world, draws, sizes[1]) - 2 * mixed

    return figure


def _quadratic(left: np.ndarray, middle: np.ndarray, right: np.ndarray) -> np.ndarray:
    return ((left @ middle) * right).sum(1)


# Features of drawn scenes, by prompt: the same for every row.
_features: WeakKeyDictionary[Scorer, dict[str, np.ndarray]] = WeakKeyDictionary()


def _drawn_features(prompt: Prompt, scorer: Scorer) -> np.ndarray:
    """Features `[N, 128]` of scenes as the world has them under a prompt (its attributes are independent)."""
    known = _features.setdefault(scorer, {})
    if prompt.text not in known:
        rng = np.random.default_rng([11, *prompt.text.encode()])
        scenes = [replace(sample_scene(rng, prompt.object), **prompt.stated) for _ in range(_DRAWN)]
        known[prompt.text] = scorer.features(np.stack([draw(scene, rng) for scene in scenes])).double().numpy()
    return known[prompt.text]
