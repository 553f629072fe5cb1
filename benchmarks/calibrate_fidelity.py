"""From where on an image is broken: writes `demo/fidelity.json`.

    python -m benchmarks.calibrate_fidelity

Real drawings and drawings with every kind of defect go through the demo's own autoencoder, as every image of a model
does. The threshold is the most tolerant one that still sees each kind: the largest that no more than 1 in 25 of any
kind of defect passes, but not less than the 99th percentile of real drawings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
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

SEED, REAL, DEFECT = 101, 300, 80
MISSED, FALSE_ALARMS = 0.04, 0.01
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


def threshold(real: np.ndarray, defects: Sequence[np.ndarray]) -> float:
    """The residual above which an image is broken, from those of real drawings and of each kind of defect.

    Raises ValueError if no threshold tells them apart.
    """
    least, most = np.quantile(real, 1 - FALSE_ALARMS), min(np.quantile(kind, MISSED) for kind in defects)
    if most < least:
        raise ValueError(
            f"real drawings reach {least:.3f}, and a kind of defect begins at {most:.3f}: no threshold fits."
        )
    return float(most)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CALIBRATION)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    trip, scorer, rng = RoundTrip(), Scorer.load(), np.random.default_rng(SEED)
    judge = Judge(threshold=float("inf"), tolerance=Tolerance())

    def found(name: str, drawings: Sequence[np.ndarray]) -> np.ndarray:
        path = STORE / "fidelity" / f"{name}.npz"
        images = stored(path, name, len(drawings), lambda: trip(np.stack(drawings)))
        return judge.residuals(images, scorer.read(images)).numpy()

    scenes = [sample_uniform_scene(rng) for _ in range(REAL)]
    real = found("real", [draw(scene, rng) for scene in scenes])
    print(f"{'real drawings':<24} 99th percentile {np.quantile(real, 0.99):.4f}", flush=True)
    defects = {}
    for name, defect in DEFECTS.items():
        defects[name] = found(name, [defect(sample_uniform_scene(rng), rng) for _ in range(DEFECT)])
        print(f"{name:<24} 4th percentile {np.quantile(defects[name], MISSED):.4f}", flush=True)
    limit = threshold(real, list(defects.values()))
    shares = {name: round(float((kind > limit).mean()), 4) for name, kind in (("real", real), *defects.items())}
    calibration = {
        "command": "python -m benchmarks.calibrate_fidelity",
        "threshold": round(limit, 4),
        "tolerance": asdict(judge.tolerance),
        "real_99th_percentile": round(float(np.quantile(real, 0.99)), 4),
        "broken": shares,
    }
    options.out.write_text(json.dumps(calibration, indent=1) + "\n", encoding="utf-8")
    print(f"threshold {limit:.4f}: {shares}")


if __name__ == "__main__":
    main()
