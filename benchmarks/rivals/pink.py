"""Pink noise: an initial noise with more energy at low frequencies."""

from __future__ import annotations

from ..job import Change, Job
from ..peers import pink


def pink_noise(alpha: float) -> Change:
    """Spectrum f^(-alpha/2) in amplitude; 0 is white noise. Published for diffusion models with alpha 0.2."""

    def change(job: Job) -> None:
        job.noise = pink(job.noise, alpha)

    return change
