"""Runs every row of `demo_rows.RUNS` through real ComfyUI servers, measures the images, and shows them.

Writes below demo/output: images and a contact sheet per row, an overview per model, figures.json with one row each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from devtools.errors import SetupError
from devtools.graph import only_for, only_node, shipped_prompt, with_settings, with_values
from devtools.images import decode
from devtools.pack import load_pack
from devtools.places import HERE
from devtools.server import Client, PromptError, Server, ServerError
from devtools.setup import ensure_writable
from devtools.signals import end_in_order

from .demo_rows import RUNS, Run
from .demo_servers import remove_output, servers, side_by_side
from .demo_sheet import Block, caption, contact_sheet, table
from .measure import Group, Judged, figures, judge

load_pack()

from comfyui_diversity.demo.world.prompts import DEMO_PROMPTS  # noqa: E402

if TYPE_CHECKING:
    from comfyui_diversity.demo.scorer import Scorer
    from comfyui_diversity.demo.world.prompts import Prompt

OUTPUT = HERE.root / "demo" / "output"
IMAGES = 5
FIRST_SEED = 1000  # prompt k has seed FIRST_SEED + k in every row
SCRATCH = "diversity_demo"  # the folder below ComfyUI's output that the images pass through
QUICK_EVERY = 4
OVERVIEW_COLUMNS = 5


class RowError(RuntimeError):
    """A row that could not be made: says which, and why."""


@dataclass(frozen=True)
class Plan:
    """What to do: rows, prompts with their seeds, and where to write."""

    runs: Sequence[Run]
    prompts: Sequence[tuple[Prompt, int]]
    output: Path

    @property
    def images(self) -> int:
        return sum(len(self.prompts_of(row)) for row in self.runs) * IMAGES

    def prompts_of(self, row: Run) -> Sequence[tuple[Prompt, int]]:
        return self.prompts[:: row.every]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    end_in_order()
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # else the table would be squeezed into 80 columns of a file
    try:
        plan = make_plan(arguments)
        rows = run(plan, console)
    except KeyboardInterrupt:
        console.print("\nInterrupted; the servers are stopped.")
        return 130
    except (RowError, ValueError, OSError, ServerError, SetupError) as error:
        console.print("\n[bold red]The demo failed.[/]", highlight=False)
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    console.print(table(rows))
    console.print(
        "Means over prompts. adher: images that show all that is stated. fidel: images\n"
        "that are not broken (those get a red mark on the sheets). qual Ven.: Vendi times\n"
        "the share of images that are both. eff.: effective number of values of what a\n"
        "prompt leaves open. Centred MSS: 0 for unrelated images. *: fewer prompts; not to\n"
        "be compared with rows of more. figures.json has a 95 % interval for each.",
        style="dim",
    )
    console.print(f"Figures: {plan.output / 'figures.json'}\nPictures: {plan.output}", highlight=False)
    return 0


def make_plan(arguments: Sequence[str] | None = None) -> Plan:
    """The plan that the command line asks for. Raises ValueError when no row is left."""
    parser = argparse.ArgumentParser(prog="python dev.py demo", description="Make images, measure them, show them.")
    parser.add_argument("--only", metavar="TEXT", default="", help="only rows with TEXT in model/method_cfg")
    parser.add_argument("--quick", action="store_true", help="only every fourth prompt")
    options = parser.parse_args(arguments)

    chosen = [row for row in RUNS if options.only in f"{row.model}/{row.name}"]
    if not chosen:
        names = ", ".join(f"{row.model}/{row.name}" for row in RUNS)
        raise ValueError(f"--only is {options.only!r}; it must be part of one of {names}.")
    prompts = [(prompt, FIRST_SEED + k) for k, prompt in enumerate(DEMO_PROMPTS)]
    if options.quick:
        prompts = prompts[::QUICK_EVERY]
    # Part of the rows, or of the prompts, must not pass for the whole.
    whole = not options.quick and len(chosen) == len(RUNS)
    return Plan(chosen, prompts, OUTPUT if whole else OUTPUT / "partial")


def run(plan: Plan, console: Console) -> list[dict[str, Any]]:
    """Carries a plan out on servers of its own; returns the rows that it wrote to figures.json."""
    names = [f"{row.model}/{row.name}" for row in plan.runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"Rows must differ in model, method, CFG or variant; twice there is {', '.join(twice)}.")
    ensure_writable(plan.output)
    console.print("Starting ComfyUI ...")
    with servers(len(plan.runs)) as running:
        return carry_out(plan, running, console)


def carry_out(plan: Plan, running: Sequence[Server], console: Console) -> list[dict[str, Any]]:
    """Carries a plan out on running servers; returns the rows that it wrote to figures.json."""
    from comfyui_diversity.demo.scorer import Scorer  # takes seconds (torch); the servers come first

    scorer = Scorer.load()
    groups: dict[Run, list[Group]] = {}
    judged: dict[Run, list[Judged]] = {}
    rows: dict[Run, dict[str, Any]] = {}
    plan.output.mkdir(parents=True, exist_ok=True)
    with _progress(console) as progress:
        task = progress.add_task("", total=plan.images)

        def finish(client: Client, row: Run, queued: tuple[list[str], str], check: Callable[[], None]) -> None:
            def advance() -> None:
                check()
                progress.update(task, description=row.title, advance=IMAGES)

            groups[row], seconds = _collected(row, plan, client, *queued, advance)
            judged[row] = judge(groups[row], scorer)
            rows[row] = _figures(row, groups[row], judged[row], seconds, scorer)
            _write_row(plan, row, _block(row.title, rows[row], groups[row], judged[row]), groups[row])
            console.print(f"{row.title:<44} {seconds:4.0f} s", highlight=False)

        try:
            side_by_side(plan.runs, running, lambda client, row: _queued(row, plan, client), finish)
        finally:
            remove_output(running, SCRATCH)
    for model in dict.fromkeys(row.model for row in plan.runs):
        blocks = {
            row: _block(row.title.split("  ·  ", 1)[1], rows[row], groups[row], judged[row])
            for row in plan.runs
            if row.model == model
        }
        overview(plan, blocks).save(plan.output / model / "overview.jpg", quality=92)
    found = [rows[row] for row in plan.runs]
    (plan.output / "figures.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _queued(row: Run, plan: Plan, client: Client) -> tuple[list[str], str]:
    """Puts all prompts of a row into the server's queue; their ids, and the node that saves their images."""
    with _told(row, client):
        whole = with_settings(shipped_prompt(row.template), row.settings)
        save = only_node(whole, ("SaveImage",))
        prompt = only_for(whole, save)  # plots, and the images without Diversify, would be made for nobody
        ids = []
        for wanted, seed in plan.prompts_of(row):
            values: dict[str, Any] = {"seed": seed, "cfg": row.cfg, "steps": row.steps}
            values["batch_size"] = row.made or IMAGES
            values["filename_prefix"] = f"{SCRATCH}/{row.model}_{row.name}_{seed}"
            own = with_settings(prompt, {row.text: wanted.text}) if row.text else prompt
            if not row.text:
                values["text"] = wanted.text
            ids.append(client.queue(with_values(own, values)))
        return ids, save


def _collected(
    row: Run, plan: Plan, client: Client, ids: Sequence[str], save: str, advance: Callable[[], None]
) -> tuple[list[Group], float]:
    """Waits for a row's prompts; the images, and the seconds that the server worked on them."""
    groups, seconds = [], 0.0
    with _told(row, client):
        for (wanted, _), prompt_id in zip(plan.prompts_of(row), ids, strict=True):
            result = client.wait(prompt_id)
            images = np.stack([decode(image) for image in client.images(result, save)])
            if len(images) != IMAGES:
                raise ValueError(f"The workflow made {len(images)} images of {wanted.text!r}, not {IMAGES}.")
            groups.append(Group(wanted, images))
            seconds += result.seconds
            advance()
    return groups, seconds


@contextlib.contextmanager
def _told(row: Run, client: Client) -> Iterator[None]:
    """Errors say which row they are of."""
    try:
        yield
    except (ValueError, OSError, PromptError, ServerError) as error:
        # ComfyUI's traceback is in its log; the first lines say what is wrong.
        reason = "\n".join(str(error).splitlines()[:4])
        told = f"Row {row.model}/{row.name} (workflows/{row.template}.json): {reason}"
        if client.server is not None:
            told += f"\nComfyUI's own words are in {client.server.log_path}."
        raise RowError(told) from error


def _figures(
    row: Run, groups: Sequence[Group], judged: Sequence[Judged], seconds: float, scorer: Scorer
) -> dict[str, Any]:
    return {
        "workflow": row.template,
        "model": row.model,
        "method": row.method,
        "role": row.role,
        "settings": row.settings,
        "cfg": row.cfg,
        "steps": row.steps,
        "prompts": len(groups),
        "images": sum(len(group.images) for group in groups),
        **figures(judged, scorer),
        "seconds": round(seconds, 1),
    }


def _block(title: str, row: dict[str, Any], groups: Sequence[Group], judged: Sequence[Judged]) -> Block:
    broken = [one.broken.tolist() for one in judged]
    return Block(title, caption(row), [group.images for group in groups], broken)


def _write_row(plan: Plan, row: Run, block: Block, groups: Sequence[Group]) -> None:
    folder = plan.output / row.model / row.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for group in groups:
        for k, image in enumerate(group.images):
            Image.fromarray(image).save(folder / image_name(group.prompt.text, k))
    contact_sheet([g.prompt.text for g in groups], [block], IMAGES).save(folder / "sheet.jpg", quality=92)


def image_name(text: str, k: int) -> str:
    """The file of image k of a prompt, below the row's folder."""
    return f"{text.replace(' ', '_')}_{k}.png"


def overview(plan: Plan, blocks: dict[Run, Block]) -> Image.Image:
    """The rows of one model side by side: the same prompts and the same noise under every method. Rows that leave
    prompts out which others have are not shown."""
    shown = [row for row in blocks if row.every == min(one.every for one in blocks)]
    labels = [prompt.text for prompt, _ in plan.prompts_of(shown[0])]
    return contact_sheet(labels, [blocks[row] for row in shown], OVERVIEW_COLUMNS, side=96)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


if __name__ == "__main__":
    sys.exit(main())
