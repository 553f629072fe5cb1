"""What Minority Prompt is asked to learn, and with which settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..hooks.chunks import check_chunk_size
from ..hooks.tokens import LearnableToken
from ..methods.minority import Objective, Settings, Steps, minority, noise_share
from ..require import require

KEY = "diversity_minority"  # of the wrappers, and of what the conditioning carries
OPTIMISERS = ("auto", "gradient", "search")


@dataclass(frozen=True, eq=False)
class Learning:
    """What is learned, at which steps, and what becomes of it.

    clip, text, word, position, encoders, start, start_scale: see `LearnableToken`.
    settings: the learning rate is in standard deviations of each encoder's token embeddings; with `absolute` it is in
        the embeddings' own unit (as published).
    similarity: lower bound of the cosine of the prompt with the token to the prompt with the word that it starts from,
        in CLIP's projected pooled space, and what means the same in others. 0: none.
    renoise: see `noise_share`.
    keep_until: the share of the model's noise schedule after which the plain prompt takes over.
    chunk_size: images that go through the models at once; -1 is all, and fewer when memory runs out.
    checkpointing: gradient checkpointing of every layer; begins by itself when memory runs out for a single image.
    save: file of the learned token, for several images one each with its number; None for none.
    published: noise levels are shares of the model's training steps (t > 0.9 T, s = 0.75 T), and the token is one in
        every encoder.
    late: clean estimates are read with the alphas of the level one training step below the one that the network is
        told, as in the released code; not where the level that is noised again to is fixed. See `read_one_level_late`.
    notes: what in published settings is not as published, for the report.
    optimiser: "gradient"; "search", without gradients (see `core.methods.minority_search`); "auto", gradients, and a
        search where none pass.

    Raises ValueError for a value that is not allowed.
    """

    clip: Any
    text: str
    settings: Settings = field(default_factory=Settings)
    steps: Steps = field(default_factory=Steps)
    objective: Objective = minority
    word: str = "cool"
    position: str = "end"
    encoders: str = "auto"
    similarity: float = 0.0
    renoise: float | None = None
    keep_until: float = 0.15
    chunk_size: int = -1
    checkpointing: bool = False
    absolute: bool = False
    save: Path | None = None
    published: bool = False
    late: bool = False
    start: str = "auto"
    start_scale: float = 1.0
    notes: tuple[str, ...] = ()
    optimiser: str = "auto"

    def __post_init__(self) -> None:
        require(self.optimiser in OPTIMISERS, "optimiser", self.optimiser, f"one of {', '.join(OPTIMISERS)}")
        noise_share(self.renoise, 0.0)
        for name, value in (("similarity", self.similarity), ("keep_until", self.keep_until)):
            require(0 <= value <= 1, name, value, "from 0 to 1")
        check_chunk_size(self.chunk_size)

    def token(self) -> LearnableToken:
        """The prompt with the token. Its CLIP must be loaded. Raises ValueError for a prompt that cannot have one."""
        if self.clip.patcher.forced_hooks is not None and self.clip.use_clip_schedule:
            raise ValueError(
                "This CLIP has scheduled hooks (Set CLIP Hooks with schedule_clip on); a token would have to be "
                "learned for every keyframe. Switch schedule_clip off."
            )
        token = LearnableToken(
            self.clip, self.text, self.word, self.position, self.encoders, self.start, self.start_scale
        )
        for name, count in token.counts.items():
            if self.published and count != 1:
                raise ValueError(
                    f"initial_word is {self.word!r}, which is {count} tokens in {name}; with mode published it must be "
                    "a word of one token."
                )
        return token
