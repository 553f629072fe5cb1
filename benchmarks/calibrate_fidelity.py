"""From where on an image is broken: writes `demo/fidelity.json`.

    python -m benchmarks.calibrate_fidelity

Real drawings go through the demo's own autoencoder, as every image of a model does; the threshold is the 99th
percentile of their residuals. Drawings with each kind of defect go the same way; at least 95 of 100 of a kind must be
beyond it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from . import world  # noqa: F401 # isort: skip - this makes ComfyUI and the pack importable

import comfy.sd
import comfy.utils
import numpy as np
import torch
from comfyui_diversity.demo import loader
from comfyui_diversity.demo.fidelity import CALIBRATION, Judge, Tolerance
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.attributes import sample_uniform_scene
from comfyui_diversity.demo.world.draw import draw

from .defects import DEFECTS
from .image_store import STORE, stored

SEED, REAL, DEFECT = 101, 1500, 150
SEEN, FALSE_ALARMS = 0.95, 0.01
KINDS = {name: defect for name, defect in DEFECTS.items() if name != "of_no_colour"}  # it does not pass the autoencoder
_AT_ONCE = 20


class RoundTrip:
    """The demo's autoencoder, there and back: images `uint8 [N, 128, 128, 3]` as its decoder gives them."""

    def __init__(self) -> None:
        self._vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(loader.WEIGHTS / loader.VAE_FILE)))
        self._vae.throw_exception_if_invalid()

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        values = torch.from_numpy(images).float() / 255
        parts = [self._vae.decode(self._vae.encode(part)) for part in values.split(_AT_ONCE)]
        return (255.0 * torch.cat(parts)).clamp(0, 255).numpy().astype("uint8")


def threshold(real: np.ndarray, defects: Mapping[str, np.ndarray]) -> float:
    """The residual above which an image is broken, from those of real drawings.

    Raises ValueError for a kind of defect that it does not see.
    """
    limit = float(np.quantile(real, 1 - FALSE_ALARMS))
    for name, kind in defects.items():
        if (seen := float((kind > limit).mean())) < SEEN:
            raise ValueError(f"The residual sees {seen:.3f} of {name}; it must see {SEEN} or more.")
    return limit


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CALIBRATION)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    trip, scorer = RoundTrip(), Scorer.load()
    judge = Judge(threshold=float("inf"), tolerance=Tolerance())

    def found(name: str, drawings: Sequence[np.ndarray]) -> np.ndarray:
        path = STORE / "fidelity" / f"{name}.npz"
        images = stored(path, name, len(drawings), lambda: trip(np.stack(drawings)))
        return judge.residuals(images, scorer.read(images)).numpy()

    rng = np.random.default_rng(SEED)
    real = found("real", [draw(sample_uniform_scene(rng), rng) for _ in range(REAL)])
    print(f"{'real drawings':<24} 99th percentile {np.quantile(real, 0.99):.4f}", flush=True)
    defects = {}
    for k, (name, defect) in enumerate(KINDS.items()):
        rng = np.random.default_rng([SEED, k])
        defects[name] = found(name, [defect(sample_uniform_scene(rng), rng) for _ in range(DEFECT)])
        print(f"{name:<24} 5th percentile {np.quantile(defects[name], 1 - SEEN):.4f}", flush=True)
    limit = threshold(real, defects)
    shares = {name: round(float((kind > limit).mean()), 4) for name, kind in (("real", real), *defects.items())}
    calibration = {
        "command": "python -m benchmarks.calibrate_fidelity",
        "threshold": round(limit, 4),
        "tolerance": asdict(judge.tolerance),
        "broken": shares,
    }
    options.out.write_text(json.dumps(calibration, indent=1) + "\n", encoding="utf-8")
    print(f"threshold {limit:.4f}: {shares}")


if __name__ == "__main__":
    main()
