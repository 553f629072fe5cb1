"""Text in, CLIP vision outputs out: optimised (OVI), or the text's own vector."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..core.drivers.ovi import (
    CONSTRAINTS,
    Outcome,
    Plan,
    Target,
    conditioning_targets,
    invert_text,
    natural_length,
    published,
    recommended,
    rescaled,
    text_as_output,
    text_target,
)
from ..core.hooks.progress import Progress, show
from ..core.hooks.vision import VisionTower
from ..core.methods.image_bank import ImageBank
from ..core.plot import curves_plot
from ._inputs import (
    AUTO,
    AUTO_NUMBER,
    OFF,
    PUBLISHED,
    CheckedNode,
    Options,
    checked,
    mode_input,
    options_input,
    read_options,
)
from .image_bank import CATEGORY, Bank
from .ovi_options import METHOD, NAME, OPTIONS_NAME, TextToVisionOptions

_AUTOMATIC = {
    "tokens": AUTO_NUMBER,
    "steps": AUTO_NUMBER,
    "learning_rate": AUTO_NUMBER,
    "match_length": AUTO,
}
_Control = getattr(io, "ControlAfterGenerate", None)


def _text_inputs() -> list[io.Input]:
    return [
        io.Clip.Input(
            "clip", tooltip="The text encoder of the same CLIP as clip_vision, for instance a stand-alone clip_l file."
        ),
        io.ClipVision.Input("clip_vision", tooltip="The vision tower whose embeddings the model reads."),
        io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="What the images should show."),
    ]


def _plan(mode: str, options: Options | None) -> Plan:
    """Raises ValueError for an option that the mode does not have."""
    values = read_options(TextToVisionOptions, options)
    chosen = {name: value for name, value in values.items() if value != _AUTOMATIC.get(name)}
    if "match_length" in chosen:
        chosen["match_length"] = chosen["match_length"] != OFF
    make = published if mode == PUBLISHED else recommended
    return make(**chosen)


class TextToVision(CheckedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityOVI",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "An image embedding from text alone, for whatever reads one (unCLIP, Stable Cascade, style models, "
                "IP-Adapter): tokens are optimised until a CLIP's vision tower sees in them what the text says. "
                "Nothing is trained. As many variants of one text as are wanted."
            ),
            inputs=[
                *_text_inputs(),
                io.Int.Input(
                    "variants",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="How many embeddings, from different random starts. With prompts: as many as those are.",
                ),
                io.Combo.Input(
                    "constraint",
                    options=list(CONSTRAINTS),
                    default=next(iter(CONSTRAINTS)),
                    tooltip=(
                        'What holds the embedding near those of real images; both need a bank. "nearest neighbour": '
                        "near to that image of the bank which fits the text best, another one for each variant "
                        '(best). "mahalanobis": near to their mean, by their covariance. "off": nothing; it goes '
                        "where no image is."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # Older versions of ComfyUI cannot say which.
                    control_after_generate=True if _Control is None else _Control.fixed,
                    tooltip="Which random starts. Leave it on fixed: another seed for the sampler alone is quicker.",
                ),
                mode_input(
                    "the paper's 6 tokens and fixed number of steps (1000), of which the last result is kept; the "
                    "embedding's own length; the paper's weights of the constraints."
                ),
                Bank.Input("bank", optional=True, tooltip="Embeddings of real images, from Image Embedding Bank."),
                io.Conditioning.Input(
                    "prompts",
                    optional=True,
                    tooltip=(
                        "The positive of Diverse Prompts (TPSO) with the same clip: one embedding for each of its "
                        "variants."
                    ),
                ),
                options_input(METHOD, OPTIONS_NAME),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    display_name="CLIP_VISION_OUTPUT",
                    is_output_list=True,
                    tooltip="A list, one for each variant: what follows runs once for each.",
                ),
                io.ClipVisionOutput.Output(
                    display_name="negative",
                    tooltip="The tower's embedding of an all-zero input, for the negative side.",
                ),
                io.Image.Output(display_name="plot", tooltip="Cosine of every variant to the text, step by step."),
                io.String.Output(display_name="report", tooltip="What was done and reached, in words."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        clip: Any,
        clip_vision: Any,
        text: str,
        variants: int,
        constraint: str,
        seed: int,
        mode: str,
        bank: ImageBank | None = None,
        prompts: list | None = None,
        options: Options | None = None,
    ) -> io.NodeOutput:
        plan = _plan(mode, options)
        settings = plan.settings
        tower = VisionTower(clip_vision)
        if prompts is None:
            target = text_target(clip, text, tower.width)
        else:
            target = conditioning_targets(clip, text, prompts, tower.width)
            variants = len(target.vectors)
        progress = Progress(max(settings.steps, 1))

        def after(cosines: Tensor, going_on: int) -> None:
            progress.step(f"cosine to the text {cosines.mean():.3f}, {going_on} of {variants} variants go on")

        outcome = invert_text(
            tower,
            target,
            variants,
            plan.tokens,
            seed,
            settings,
            constraint,
            plan.weight,
            bank,
            after,
            plan.constraints,
        )
        length = natural_length(tower, bank)
        report = _report(outcome, target, constraint, plan, bank, length)
        show(report)
        outputs = [rescaled(output, length) for output in outcome.outputs] if plan.match_length else outcome.outputs
        cosines = outcome.inversion.cosines.cpu()
        plot = curves_plot(cosines, settings.target or None, f"cosine to the text ({target.source})")
        return io.NodeOutput(outputs, tower.negative, plot, report)


def _report(
    outcome: Outcome,
    target: Target,
    constraint: str,
    plan: Plan,
    bank: ImageBank | None,
    length: float,
) -> str:
    inversion = outcome.inversion
    kept = "last step" if plan.settings.keep_last else "lowest loss"
    lines = [f"Text: {target.source}."]
    for k, cosine in enumerate(outcome.cosines.tolist()):
        why = "target reached" if bool(inversion.reached[k]) else kept
        line = f"Variant {k + 1}: cosine to the text {cosine:.3f} after {int(inversion.steps[k])} steps ({why})"
        if CONSTRAINTS[constraint] is not None:
            before, after = inversion.distances[:, k].tolist()
            line += f"; {constraint}: {before:.3f} to {after:.3f}"
        if outcome.nearest is not None:
            line += f"; nearest image of the bank: cosine {outcome.nearest[k]:.3f}"
        lines.append(line + ".")
    if bank is not None:
        lines.append(f"The bank holds {len(bank)} images.")
        if CONSTRAINTS[constraint] is None:
            lines.append('constraint is "off": distances to the bank are only measured.')
    if CONSTRAINTS[constraint] is not None and plan.weight == 0:
        lines.append("weight is 0: the constraint is only measured.")
    if plan.is_published:
        lines.append(f"As published. {plan.unpublished()}".strip())
        if CONSTRAINTS[constraint] is not None:
            lines.append("The exact form of the paper's constraint is not public; its weight is the paper's.")
    own = sum(output.image_embeds.float().norm().item() for output in outcome.outputs) / len(outcome.outputs)
    whose = "that of the negative" if bank is None else "the mean of the bank's"
    done = ", to which they are rescaled" if plan.match_length else ""
    lines.append(f"Mean length of the embeddings {own:.2f}; {whose} is {length:.2f}{done}.")
    lines.append("Whether clip and clip_vision belong to one CLIP is checked by their width alone.")
    return "\n".join(lines)


class TextAsVision(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityTextAsVision",
            display_name="Text Embedding as Vision Embedding",
            category=CATEGORY,
            description=(
                "The text's own CLIP vector in place of an image embedding, without any optimisation: what Text to "
                "Vision Embedding (OVI) is compared with."
            ),
            inputs=[
                *_text_inputs(),
                Bank.Input(
                    "bank",
                    optional=True,
                    tooltip="The vector gets the mean length of these embeddings; else that of the negative.",
                ),
            ],
            outputs=[
                io.ClipVisionOutput.Output(display_name="CLIP_VISION_OUTPUT", tooltip="The text's vector, rescaled."),
                io.ClipVisionOutput.Output(
                    display_name="negative",
                    tooltip="The tower's embedding of an all-zero input, for the negative side.",
                ),
                io.String.Output(display_name="report", tooltip="What was done, in words."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, clip: Any, clip_vision: Any, text: str, bank: ImageBank | None = None) -> io.NodeOutput:
        tower = VisionTower(clip_vision)
        target = text_target(clip, text, tower.width)
        if bank is not None:
            tower.check_bank(bank)
        length = natural_length(tower, bank)
        report = (
            f"Text: {target.source}, rescaled from length {target.vectors.norm():.2f} to {length:.2f}. The hidden "
            "states are those of an all-zero input, since a text has none: what reads them sees nothing of the text."
        )
        show(report)
        return io.NodeOutput(text_as_output(tower, target, length), tower.negative, report)


NODES = [TextToVision, TextAsVision]
