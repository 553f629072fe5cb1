"""The rows of the demo. A new method adds its entries to `RUNS`; nothing else in the demo has to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Variants of baselines that are not stock behaviour but what a method competes with.
RIVALS = ("real", "text")


@dataclass(frozen=True)
class Run:
    """One row: a template, run on every prompt of the demo at this guidance scale and number of steps.

    `settings` are values of single nodes, `{"NodeType.input": value}`; `variant` tells apart rows that differ in
    nothing but these. `text` says in the same way where the prompt goes, for templates whose sampler does not get it
    from its positive side. `every` is 2 for every second prompt: the whole demo must not take longer than people wait.
    `made` is how many images are made of a prompt, where not all of them are kept; 0 is as many as are kept.
    """

    template: str
    model: str
    method: str
    cfg: float
    steps: int
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    variant: str = ""
    text: str = ""
    every: int = 1
    made: int = 0

    @property
    def name(self) -> str:
        """Its folder below the model's."""
        return f"{self.method}_cfg{self.cfg:g}" + (f"_{self.variant}" if self.variant else "")

    @property
    def role(self) -> str:
        """What the row is there for: `baseline`, `rival` (what else one could do), or `method`."""
        return "rival" if self.variant in RIVALS else "baseline" if self.method == "baseline" else "method"

    @property
    def title(self) -> str:
        method = f"{self.method} {self.variant}".strip()
        return f"{self.model}  ·  {method}  ·  CFG {self.cfg:g}  ·  {self.steps} steps"


RUNS: tuple[Run, ...] = (
    *(Run("baseline_unet", "unet", "baseline", cfg, 20, every=2 if cfg == 6 else 1) for cfg in (1, 2, 6)),
    *(Run("baseline_mmdit", "mmdit", "baseline", cfg, 20, every=2 if cfg == 6 else 1) for cfg in (1, 2, 6)),
    Run("baseline_distilled", "distilled", "baseline", 1, 4),
    Run("baseline_turbo", "turbo", "baseline", 1, 8),
    Run("diversify_unet", "unet", "diversify", 2, 20),
    Run("diversify_mmdit", "mmdit", "diversify", 2, 20),
    Run("diversify_distilled", "distilled", "diversify", 1, 4),
    Run("diversify_turbo", "turbo", "diversify", 1, 8),
    Run("cno_mmdit", "mmdit", "cno", 2, 20),
    Run("cno_turbo", "turbo", "cno", 1, 8),
    Run("tpso_mmdit", "mmdit", "tpso", 2, 20),
    *(
        Run(f"keep_{model}", model, "keep", cfg, steps, {"DiversityKeepBest.keep": 5}, made=8)
        for model, cfg, steps in (("distilled", 1, 4), ("mmdit", 2, 20))
    ),
    Run("minority_mmdit", "mmdit", "minority", 2, 20),
    Run("minority_distilled", "distilled", "minority", 1, 4),
    Run("ovi_real_images", "unclip", "baseline", 3, 10, variant="real", text="DiversityDemoImages.text", every=2),
    Run("ovi_text_directly", "unclip", "baseline", 3, 10, variant="text", text="DiversityTextAsVision.text", every=2),
    Run("ovi", "unclip", "ovi", 3, 10, text="DiversityOVI.text", every=2),
)
