"""Any text-to-image workflow, with and without this pack's nodes, on your own ComfyUI and your own models.

    python -m benchmarks.released --workflow my_workflow.json --clip clip_vit_l.safetensors
    python -m benchmarks.released --workflow my_workflow.json --clip clip_vit_l.safetensors --seeds 1 2 3 --images 8

The workflow is one that makes images with your model, saved by Workflow > Export (API). Every row sets the same
prompts, seeds and batch; rows differ by what is put in before the one sampler. Three come for nothing: pink noise, wide
noise, and where the CFG is above 1, one two thirds of the way to 1. The others are the pack's nodes at their defaults,
and Diversify at two strengths.

What it needs: a ComfyUI that has this pack and runs (`--server`); its folder in COMFYUI_PATH, and its Python to run
this; and `--clip`, a CLIP checkpoint with both towers (such as model.safetensors of openai/clip-vit-large-patch14,
1.7 GB). CLIP's vision features give the Vendi score and the mean pairwise similarity, its cosines between image and
prompt, times 100, the CLIP score.

How long it takes: rows x prompts x seeds runs, each of one batch. By default that is 10 x 8 x 2 = 160 runs of 4 images
(9 x 8 x 2 = 144 with a CFG of 1): 640 images, 53 minutes at 5 s each. On top come what the nodes add, which the last
column has (Keep the Best chooses among half as many again), and CLIP on the CPU, 3 s an image on one core and less on
several. Every row's workflows are made before the
first one runs, so that what cannot be made is refused at once.

There is no ground truth here: a broken image counts as well as a sound one, and a CLIP score says little about details.
Intervals are 95 %, by a bootstrap over prompts and seeds, paired: every row has the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from devtools.graph import Prompt, nearest, with_values
from devtools.images import decode
from devtools.pack import load_comfyui, load_pack
from devtools.pages import table
from devtools.places import HERE
from devtools.server import Client, PromptError, ServerError

from .intervals import interval, resampled
from .released_edits import (
    Schemas,
    read_workflow,
    sampler_of,
    with_best_kept,
    with_diversify,
    with_minority,
    with_noise,
    with_prompts,
    with_start,
)
from .released_judge import ClipFile, Judge, demo_judge
from .results import SCRATCH, write

PROMPTS = (
    "a portrait of a woman", "a cat on a sofa", "a street in the rain", "a bowl of fruit", "a house by a lake",
    "a robot in a garden", "a poster for a jazz concert", "two children playing football",
)  # fmt: skip
FIGURES = ("CLIP score", "Vendi", "MSS")
BASELINE = "without"
STRENGTHS = (0.5, 1.0)  # of Diversify
STARTS = {"Pink noise 0.5": {"pink": 0.5}, "Wide noise 2": {"wide": 2.0}}  # of Diverse Noise Options


@dataclass(frozen=True)
class Plan:
    """Which images each row makes: `images` of every prompt with every seed, in one batch."""

    prompts: Sequence[str] = PROMPTS
    seeds: Sequence[int] = (1, 2)
    images: int = 4

    def groups(self) -> list[tuple[str, int]]:
        return [(text, seed) for text in self.prompts for seed in self.seeds]


Edit = Callable[[Prompt, Schemas, str, int], Prompt]  # workflow, schemas, text and seed to the workflow to run


def rows_for(plan: Plan, workflow: Prompt) -> dict[str, Edit]:
    """By name: without the pack, what comes for nothing, Diversify, also with the best kept of more images, each
    method, and the two that go together."""

    def prompts(prompt: Prompt, schemas: Schemas, _text: str, seed: int) -> Prompt:
        return with_prompts(prompt, schemas, plan.images, seed)

    def noise(prompt: Prompt, schemas: Schemas, _text: str, _seed: int) -> Prompt:
        return with_noise(prompt, schemas)

    def start(given: Mapping[str, float]) -> Edit:
        return lambda prompt, schemas, *_: with_start(prompt, schemas, given)

    def diversify(strength: float) -> Edit:
        return lambda prompt, schemas, *_: with_diversify(prompt, schemas, strength)

    cfg, steps = cfg_of(workflow), steps_of(workflow)
    lower = round(1 + (cfg - 1) / 3, 2)
    return {
        BASELINE: lambda prompt, *_: prompt,
        **({f"CFG {lower:g}": lambda prompt, *_: with_values(prompt, {"cfg": lower})} if cfg > 1 else {}),
        **{name: start(given) for name, given in STARTS.items()},
        **{f"Diversify, strength {strength:g}": diversify(strength) for strength in STRENGTHS},
        "Diversify, the best kept": lambda prompt, schemas, *_: with_diversify(
            with_best_kept(prompt, schemas, plan.images), schemas, max(STRENGTHS)
        ),
        "Diverse Prompts": prompts,
        "Diverse Noise": noise,
        "Minority Prompt": lambda prompt, schemas, *_: with_minority(prompt, schemas, steps),
    }


def steps_of(prompt: Prompt) -> int:
    """Sampling steps, for the preset of Minority Prompt; 20 where nothing says so."""
    found = [node["inputs"]["steps"] for node in prompt.values() if isinstance(node["inputs"].get("steps"), int)]
    return min(found, default=20)


def cfg_of(prompt: Prompt) -> float:
    """Its CFG; 1 where nothing says so."""
    try:
        node_id, name = nearest(prompt, sampler_of(prompt), ("cfg",))
    except ValueError:
        return 1.0
    return float(prompt[node_id]["inputs"][name])


def group_figures(images: np.ndarray, text: str, judge: Judge) -> dict[str, float]:
    """`FIGURES` of the images of one prompt."""
    from comfyui_diversity.core.methods.metrics import mean_pairwise_similarity, vendi_score
    from torch.nn import functional as F

    features = judge.images(images)
    cosines = F.cosine_similarity(features, judge.text(text)[None]).clamp(min=0)
    return {
        "CLIP score": 100 * float(cosines.mean()),
        "Vendi": vendi_score(features),
        "MSS": mean_pairwise_similarity(features),
    }


def jobs_of(workflow: Prompt, edit: Edit, plan: Plan, schemas: Schemas) -> list[Prompt]:
    """The workflows of a row, one for each group."""
    found = []
    for text, seed in plan.groups():
        values = {"text": text, "seed": seed, "batch_size": plan.images}
        found.append(edit(with_values(workflow, values), schemas, text, seed))
    return found


def make_row(
    client: Client, jobs: Sequence[Prompt], plan: Plan, judge: Judge
) -> tuple[dict[str, list[float]], list[float]]:
    """The figures of every group, and the seconds that the server worked on it. Raises ValueError for a workflow that
    gives another number of images."""
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    seconds = []
    for (text, _), job in zip(plan.groups(), jobs, strict=True):
        result = client.run(job)
        files = client.images(result)
        if len(files) != plan.images:
            raise ValueError(f"The workflow made {len(files)} images of {text!r}; its batch was to be {plan.images}.")
        for name, value in group_figures(np.stack([decode(file) for file in files]), text, judge).items():
            found[name].append(value)
        seconds.append(result.seconds)
    return found, seconds


def markdown(rows: Mapping[str, tuple[Mapping[str, Sequence[float]], Sequence[float]]]) -> str:
    """The table: means, and for all but the first row the change from it with its interval.

    Times are medians, since the first group of the first row also waits for the model to load."""
    base, base_time = next((found, float(np.median(seconds))) for found, seconds in rows.values())
    body = []
    for name, (found, seconds) in rows.items():
        cells = [name]
        for figure in FIGURES:
            own, other = np.asarray(found[figure]), np.asarray(base[figure])
            text = f"{own.mean():.3f}"
            if found is not base:
                low, high = interval((own - other)[resampled(len(own))].mean(1))
                text += f" ({own.mean() - other.mean():+.3f}; {low:+.3f} to {high:+.3f})"
            cells.append(text)
        body.append([*cells, f"{np.median(seconds) / base_time:.2f}" if base_time else ""])
    return table(["", *FIGURES, "time"], body)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflow", type=Path, required=True, help="in API format (Workflow > Export (API))")
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="a ComfyUI that has this pack")
    parser.add_argument("--prompts", type=Path, help="a text file with a prompt a line; default: eight plain ones")
    parser.add_argument("--seeds", type=int, nargs="+", default=Plan.seeds)
    parser.add_argument("--images", type=int, default=Plan.images, help="of each prompt and seed, in one batch")
    parser.add_argument("--clip", required=True, help='a CLIP checkpoint with both towers, or "demo"')
    parser.add_argument("--rows", nargs="*", help="only these (the first is always made)")
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of released.json")
    options = parser.parse_args(arguments)
    try:
        workflow = read_workflow(options.workflow)
        texts = Plan.prompts
        if options.prompts is not None:
            texts = [line.strip() for line in options.prompts.read_text("utf-8").splitlines() if line.strip()]
        if options.images < 2 or not texts:
            raise ValueError(f"There are {len(texts)} prompts and {options.images} images of each; at least 1 and 2.")
        plan = Plan(texts, options.seeds, options.images)
        print(run(workflow, plan, Client(options.server), options))
    except (ValueError, OSError, PromptError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run(workflow: Prompt, plan: Plan, client: Client, options: argparse.Namespace) -> str:
    """Makes all rows, keeps them in released.json, and gives the table."""
    edits = rows_for(plan, workflow)
    if options.rows:
        unknown = [name for name in options.rows if name not in edits]
        if unknown:
            raise ValueError(f"--rows has {unknown[0]!r}; the rows are {', '.join(edits)}.")
        edits = {name: edit for name, edit in edits.items() if name == BASELINE or name in options.rows}
    schemas = client.object_info()
    jobs: dict[str, list[Prompt]] = {}
    for name, edit in edits.items():
        try:
            jobs[name] = jobs_of(workflow, edit, plan, schemas)
        except ValueError as error:
            raise ValueError(f"{name}: {error} (Rows can be left out by --rows.)") from error
    _ready()
    judge = demo_judge() if options.clip == "demo" else ClipFile(Path(options.clip))
    groups = len(plan.groups())
    size = f"{len(jobs)} rows x {len(plan.prompts)} prompts x {len(plan.seeds)} seeds"
    print(f"{size} = {len(jobs) * groups} runs of {plan.images} images", flush=True)
    rows: dict[str, tuple[dict[str, list[float]], list[float]]] = {}
    for name, own in jobs.items():
        rows[name] = make_row(client, own, plan, judge)
        kept = [{"row": one, "figures": found, "seconds": seconds} for one, (found, seconds) in rows.items()]
        write(options.out / "released.json", f"python -m benchmarks.released --workflow {options.workflow}", kept)
        print(f"{name}: {sum(rows[name][1]):.0f} s", flush=True)
    return f"{len(plan.prompts)} prompts, {plan.images * groups} images a row; no ground truth.\n\n{markdown(rows)}"


def _ready() -> None:
    """Makes ComfyUI and the pack importable: CLIP runs in this process, on the CPU."""
    # `python -m` puts the pack's root on the path, where its `nodes` would hide ComfyUI's.
    sys.path[:] = [entry for entry in sys.path if entry not in ("", str(HERE.root))]
    load_pack()
    load_comfyui()


if __name__ == "__main__":
    sys.exit(main())
