"""The rarest images of a batch first."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.drivers.rarity import in_digits, rarity_of
from ..core.hooks.progress import Progress, show
from ._inputs import checked
from ._measured import images_inputs, measure_inputs, rows_of, seed_input


class RarestFirst(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityRarestFirst",
            display_name="Rarest First",
            category="diversity/latent",
            description=(
                "Sorts finished images of one prompt: first those that the model holds for least likely, last the "
                "typical ones. Noises each image again and measures how far the model leads away from it."
            ),
            inputs=[
                *images_inputs(),
                seed_input("order"),
                io.Int.Input(
                    "top",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="How many images to keep, the rarest ones. 0: all. No more than there are.",
                ),
                *measure_inputs(0.75, 4),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="The images, rarest first."),
                io.String.Output(
                    display_name="report",
                    tooltip="Each image's value and its place in the batch before, counted from 0.",
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
        seed: int,
        top: int,
        renoise: float,
        noises: int,
        chunk_size: int,
    ) -> io.NodeOutput:
        count = len(latent["samples"])
        if not 0 <= top <= count:
            raise ValueError(f"top is {top}; it must be from 0 (all) to the {count} images of this latent.")
        progress = Progress(noises)
        text = in_digits(rarity_of(model, positive, latent, seed, renoise, noises, chunk_size, progress.step))
        # Stable: images of equal value stay in the order they came in.
        order = sorted(range(count), key=lambda k: -float(text[k]))[: top or count]
        report = _report(text, order)
        show(report)
        return io.NodeOutput(rows_of(latent, order), report)


def _report(values: list[str], order: list[int]) -> str:
    if len(values) == 1:
        return f"One image, value {values[0]}: there is nothing to sort. Make a batch of 2 or more."
    places = [f"{place}. image {k}: {values[k]}" for place, k in enumerate(order, 1)]
    head = f"Rarest first: {len(order)} of {len(values)} images (counted from 0)"
    return "\n".join([head, *places])


NODES = [RarestFirst]
