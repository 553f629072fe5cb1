"""The ablations of the papers, on methods as published: what happens to the images when one part is changed.

    python -m benchmarks.ablations --model mmdit --report --prompts 16
    python -m benchmarks.ablations --model mmdit --only baseline "CNO*"
    python -m benchmarks.ablations --cosines        # where TPSO's variants end; no images

Every row is a method in mode published (docs/published) at the model's best CFG, with what its name says changed. All
rows share prompts and seeds. Adherence and diversity come from the attribute classifier, which nothing optimises.
docs/measurements/ablations.md sets them beside what the papers found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from .rows import BATCH, FIRST_SEED, Make, arguments_of, carry_out  # isort: skip - this makes ComfyUI and the pack importable
import torch
from comfyui_diversity.core.drivers.tpso_published import SD35, rule_of, vary_as_released
from comfyui_diversity.core.methods.cno import published
from comfyui_diversity.demo import loader
from comfyui_diversity.demo.world.prompts import REPORT_PROMPTS

from .cno_settings import cno
from .minority_settings import as_published as minority
from .results import PrintedTable
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


DIVERSITIES = (0.0, 5.0, 10.0)  # lambda
BESIDE = tuple(f"{value:g}" for value in DIVERSITIES)  # rows that are no images
COSINES_HEAD = ["lambda", "variants", "within the band", "lowest", "median", "highest"]


@torch.inference_mode()
def print_cosines(table: PrintedTable) -> None:
    """Where variants as published end for kappa 0.8: cosines to the prompt, over the prompts for reporting."""
    clip = loader.load_clip()
    for diversity in DIVERSITIES:
        rule, reached, missed = rule_of(SD35, diversity=diversity), [], 0
        for k, prompt in enumerate(REPORT_PROMPTS):
            _, outcomes = vary_as_released(clip, prompt.text, BATCH, FIRST_SEED["report"] + k, SD35, rule)
            reached += [one.variants.cosines[-2 if one.past else -1] for one in outcomes]
            missed += sum(one.missed for one in outcomes)
        cosines = torch.cat(reached)
        shown = [f"{value:.2f}" for value in (cosines.min(), cosines.median(), cosines.max())]
        table.add([f"{diversity:g}", str(len(cosines)), f"{1 - missed / len(cosines):.2f}", *shown])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    parser.set_defaults(model="mmdit")
    parser.add_argument("--cosines", action="store_true", help="where variants as published end; no images")
    options = parser.parse_args(arguments)
    if options.cosines:
        command = "python -m benchmarks.ablations --cosines"
        print_cosines(PrintedTable(options.out / "ablations_cosines.json", command, COSINES_HEAD))
        return
    carry_out("ablations", ROWS, parser, options)


if __name__ == "__main__":
    main()
