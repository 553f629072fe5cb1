"""When the variants of a prompt are searched without gradients, and among what (see `core.methods.tpso_search`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..hooks.gradient_check import missing_gradient
from ..hooks.text import PromptEncoder
from ..methods.tpso import initial_offsets
from ..methods.tpso_search import candidates_for
from ..require import require

OPTIMISERS = AUTO, GRADIENT, SEARCH = ("auto", "gradient", "search")
_ASKED_FOR = "as chosen"
_FIRST_LENGTH = 0.5  # of the way from a neutral token to a word


def check(optimiser: str) -> None:
    """Raises ValueError for a choice that there is not."""
    require(optimiser in OPTIMISERS, "optimiser", optimiser, f"one of {', '.join(OPTIMISERS)}")


def reason(encoder: PromptEncoder, rows: Tensor, optimiser: str) -> str | None:
    """Why the variants in this encoder are to be searched; None where gradients are used.

    rows: offsets `[N, P, D]` at which one gradient is checked, unless the choice is made already.

    Raises ValueError where gradients are chosen and the encoder passes none on.
    """
    if optimiser == SEARCH:
        return _ASKED_FOR
    missing = missing_gradient(encoder, rows.to(encoder.device))
    if missing is not None and optimiser == GRADIENT:
        raise _no_gradient(encoder, missing, "set optimiser to auto or search in Diverse Prompts Options")
    return missing


def require_gradient(encoder: PromptEncoder, rows: Tensor) -> None:
    """Raises ValueError where the encoder passes no gradient on, which the published procedure follows."""
    missing = missing_gradient(encoder, rows.to(encoder.device))
    if missing is not None:
        raise _no_gradient(encoder, missing, "choose mode recommended, which can search without gradients")


def _no_gradient(encoder: PromptEncoder, missing: str, way_out: str) -> ValueError:
    return ValueError(
        f"The text encoder {encoder.name} passes no gradient on ({missing}). That is so for compiled encoders and for "
        f"quantised ones that also round activations: {way_out}, or load the encoder without these."
    )


def candidates(encoder: PromptEncoder, count: int, seed: int, deviation: float, added: bool) -> Tensor:
    """Offsets `[M, P, D]`, times the number of positions, among whose directions `count` variants are searched.

    added: tokens that were appended are varied; what changes the meaning of those most is other words in their place,
        while directions at random hardly change it.
    """
    wanted = candidates_for(count)
    if not added:
        return initial_offsets(wanted, encoder.positions, encoder.width, seed, deviation)
    words = encoder.words()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(words), (wanted, encoder.positions), generator=generator)
    own = torch.cat([section.embeds[section.start : section.last] for section in encoder.sections])
    return _FIRST_LENGTH * encoder.positions * (words[chosen.to(words.device)] - own)


def report(why: str, added_tokens: int) -> str:
    """What the search costs, in words."""
    text = f"found by search without gradients ({why}), which "
    if added_tokens:
        return text + "spreads less than a gradient with added tokens; added_tokens 0 comes nearer to the bound"
    return text + "spreads nearly as far as a gradient"
