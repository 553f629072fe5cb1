"""Train what is not trained yet, in order: `python -m demo.training [NAME ...] [--folder DIR] [--threads N]`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

# In this order: later ones need earlier ones. Each trains what is not trained yet and writes its weight file.
STAGES = {
    "clip": "export.export_clip",
    "scorer": "export.export_scorer",
    "vae": "export.export_vae",
    "latents": "latents.encode_latents",
    "unet": "export.export_unet",
    "mmdit": "export.export_mmdit",
    "clip_text": "export.export_clip_text",
    "unet_places": "export.export_unet_places",
    "mmdit_places": "export.export_mmdit_places",
    "pairs": "distil.make_pairs",
    "clip_vision": "export.export_clip_vision",
    "distilled": "export.export_distilled",
    "crisp_pairs": "crisp.make_pairs",
    "distilled_crisp": "export.export_distilled_crisp",
    "unclip": "export.export_unclip",
    "turbo_text": "export.export_turbo_text",
    "turbo_targets": "turbo_targets.make_targets",
    "turbo_base": "export.export_turbo_base",
    "turbo_pairs": "turbo_distil.make_turbo_pairs",
    "turbo": "export.export_turbo",
    "turbo_crisp_pairs": "turbo_crisp.make_pairs",
    "turbo_crisp": "export.export_turbo_crisp",
    "turbo_led": "export.export_turbo_led",
    "turbo_rare_pairs": "turbo_rare.make_pairs",
    "turbo_rare": "export.export_turbo_rare",
    "turbo_rare_pairs_again": "turbo_rare.make_pairs_again",
    "turbo_rare_again": "export.export_turbo_rare_again",
    "mmdit_runs": "own_steps.make_mmdit_runs",
    "mmdit_own_steps": "export.export_mmdit_own_steps",
    "mmdit_runs_again": "own_steps.make_mmdit_runs_again",
    "mmdit_own_steps_again": "export.export_mmdit_own_steps_again",
    "unet_runs": "own_steps.make_unet_runs",
    "unet_own_steps": "export.export_unet_own_steps",
    "mmdit_rare": "export.export_mmdit_rare",
    "distilled_rare": "export.export_distilled_rare",
    "turbo_rare_more": "export.export_turbo_rare_more",
    "mmdit_rare_more": "export.export_mmdit_rare_more",
    "unet_rare": "export.export_unet_rare",
    "turbo_base_targets": "turbo_targets.make_more_targets",
    "turbo_base_more": "export.export_turbo_base_more",
    "turbo_base_runs": "turbo_base_own.make_runs",
    "turbo_base_own": "export.export_turbo_base_own",
    "turbo_base_runs_again": "turbo_base_own.make_runs_again",
    "turbo_base_own_again": "export.export_turbo_base_own_again",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py train", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="NAME", help=f"any of: {', '.join(STAGES)} (default: all)")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[2] / ".dev" / "training")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: PyTorch's choice)")
    options = parser.parse_args()
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such stage; there are {', '.join(STAGES)}")
    options.folder.mkdir(parents=True, exist_ok=True)

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    for name in options.stages or STAGES:
        module, function = STAGES[name].split(".")
        getattr(importlib.import_module(f".{module}", __package__), function)(options.folder)


if __name__ == "__main__":
    main()
