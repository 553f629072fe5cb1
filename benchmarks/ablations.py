"""The ablations of the papers, on methods as published: what happens to the images when one part is changed.

    python -m benchmarks.ablations --model mmdit --report --prompts 16
    python -m benchmarks.ablations --model mmdit --only baseline "CNO*"

Every row is a method in mode published (docs/published) at the model's best CFG, with what its name says changed. All
rows share prompts and seeds. Adherence and diversity come from the attribute classifier, which nothing optimises.
docs/measurements/ablations.md sets them beside what the papers found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from .rows import BATCH, Make, arguments_of, carry_out  # isort: skip - this makes ComfyUI and the pack importable
from comfyui_diversity.core.methods.cno import published

from .cno_settings import cno
from .minority_settings import as_published as minority
from .tpso_settings import as_published as tpso

# The paper's form: the node refuses another gamma and the full gradient in it.
CNO = asdict(published())

ROWS: dict[str, Make] = {
    "baseline": lambda world, text, seed: world.latents(text, seed, BATCH),
    # Lambda is 10 for flows, 1 for the UNet. The paper varies kappa and the ratio at lambda 0.
    "TPSO, published": tpso(),
    "TPSO, lambda 5": tpso(diversity=5.0),
    "TPSO, lambda 0": tpso(diversity=0.0),
    "TPSO, lambda 0, kappa 0.7": tpso(diversity=0.0, kappa=0.7),
    "TPSO, lambda 0, kappa 0.9": tpso(diversity=0.0, kappa=0.9),
    "TPSO, lambda 0, ratio 0.6": tpso(ratio=0.6, diversity=0.0),
    "TPSO, lambda 0, ratio -0.4": tpso(ratio=-0.4, diversity=0.0),
    "CNO, published": cno(**CNO),
    # The latents are 16 x 16, a quarter of the side of SD1.5's: the paper's cells at 4, 16 and 32 are as wide as
    # those at 1, 4 and 8.
    **{f"CNO, window {window}": cno(**(CNO | {"window": window})) for window in (1, 4, 8)},
    **{f"CNO, {terms}": cno(**(CNO | {"terms": terms})) for terms in ("no attraction", "no repulsion")},
    # In closed form 0.82 for ten images.
    **{f"CNO, gamma {gamma}": cno(**(CNO | {"gamma": gamma})) for gamma in (0.5, 1.0)},
    "CNO, full gradient": cno("full", **CNO),
    "Minority, published": minority(),
    "Minority, word picture": minority("picture"),
    "Minority, no word": minority(""),
    "Minority, at the start": minority(position="start"),
    **{f"Minority, iterations {count}": minority(iterations=count) for count in (1, 5)},
    "Minority, annealed level": minority(anneal="on"),
    "Minority, first step alone": minority(end_percent=0.05),
    "Minority, first fifth": minority(end_percent=0.2),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    parser.set_defaults(model="mmdit")
    carry_out("ablations", ROWS, parser, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
