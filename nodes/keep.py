"""The best images of a batch: without those that came out badly, the ones that differ most."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.drivers.selection import DROP, NOISES, RENOISE, Selection, select
from ..core.hooks.progress import Progress, show
from ._inputs import advanced, checked
from ._measured import images_inputs, measure_inputs, rows_of, seed_input


class KeepBest(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityKeepBest",
            display_name="Keep the Best",
            category="diversity/latent",
            description=(
                "Keeps some images of a batch: drops those that came out badly by the model's own measure, and of the "
                "rest keeps those that differ most. Make a few images more than you want."
            ),
            inputs=[
                *images_inputs(": more than you want to keep"),
                io.Int.Input(
                    "keep", default=4, min=1, max=4096, tooltip="How many images to keep. No more than there are."
                ),
                io.Float.Input(
                    "drop",
                    default=DROP,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    tooltip=(
                        "The share of all images to drop as badly made, at least one image. Higher: fewer broken ones, "
                        "and images more alike. 0: keep only what differs most, broken or not."
                    ),
                ),
                advanced(seed_input("choice")),
                *measure_inputs(RENOISE, NOISES),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="The images that were kept, in their order."),
                io.String.Output(
                    display_name="report", tooltip="What was kept and what was dropped and why, counted from 0."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: list,
        latent: dict[str, Any],
        keep: int,
        drop: float,
        seed: int,
        renoise: float,
        noises: int,
        chunk_size: int,
    ) -> io.NodeOutput:
        progress = Progress(noises)
        found = select(model, positive, latent, keep, drop, seed, renoise, noises, chunk_size, progress.step)
        report = _report(found)
        show(report)
        return io.NodeOutput(rows_of(latent, found.kept), report)


def _report(found: Selection) -> str:
    if not found.rarity:
        return f"All {len(found.kept)} images are kept, so nothing was measured: make more than keep."
    lines = [f"Kept {len(found.kept)} of {len(found.rarity)} images (counted from 0): {_listed(found.kept)}"]
    if found.bad:
        lines.append(f"Dropped as badly made: {_listed(found.bad)}")
    if found.alike:
        lines.append(f"Dropped as too like others: {_listed(found.alike)}")
    return "\n".join(lines)


def _listed(places: list[int]) -> str:
    return ", ".join(map(str, places))


NODES = [KeepBest]
