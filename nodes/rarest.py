"""The rarest images of a batch first."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.drivers.rarity import rarity_of
from ..core.hooks.progress import Progress, show
from ._inputs import AUTO_NUMBER, advanced, checked
from ._latents import rows_of

_DIGITS = 5  # that count: more would tell apart what only rounding does


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
                io.Model.Input("model", tooltip="The diffusion model that the images were made with."),
                io.Conditioning.Input("positive", tooltip="The plain prompt that the images were made for."),
                io.Latent.Input("latent", tooltip="Finished images, from the sampler."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Of the noise that the images are noised again with. The same seed, the same order.",
                ),
                io.Int.Input(
                    "top",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="How many images to keep, the rarest ones. 0: all. No more than there are.",
                ),
                *(advanced(widget) for widget in _advanced_inputs()),
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
        values = rarity_of(model, positive, latent, seed, renoise, noises, chunk_size, progress.step)
        text = [f"{value:.{_DIGITS}g}" for value in values.tolist()]
        # Stable: images of equal value stay in the order they came in.
        order = sorted(range(count), key=lambda k: -float(text[k]))[: top or count]
        report = _report(text, order)
        show(report)
        return io.NodeOutput(rows_of(latent, order), report)


def _advanced_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "renoise",
            default=0.75,
            min=0.05,
            max=1.0,
            step=0.05,
            tooltip=(
                "How noisy an image is made again, as a share of the noise schedule. High: its layout and colours "
                "decide; low: its details."
            ),
        ),
        io.Int.Input(
            "noises",
            default=4,
            min=1,
            max=100,
            tooltip="Noises that the value is averaged over. Each costs half a sampling step with CFG.",
        ),
        io.Int.Input(
            "chunk_size",
            default=AUTO_NUMBER,
            min=AUTO_NUMBER,
            max=4096,
            tooltip="Images that go through the model at once. -1: all, and fewer when memory runs out.",
        ),
    ]


def _report(values: list[str], order: list[int]) -> str:
    if len(values) == 1:
        return f"One image, value {values[0]}: there is nothing to sort. Make a batch of 2 or more."
    places = [f"{place}. image {k}: {values[k]}" for place, k in enumerate(order, 1)]
    head = f"Rarest first: {len(order)} of {len(values)} images (counted from 0)"
    return "\n".join([head, *places])


NODES = [RarestFirst]
