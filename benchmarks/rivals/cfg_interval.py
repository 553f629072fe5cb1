"""CFG off for the first steps, and guidance in a limited interval (Kynkaanniemi et al. 2024, arXiv 2404.07724)."""

from __future__ import annotations

from typing import Any

from ..job import Change, Job, share_done


def cfg_interval(start: float, end: float = 1.0) -> Change:
    """CFG from `start` to `end`, shares of the steps; outside the conditional prediction alone.

    A sampler node would save the other half of the model there, which this does not, so that its seconds are those
    of the plain run.
    """

    def guided(args: dict[str, Any]) -> Any:
        done = share_done(args["model_options"]["transformer_options"], args["sigma"])
        scale = args["cond_scale"] if start - 1e-6 <= done < end - 1e-6 else 1.0
        return args["uncond"] + scale * (args["cond"] - args["uncond"])

    def change(job: Job) -> None:
        job.model = job.model.clone()
        job.model.set_model_sampler_cfg_function(guided)

    return change
