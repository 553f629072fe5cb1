"""One conditioning that turns into another while the image is made."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.drivers.schedule import CLOCKS, scheduled
from ..core.methods.schedule import EASINGS, Window
from ._inputs import checked

_DEFAULT = Window()


class ScheduleConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityScheduleConditioning",
            display_name="Schedule Conditioning",
            category="diversity/conditioning",
            description=(
                "One conditioning that turns into another while the image is made, at every step exactly as much as "
                "the schedule says. Works with any sampler and any number of steps, and needs no patched model."
            ),
            inputs=[
                io.Conditioning.Input(
                    "conditioning_from",
                    tooltip="In force at first. Its row k belongs to image k of the batch, as Diverse Prompts gives.",
                ),
                io.Conditioning.Input("conditioning_to", tooltip="In force after that, to the end."),
                io.Float.Input(
                    "ratio",
                    default=_DEFAULT.ratio,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "Share of the steps over which the first conditioning fades out. 0 (off): it is never in "
                        "force. Negative: a window at the end, in which the first one fades in (0.4 and -0.4 mirror "
                        "each other)."
                    ),
                ),
                io.Float.Input(
                    "start_percent",
                    default=_DEFAULT.start_percent,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the steps before conditioning_from begins to fade; at most the size of ratio.",
                ),
                io.Combo.Input(
                    "easing",
                    options=list(EASINGS),
                    default=_DEFAULT.easing,
                    tooltip=(
                        '"linear": evenly. "smooth": slowly at both ends. "hold": fully in force within the '
                        "window, not at all outside."
                    ),
                ),
                io.Int.Input(
                    "perturbed_steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip=(
                        "For few-step models: the number of steps in which the first conditioning has a share, in "
                        "place of ratio (whose sign still chooses the end). 0 (off): ratio decides."
                    ),
                ),
                io.Combo.Input(
                    "clock",
                    options=list(CLOCKS),
                    default=CLOCKS[0],
                    tooltip=(
                        '"steps": shares are of this sampler\'s steps. "noise": of the model\'s whole noise '
                        "schedule, so that two samplers in a row (base and refiner, denoise below 1) share one "
                        "window."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="CONDITIONING", tooltip="For any sampler or guider. It carries its schedule itself."
                )
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        conditioning_from: list,
        conditioning_to: list,
        ratio: float,
        start_percent: float,
        easing: str,
        perturbed_steps: int,
        clock: str,
    ) -> io.NodeOutput:
        window = Window(ratio, start_percent, easing, perturbed_steps)
        return io.NodeOutput(scheduled(conditioning_from, conditioning_to, window, clock))


NODES: list[Any] = [ScheduleConditioning]
