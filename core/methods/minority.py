"""MinorityPrompt: a token learned while sampling, which leads to what the model knows but rarely draws.

Um and Ye, "Minority-Focused Text-to-Image Generation via Prompt Optimization", CVPR 2025, arXiv 2410.07838.

One token is added to the prompt. At some sampling steps its embedding climbs an objective of the clean estimates: with
`minority`, the estimate under the prompt with the token is to be one that the plain prompt would not lead back to.
Published, nothing holds the token near where it started; here its effect on the prompt can be limited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ..require import require

# How far the learned embeddings are from where they started, by encoder: [B, P, D] for B images and P tokens, in
# whatever unit the encoder's embeddings are measured in.
Offsets = dict[str, Tensor]
# Offsets to clean estimates [B, C, ...] and their pullback: a gradient with respect to the estimates to one with
# respect to the offsets.
CleanEstimate = Callable[[Offsets], tuple[Tensor, Callable[[Tensor], Offsets]]]
# Clean estimates to clean estimates of the same, noised again, under the plain prompt; and the pullback.
RenoisedEstimate = Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]
# How far inside what is allowed the prompts with these offsets are, [B]; negative is outside.
Margin = Callable[[Offsets], Tensor]

_HALVINGS = 7  # of the way back to where the token started
_SAME = 1e-6  # two shares of a noise schedule


class NoGradientError(ValueError):
    """The gradient of the token is zero everywhere."""

    def __init__(self) -> None:
        super().__init__(
            "The gradient of the token is zero: nothing says which way to move it. Either the objective cannot tell "
            "images apart, or the mask lets nothing change, or the model reads nothing of it (beyond a CLIP's first 77 "
            "tokens, where it reads the pooled vector alone: set encoders to all), or a part of the model (compiled, "
            "quantised, or with an attention of its own) passes no gradient on: switch that off."
        )


class Estimates:
    """What an objective may depend on, both `[B, C, ...]` and differentiable.

    clean: clean estimates of the noisy images under the prompt with the token.
    renoised: estimates of `clean`, noised again, under the plain prompt. It costs a pass through the model, at first
        use.
    """

    def __init__(self, clean: Tensor, renoised_estimate: RenoisedEstimate) -> None:
        self.clean = clean.detach().float().requires_grad_()
        self._renoised_estimate = renoised_estimate
        self._renoised: Tensor | None = None
        self._pullback: Callable[[Tensor], Tensor] | None = None

    @property
    def renoised(self) -> Tensor:
        if self._renoised is None:
            renoised, self._pullback = self._renoised_estimate(self.clean.detach())
            self._renoised = renoised.detach().float().requires_grad_()
        return self._renoised

    def gradient(self, total: Tensor) -> Tensor:
        """Gradient of a scalar with respect to `clean`, by way of `renoised` too. Raises ValueError for a scalar that
        depends on neither."""
        if not total.requires_grad:
            raise ValueError("The objective does not depend on the clean estimates; there is nothing to learn from.")
        used = [self.clean] if self._renoised is None else [self.clean, self._renoised]
        found = torch.autograd.grad(total, used, allow_unused=True)
        gradient = torch.zeros_like(self.clean) if found[0] is None else found[0]
        if self._pullback is not None and found[1] is not None:
            gradient = gradient + self._pullback(found[1])
        return gradient


class Objective(Protocol):
    """What the token is learned for: a value for each image, `[B]`, that shall become large."""

    def __call__(self, estimates: Estimates, /) -> Tensor: ...


def minority(estimates: Estimates, /, balance: float = 1.0) -> Tensor:
    """||sg(clean) - renoised|| + balance ||clean - sg(renoised)||, the length per image (equation 8; sg stops
    gradients).

    Large where noising an image again and denoising it under the plain prompt leads elsewhere: where the model holds
    the image for unlikely. The paper's formula squares the lengths, its released code does not.
    """
    clean, renoised = estimates.clean, estimates.renoised
    return _length(clean.detach() - renoised) + balance * _length(clean - renoised.detach())


def rarity(images: Tensor, renoised: Tensor) -> Tensor:
    """The length that both terms of `minority` have, `[B]`, of finished images and of their re-noised estimates, both
    `[B, C, ...]`: the larger, the less likely the model holds an image for."""
    return _length(images - renoised)


def diversity(estimates: Estimates, /) -> Tensor:
    """DiversityPrompt: mean distance of each clean estimate to the others of the batch.

    Raises ValueError for a batch of one.
    """
    return total_diversity(estimates) / (len(estimates.clean) - 1)


def total_diversity(estimates: Estimates, /) -> Tensor:
    """DiversityPrompt as in its released code: the sum of the distances to the others of the batch.

    Raises ValueError for a batch of one.
    """
    flat = estimates.clean.flatten(1)
    if len(flat) < 2:
        raise ValueError(
            "The batch holds 1 image: there is no other to differ from. Make a batch of 2 or more, or choose the "
            'objective "minority".'
        )
    # Not by matrix products: what they leave of a small distance is rounding.
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum(1)


def both(estimates: Estimates, /, balance: float = 1.0) -> Tensor:
    """The sum of the two: rare, and each in another way. Raises ValueError for a batch of one."""
    return minority(estimates, balance) + diversity(estimates)


OBJECTIVES: dict[str, Objective] = {"minority": minority, "diversity": diversity, "both": both}


def objective_of(name: str, balance: float = 1.0, published: bool = False) -> Objective:
    """The objective of this name, one of `OBJECTIVES`; `balance` weighs the second term of `minority`.

    Raises ValueError for an unknown name and a balance below 0.
    """
    require(name in OBJECTIVES, "objective", name, f"one of {', '.join(OBJECTIVES)}")
    require(math.isfinite(balance) and balance >= 0, "sg_lambda", balance, "0 or more")
    require(name != "diversity" or balance == 1, "sg_lambda", balance, "1 with objective diversity, which has one term")
    if name == "diversity":
        return total_diversity if published else diversity
    return partial(minority if name == "minority" else both, balance=balance)


def _length(difference: Tensor) -> Tensor:
    return torch.linalg.vector_norm(difference.flatten(1), dim=1)


@dataclass(frozen=True)
class Settings:
    """How the token climbs.

    iterations: steps of Adam (K).
    learning_rate: how far a step moves an embedding value, in the unit of the offsets.
    typical: climb down instead, towards what the model holds for likely.
    decay: at the run's step number n, from 0, the learning rate is (1 - n decay) times that.
    scaled: each encoder's gradients are divided by the root mean square of its first one, so that Adam's constant,
        1e-8, does not decide where they are tiny. As published they are not.

    Raises ValueError for a value that is not allowed.
    """

    iterations: int = 10
    learning_rate: float = 0.7
    typical: bool = False
    decay: float = 0.0
    scaled: bool = True

    def __post_init__(self) -> None:
        require(self.iterations >= 0, "iterations", self.iterations, "0 or more")
        good_rate = math.isfinite(self.learning_rate) and self.learning_rate >= 0
        require(good_rate, "learning_rate", self.learning_rate, "0 or more")
        require(0 <= self.decay <= 1, "lr_decay", self.decay, "from 0 to 1")

    def rate_at(self, step: int) -> float:
        """The learning rate at a step of the run. Raises ValueError where it would be negative."""
        factor = 1 - step * self.decay
        if factor < -_SAME:
            raise ValueError(
                f"lr_decay is {self.decay:g}, which makes the learning rate negative at step {step + 1} of the run, "
                f"where the token is learned; it must be {1 / step:.3g} at most."
            )
        return self.learning_rate * max(factor, 0.0)

    @property
    def active(self) -> bool:
        """Whether these settings learn anything at all."""
        return self.iterations > 0 and self.learning_rate > 0


@dataclass(frozen=True)
class Preset:
    """Settings for a kind of model.

    learning_rate: in standard deviations of token embeddings; with `absolute`, in the embeddings' own unit.
    end: the share of the noise schedule in which the token is learned.
    keep_until: the share after which the plain prompt takes over.
    renoise: see `noise_share`.
    word: where the token starts.
    """

    iterations: int
    learning_rate: float
    end: float
    keep_until: float
    absolute: bool = False
    renoise: float | None = None
    word: str = "cool"


FIXED_LEVEL = 0.75  # published: noised again to t = 0.75 T where the level is not annealed
ONE_IMAGE = "SDXL-Lightning, one image"
# The paper's; its 0.01 is about 0.7 standard deviations of SD1.5's token embeddings. The released scripts are two, both
# for SDXL-Lightning: the one for COCO's prompts, which is that of few-step models here, and one for a single image.
PUBLISHED = {
    "base model": Preset(10, 0.01, 0.1, 1.0, absolute=True, renoise=FIXED_LEVEL),
    "few-step model": Preset(3, 0.001, 1.0, 1.0, absolute=True),
    ONE_IMAGE: Preset(3, 0.01, 1.0, 1.0, absolute=True, word="handsome"),
}
# A token that is learned at every step of a few-step model, or kept to the end of any, loses the prompt. On base models
# half as many iterations of twice the size are as good, and cost half. Both were measured: see docs.
RECOMMENDED = {"base model": Preset(5, 1.4, 0.1, 0.15), "few-step model": Preset(10, 0.7, 0.1, 0.15)}
PRESETS = {"recommended": RECOMMENDED, "published": PUBLISHED}


def preset_of(mode: str, name: str) -> Preset:
    """The preset of this name in a mode. Raises ValueError for one that the mode does not have."""
    require(name in PRESETS[mode], "preset", name, f'{" or ".join(PRESETS[mode])} with mode "{mode}"')
    return PRESETS[mode][name]


def check_published(objective: str, keep_until: float, similarity: float, typical: bool) -> None:
    """Raises ValueError for settings that the paper and its code do not have.

    Theirs are: one objective at a time, a token that is kept to the end or dropped as soon as it is not learned, and
    nothing that restrains it.
    """
    require(objective != "both", "objective", objective, 'minority or diversity with mode "published"')
    kept = "1 (to the end), 0 (dropped after learning) or -1 (auto)"
    require(keep_until in (0, 1), "keep_until", keep_until, f'{kept} with mode "published"')
    require(similarity == 0, "similarity", similarity, '0 (off) with mode "published"')
    require(not typical, "typical", typical, 'off with mode "published"')


@dataclass(frozen=True)
class Steps:
    """At which sampling steps the token is learned: those that begin between the shares `start` and `end` of the
    model's noise schedule (0 is pure noise; the end itself is not part of it unless it is 1), and of these every n-th.

    strict: as published: the end is never part of it, and every n-th is counted from the run's first step.

    Raises ValueError for a value that is not allowed.
    """

    start: float = 0.0
    end: float = 0.1
    every: int = 1
    strict: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.start < 1, "start_percent", self.start, "from 0 to below 1")
        require(self.start < self.end <= 1, "end_percent", self.end, f"above start_percent, {self.start:g}, to 1")
        require(self.every >= 1, "every", self.every, "1 or more")

    def chosen(self, percents: Sequence[float]) -> tuple[int, ...]:
        """Numbers of the steps, given the share of the noise schedule at which each begins."""
        end = math.inf if self.end >= 1 and not self.strict else self.end
        inside = [k for k, percent in enumerate(percents) if self.start - _SAME <= percent < end - _SAME]
        return tuple(k for k in inside if k % self.every == 0) if self.strict else tuple(inside[:: self.every])


def noise_share(share: float | None, after: float) -> float:
    """To which share of the noise schedule, 0..1 (0 is pure noise), clean estimates are noised again.

    share: how noisy, as a share of all timesteps. None anneals it: as noisy as the run has left behind when this step
    is done (`after`), so little at first and much at the end. Published: t = 999, 749, 499, 249 of 1000 are noised
    again to 250, 500, 750, 1000. Raises ValueError for a share that is not within 0..1, or is 0.
    """
    require(share is None or 0 < share <= 1, "renoise", share, "above 0, to 1, or -1 (auto)")
    return 1 - (after if share is None else share)


@dataclass(frozen=True)
class Learned:
    """Where the tokens are now, and the objective `[K, B]` as it was before each of the K steps."""

    offsets: Offsets
    scores: Tensor


def learn(
    offsets: Offsets,
    clean_estimate: CleanEstimate,
    renoised_estimate: RenoisedEstimate,
    objective: Objective,
    settings: Settings,
    margin: Margin | None = None,
    after_step: Callable[[], None] = lambda: None,
    step: int = 0,
) -> Learned:
    """Tokens after one round of learning from `offsets`, one token (or several) for each image and encoder.

    Where the margin is broken, an image's tokens are drawn back along the straight line to where they started before
    the first round (zero offsets), which keeps within any margin. `after_step` is called after every step of Adam,
    whose state does not outlive the round (published). `step` is the round's number in the run, see
    `Settings.rate_at`.

    Must run where gradients can be taken. Raises ValueError for an objective that does not give one number for each
    image, and for a gradient that is zero everywhere or not finite.
    """
    current = {name: offset.detach().float().clone() for name, offset in offsets.items()}
    optimiser = torch.optim.Adam(list(current.values()), lr=settings.rate_at(step), maximize=not settings.typical)
    history: list[Tensor] = []
    scales: dict[str, float] = {}
    for _ in range(settings.iterations):
        clean, pullback = clean_estimate({name: offset.detach().clone() for name, offset in current.items()})
        with torch.enable_grad():
            estimates = Estimates(clean, renoised_estimate)
            scores = objective(estimates)
            numbers = f"one number for each of {len(clean)} images"
            require(scores.shape == (len(clean),), "shape of the objective", list(scores.shape), numbers)
            gradient = estimates.gradient(scores.sum())
        history.append(scores.detach())
        gradients = pullback(gradient)
        scales = scales or _checked_scales(gradients)
        for name, offset in current.items():
            # Adam ignores the scale of its gradients but for a tiny constant, which must not decide.
            offset.grad = gradients[name].float() / (scales[name] if settings.scaled else 1.0)
        optimiser.step()
        with torch.no_grad():
            for name, offset in restrained(current, margin).items():
                current[name].copy_(offset)
        after_step()
    found = {name: offset.detach() for name, offset in current.items()}
    return Learned(found, torch.stack(history) if history else torch.zeros(0, 0))


def restrained(offsets: Offsets, margin: Margin | None = None) -> Offsets:
    """Offsets with a margin that is not negative, by bisection; without a margin, as they are."""
    if margin is None:
        return offsets
    outside = margin(offsets) < 0
    if not bool(outside.any()):
        return offsets
    low, high = torch.zeros(len(outside), device=outside.device), torch.ones(len(outside), device=outside.device)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = margin(_scaled(offsets, middle)) >= 0
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return _scaled(offsets, torch.where(outside, low, torch.ones_like(low)))


def distances(offsets: Offsets) -> Tensor:
    """How far each image's tokens are from where they started, `[B]`: the largest root mean square of any."""
    return torch.stack([_spread(offset).flatten(1).amax(1).cpu() for offset in offsets.values()]).amax(0)


def _spread(offset: Tensor) -> Tensor:
    return offset.square().mean(-1, keepdim=True).sqrt()


def _scaled(offsets: Offsets, share: Tensor) -> Offsets:
    return {name: offset * share.to(offset)[:, None, None] for name, offset in offsets.items()}


def _checked_scales(gradients: Offsets) -> dict[str, float]:
    """Root mean square of each encoder's first gradient. Raises ValueError when they lead nowhere."""
    scales = {name: gradient.float().square().mean().sqrt().item() for name, gradient in gradients.items()}
    if not all(math.isfinite(scale) for scale in scales.values()):
        raise ValueError("The gradient of the token is not finite: the model gives NaN or infinity at this step.")
    if not any(scales.values()):
        raise NoGradientError
    # An encoder that this model does not read has nothing to learn, and stays where it is.
    return {name: scale or 1.0 for name, scale in scales.items()}
