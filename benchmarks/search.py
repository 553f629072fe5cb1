"""Chooses the settings of every rival and of every method: the same search, as many tries for each.

    python -m benchmarks.search --model distilled                  # all, on the prompts for choosing
    python -m benchmarks.search --model mmdit --only "pink noise" "Diverse Noise"

Successive halving by the quality-weighted Vendi score: eight settings on the first prompts, the better half on more,
the better half of those on all. First CFG, of models that have it; all others from the best CFG. Every image is kept,
so that a stopped search goes on where it was. Writes `frontier_settings.json`: the chosen settings by model and name,
the revision that each was chosen in, and what every try came to.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from statistics import fmean
from typing import Any

from .bench import Bench, hold_revisions, made_as  # isort: skip - this makes ComfyUI and the pack importable

import torch

from . import provenance
from .command import exit_code
from .frontier_rows import BEST_CFG, CFGS, MODELS, Row
from .ours import OURS
from .results import COMMITTED, commit, replace
from .rivals import GUIDED, RIVALS

ROUNDS = (8, 24, 0)  # prompts; 0 is all
IMAGES = 6
_SHOWN = ("good_share", "vendi", "quality_vendi")


def survivors(scores: Sequence[float], count: int) -> list[int]:
    """The places of the `count` best, best first; what failed (NaN) is last."""
    order = sorted(range(len(scores)), key=lambda k: -math.inf if math.isnan(scores[k]) else scores[k], reverse=True)
    return order[:count]


def search(bench: Bench, rows: Sequence[Row], rounds: Sequence[int]) -> tuple[int, list[dict[str, Any]]]:
    """The place of the best row, and the course: for each row its score after the last round that it was in."""
    left, course = list(range(len(rows))), [{} for _ in rows]
    for number, prompts in enumerate(rounds):
        count = min(prompts or len(bench.prompts), len(bench.prompts))
        for k in left:
            found = [bench.prompt_score(rows[k], prompt) for prompt in range(count)]
            course[k] = {
                "settings": rows[k].settings or {"cfg": rows[k].cfg},
                "prompts": count,
                **{
                    name: round(fmean(one[name] for one in found), 4)
                    for name in ("good_share", "vendi", "quality_vendi")
                },
            }
        scores = [course[k]["quality_vendi"] for k in left]
        last = number == len(rounds) - 1
        left = [left[k] for k in survivors(scores, 1 if last else math.ceil(len(left) / 2))]
    return left[0], course


def tries(model: str, name: str, cfg: float) -> list[Row]:
    """What is tried of one rival or method; of CFG the curve."""
    if name == "CFG":
        return [Row(model, "baseline", "CFG", value) for value in CFGS]
    own = {**RIVALS, **OURS}[name]
    role = "rival" if name in RIVALS else "method"
    return [Row(model, role, name, cfg, ((name, settings),)) for settings in own.grid]


def names_of(model: str) -> list[str]:
    every = [name for name, one in {**RIVALS, **OURS}.items() if model in one.models]
    return ["CFG", *every] if model in GUIDED else every


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--only", nargs="*", default=["*"], help='only these rivals and methods, "*" for anything')
    parser.add_argument("--images", type=int, default=IMAGES, help="of each prompt")
    parser.add_argument("--rounds", type=int, nargs="+", default=list(ROUNDS), help="prompts of each round, 0 is all")
    parser.add_argument("--out", type=Path, default=COMMITTED, help="folder of frontier_settings.json")
    options = parser.parse_args(arguments)
    return exit_code(lambda: carry_out(options))


def carry_out(options: argparse.Namespace) -> None:
    """Searches one by one; each is in the file as soon as it is chosen."""
    torch.set_num_threads(1)
    hold_revisions([options.model])
    path = options.out / "frontier_settings.json"
    kept = load(path)
    bench = Bench("tune", max(options.rounds) if all(options.rounds) else 0, options.images)
    own, revisions = (kept[part].setdefault(options.model, {}) for part in ("models", "revisions"))
    if others := of_other_revisions(options.model, own, revisions):
        print(f"{path} has entries of {options.model} of another revision than this: {', '.join(others)}", flush=True)
    cfg = float(own.get("CFG", {}).get("cfg", BEST_CFG[options.model]))
    for name in names_of(options.model):
        if not any(fnmatch(name, wanted) for wanted in options.only):
            continue
        rows = tries(options.model, name, cfg)
        best, course = search(bench, rows, options.rounds)
        own[name] = {"cfg": rows[best].cfg} if name == "CFG" else dict(rows[best].settings[name])
        revisions[name] = present(options.model, name)
        cfg = rows[best].cfg if name == "CFG" else cfg
        label = f"{options.model}, {name}"
        made = {"row": label, "command": command(options), "commit": commit()}
        made |= {"images": options.images, "tries": course}
        kept["rows"] = [*(one for one in kept["rows"] if one["row"] != label), made]
        write(path, kept)
        print(label, own[name], flush=True)


def present(model: str, name: str) -> str:
    """The revision of now that what is tried of a rival or method is of."""
    return provenance.revision(made_as(tries(model, name, BEST_CFG[model])[0]), model)


def of_other_revisions(model: str, names: Iterable[str], revisions: Mapping[str, str]) -> list[str]:
    """Of a file's entries those that were searched in another revision than the present one, with that."""
    now = {name: present(model, name) for name in names_of(model)}
    found = {name: revisions.get(name, "unknown") for name in names}
    return [f"{name} ({revision})" for name, revision in found.items() if revision != now.get(name)]


def load(path: Path) -> dict[str, Any]:
    """What a file holds, or that of a new one. Raises ValueError for one that is damaged."""
    if not path.exists():
        return {"models": {}, "revisions": {}, "rows": []}
    try:
        found = json.loads(path.read_text("utf-8"))
        parts = {"models": found["models"], "revisions": found.get("revisions", {})}
        whole = {part: {model: dict(own) for model, own in by_model.items()} for part, by_model in parts.items()}
        return {**found, **whole, "rows": [{"row": row["row"], **row} for row in found["rows"]]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or delete it and search again.") from error


def command(options: argparse.Namespace) -> str:
    """What makes a row of this search again."""
    rounds = " ".join(map(str, options.rounds))
    return f"python -m benchmarks.search --model {options.model} --rounds {rounds} --images {options.images}"


def write(path: Path, kept: Mapping[str, Any]) -> None:
    whole = {"command": "python -m benchmarks.search --model MODEL", **kept}
    replace(path, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
