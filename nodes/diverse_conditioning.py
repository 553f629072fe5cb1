"""Diverse Conditioning: variants of what another encode node made (TPSO), one for each image of a batch."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.drivers.schedule import scheduled
from ..core.drivers.tpso import Recipe, check_rows, one_variant, recommended
from ..core.drivers.tpso_conditioning import vary_conditioning
from ..core.hooks.progress import Progress, show
from ..core.methods.schedule import Window
from ..core.methods.tpso import Settings
from ..core.require import require
from ._inputs import AUTO_NUMBER, OFF, CheckedNode, Options, check_clip, checked, options_input, read_options
from .tpso import RATIO
from .tpso_options import DiversePromptsOptions, refuse_published_alone


class DiverseConditioning(CheckedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityTPSOConditioning",
            display_name="Diverse Conditioning (TPSO)",
            category="diversity/conditioning",
            description=(
                "Behind an encode node that takes more than a text (images, sizes, a system prompt): what varying its "
                "text changes is added to what that node made, another variant for each image of the batch."
            ),
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="What the other encode node made of the same text."),
                io.Clip.Input("clip", tooltip="The CLIP of that node."),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True, tooltip="The text of that node, word for word."
                ),
                io.Int.Input("variants", default=4, min=1, max=1024, tooltip="How many: the batch size of the latent."),
                io.Float.Input(
                    "similarity",
                    default=Settings.kappa,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Cosine of every variant to the text. Lower: more diverse images, which follow it less. 1: "
                        "the variants are the conditioning itself."
                    ),
                ),
                io.Float.Input(
                    "ratio",
                    default=RATIO,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "Share of the sampling steps over which the variants fade into the conditioning itself. 0 "
                        "(off): never in force. Negative: at the end of the run."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=getattr(getattr(io, "ControlAfterGenerate", None), "fixed", True),
                    tooltip="Which variants.",
                ),
                options_input("TPSO", "Diverse Prompts Options"),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="Variant k for image k of the batch, fading into the conditioning by its own schedule.",
                ),
                io.String.Output(display_name="report", tooltip="What was done and reached, in words."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        conditioning: list,
        clip: Any,
        text: str,
        variants: int,
        similarity: float,
        ratio: float,
        seed: int,
        options: Options | None = None,
    ) -> io.NodeOutput:
        check_clip(clip)
        chosen = read_options(DiversePromptsOptions, options)
        require(not chosen["vary_negative"], "vary_negative", "on", "off: Diverse Conditioning has no negative prompt")
        refuse_published_alone(chosen, "here: it is for mode published, which Diverse Conditioning does not have")
        variant = chosen["variant"]
        require(variant <= variants, "variant", variant, f"0 (all) or 1 to {variants}, the number of variants")
        check_rows(conditioning, 1 if variant else variants)
        recipe = _recipe(similarity, chosen)
        bar = Progress(recipe.settings.steps)

        def on_step(encoder: str, cosines: Tensor, _spread: Tensor | None) -> None:
            bar.step(f"{encoder}: cosine to the text {cosines.mean():.3f}")

        found, outcomes, places = vary_conditioning(
            conditioning, clip, text, variants, seed, recipe, chosen["encoders"], on_step
        )
        if variant:
            found = one_variant(found, variant - 1)
        if chosen["schedule"] != OFF:
            window = Window(ratio, 0.0, chosen["schedule"], chosen["perturbed_steps"])
            found = scheduled(found, conditioning, window)
        report = "\n".join([*(outcome.report for outcome in outcomes), *(place.report for place in places)])
        show(report)
        return io.NodeOutput(found, report)


def _recipe(similarity: float, options: dict[str, Any]) -> Recipe:
    def given(name: str) -> Any:
        return None if options[name] == AUTO_NUMBER else options[name]

    found = recommended(
        similarity,
        options["tolerance"],
        options["diversity"],
        given("steps"),
        given("learning_rate"),
        given("added_tokens") or 0,
        options["keep_words"],
    )
    return Recipe(found.settings, found.added_tokens, found.keep_words, found.learning_rate, options["optimiser"])


NODES = [DiverseConditioning]
