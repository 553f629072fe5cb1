"""The official templates of others, with this pack's nodes in them: which run, which do not, and why.

    python -m benchmarks.official

Every text-to-image template for local models of the installed `comfyui-workflow-templates` is opened in the real front
end (Chromium), which makes its prompt, subgraphs and all. Loaders are replaced by small models of the same family
(tests/small), and a real server runs the prompt as it is, and again with the nodes put where a user would put them.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devtools.base import mount_folder, prepare_base
from devtools.comfy_source import release
from devtools.graph import SAMPLERS, Prompt
from devtools.images import decode
from devtools.places import HERE
from devtools.server import Client, PromptError, Server

from .results import SCRATCH, add_row, read

COMMAND = "python -m benchmarks.official"
BATCH, SIDE, STEPS, SEED = 2, 64, 4, 11
FEW_TOKENS, LONGEST = 8, 400  # characters of a prompt, which are tokens where a small tokenizer knows few words
LEAST_CHANGE = 4  # of a pixel, of 255: less may be rounding
# Files of released models to small families, in this order.
FAMILIES = (
    (r"lotus", ""),  # maps an image to its depth
    (r"flux-2-klein", "FLUX.2 Klein"),
    (r"flux2", "FLUX.2 dev"),
    (r"flux1-schnell", "FLUX.1 schnell"),
    (r"flux1", "FLUX.1 dev"),
    (r"z_image", "Z-Image"),
    (r"krea2", "Krea 2"),
    (r"qwen_image", "Qwen-Image"),
    (r"chroma.*radiance", "Chroma Radiance"),
    (r"chroma", "Chroma"),
    (r"netayume", "Lumina 2"),
    (r"omnigen2", "OmniGen 2"),
    (r"hidream_i1", "HiDream-I1"),
    (r"hidream_o1", "HiDream-O1"),
    (r"ideogram4", "Ideogram 4"),
    (r"ernie", "Ernie"),
    (r"boogu", "Boogu"),
    (r"longcat", "LongCat"),
    (r"capybara", "HunyuanVideo 1.5 (video)"),
    (r"kandinsky5", "Kandinsky 5"),
    (r"mage_flow", "MageFlow"),
    (r"newbie", "NewBie"),
    (r"pixeldit", "PixelDiT"),
    (r"ovis", "Ovis"),
    (r"sd3", "SD3.5"),
    (r"sd_xl_refiner", "SDXL refiner"),
    (r"sd_?xl", "SDXL"),
    (r"anima", "Anima"),
    (r"v2-1_768", "SD2 (v-prediction)"),
    (r"v1-5|dreamshaper|architecturerealmix|interiordesign|awpainting", "SD1.5"),
)
ENCODERS = ("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "QuadrupleCLIPLoader")
# Encode nodes that ours cannot take the place of, and their text: ours stand behind them.
ENCODES = {"CLIPTextEncode": "text", "CLIPTextEncodeFlux": "t5xxl", "TextEncodeMageFlowEdit": "prompt"}
LORAS = ("LoraLoader", "LoraLoaderModelOnly")
SMALL = ("SmallCheckpoint", "SmallModel", "SmallEncoder", "SmallDecoder", "SmallControlNet", "SmallVision")
_POSITIVE = ("positive", "conditioning", "cond1")
_MODEL = "model"
FEW = {"DiversityTPSOOptions": {"steps": 4}, "DiversityMinorityPromptOptions": {"iterations": 2}}  # quick, too


class CannotRun(Exception):
    """A template that cannot be tried here; the message says why."""


# --- templates --------------------------------------------------------------------------------------------------------


def templates() -> dict[str, dict[str, Any]]:
    """Workflows by name: those that the collection's index has for text to image with local models."""
    files = {}
    for package in sorted({one.split("-")[0] for one in _packages()}):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            files |= {path.stem: path for path in Path(folder).glob("templates/*.json")}
    if "index" not in files:
        return {}
    listed = [
        one["name"]
        for category in json.loads(files["index"].read_text(encoding="utf-8"))
        for one in category["templates"]
        if "Text to Image" in one.get("tags", ()) and one.get("openSource") is not False and one["name"] in files
    ]
    return {name: json.loads(files[name].read_text(encoding="utf-8")) for name in dict.fromkeys(listed)}


def _packages() -> list[str]:
    names = (one.metadata["Name"] or "" for one in importlib.metadata.distributions())
    return [name.lower().replace("-", "_") for name in names if name.lower().startswith("comfyui")]


def collection() -> str:
    """The version of the installed collection."""
    return importlib.metadata.version("comfyui-workflow-templates")


# --- small models in place of files -----------------------------------------------------------------------------------


def family_of(file: str) -> str:
    """Raises CannotRun for a file of a family that is not in tests/small."""
    found = next((family for pattern, family in FAMILIES if re.search(pattern, file, re.IGNORECASE)), None)
    if found == "":
        raise CannotRun("it reads no text")
    if found is None:
        raise CannotRun(f"no small model of the family of {file}")
    return found


def with_small_models(prompt: Prompt) -> Prompt:
    """A copy with small models in place of loaders, without LoRAs, and with small and few images in few steps.

    Raises CannotRun where there is none of that family.
    """
    edited = copy.deepcopy(prompt)
    files = [
        node["inputs"].get("unet_name") or node["inputs"]["ckpt_name"]
        for node in edited.values()
        if node["class_type"] in ("UNETLoader", "CheckpointLoaderSimple")
    ]
    if not files:
        raise CannotRun("no loader of a diffusion model that is known here")
    main = family_of(str(files[0]))
    for node in edited.values():
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "CheckpointLoaderSimple":
            node.update(class_type="SmallCheckpoint", inputs={"family": family_of(inputs["ckpt_name"])})
        elif kind == "UNETLoader":
            node.update(class_type="SmallModel", inputs={"family": family_of(inputs["unet_name"])})
        elif kind in ENCODERS:
            node.update(class_type="SmallEncoder", inputs={"family": main})
        elif kind == "VAELoader":
            node.update(class_type="SmallDecoder", inputs={"family": main})
        elif kind == "ControlNetLoader":
            if main != "SD1.5" or "t2iadapter" in inputs["control_net_name"]:
                raise CannotRun(f"no small model of the family of {inputs['control_net_name']}")
            node.update(class_type="SmallControlNet", inputs={"seed": 0})
        elif kind == "CLIPVisionLoader":
            # As wide as the pooled vector that it takes the place of.
            node.update(class_type="SmallVision", inputs={"width": 96})
        elif kind == "LoadImage":
            inputs["image"] = "example.png"
        elif "Loader" in kind and kind not in LORAS and kind not in SMALL:
            raise CannotRun(f"no small model for {kind}")
    for node_id in [node_id for node_id, node in edited.items() if node["class_type"] in LORAS]:
        _bypass(edited, node_id)
    _make_quick(edited)
    return edited


def _bypass(prompt: Prompt, node_id: str) -> None:
    """What read the LoRA's model and text encoder reads the ones that it was put on."""
    inputs = prompt.pop(node_id)["inputs"]
    before = [inputs["model"], inputs.get("clip")]
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if _is_link(value) and value[0] == node_id:
                node["inputs"][name] = before[value[1]]


def _make_quick(prompt: Prompt) -> None:
    sides = [node["inputs"].get(name) for node in prompt.values() for name in ("width", "height")]
    largest = max((side for side in sides if isinstance(side, int)), default=SIDE)
    areas = [node["inputs"] for node in prompt.values() if {"x", "y", "width", "height"} <= node["inputs"].keys()]
    side = 2 * SIDE if areas else SIDE  # ComfyUI has no areas below 64 pixels
    for area in areas:
        _shrink_area(area, side / largest, side)
    steps = [node["inputs"].get("steps") for node in prompt.values()]
    longest = max((count for count in steps if isinstance(count, int)), default=STEPS)
    for node_id in list(prompt):
        inputs = prompt[node_id]["inputs"]
        for name in list(inputs):
            value: Any = None
            if isinstance(inputs[name], str) and len(inputs[name]) > LONGEST:
                value = inputs[name][:LONGEST]
            elif name in ("width", "height") and prompt[node_id]["class_type"] != "SmallVision" and "x" not in inputs:
                value = side
            elif name == "megapixels" and prompt[node_id]["class_type"] != "ResolutionSelector":  # gives a size alone
                value = 0.01
            elif name in ("steps", "batch_size"):
                value = {"steps": STEPS, "batch_size": BATCH}[name]
            elif name == "max_length":
                value = FEW_TOKENS  # of a language model that rewrites the prompt
            elif name in ("start_at_step", "end_at_step") and isinstance(inputs[name], int):
                value = inputs[name] if inputs[name] > 1000 else round(inputs[name] * STEPS / longest)
            elif name in ("seed", "noise_seed"):
                value = SEED
            if value is not None:
                inputs[name] = value  # also where another node gave it


def _shrink_area(inputs: dict[str, Any], scale: float, side: int) -> None:
    """An area of an image of this side, on its grid, and not below ComfyUI's least."""
    for place, size in (("x", "width"), ("y", "height")):
        inputs[size] = min(max(round(inputs[size] * scale / 8) * 8, 64), side)
        inputs[place] = min(round(inputs[place] * scale / 8) * 8, side - inputs[size])


# --- this pack's nodes ------------------------------------------------------------------------------------------------


def _first_sampler(prompt: Prompt) -> str:
    """The one that starts from noise: no other comes before it."""
    samplers = [node_id for node_id, node in prompt.items() if node["class_type"] in SAMPLERS]
    for sampler in samplers:
        if not any(node_id in samplers for node_id in _before(prompt, sampler) if node_id != sampler):
            return sampler
    raise CannotRun("it has no sampler that is known here")


def _before(prompt: Prompt, start: str) -> Iterator[str]:
    """Nodes in the order of their distance, against the flow; `start` is the first."""
    waiting, seen = deque([start]), {start}
    while waiting:
        node_id = waiting.popleft()
        yield node_id
        for value in prompt[node_id]["inputs"].values():
            if _is_link(value) and value[0] in prompt and value[0] not in seen:
                seen.add(value[0])
                waiting.append(value[0])


def _holder(prompt: Prompt, sampler: str, names: Sequence[str]) -> tuple[str, str]:
    """The sampler, or its guider, that has one of these inputs linked, and which."""
    for node_id in _before(prompt, sampler):
        for name in names:
            if _is_link(prompt[node_id]["inputs"].get(name)):
                return node_id, name
    raise CannotRun(f"nothing before the sampler is linked to {' or '.join(names)}")


def _places(prompt: Prompt) -> tuple[str, list[str], list[tuple[str, str]]]:
    """The first positive encode node, and what reads the model of the first sampler's run: its link, and the
    inputs of the sampler or guider."""
    sampler = _first_sampler(prompt)
    holder, name = _holder(prompt, sampler, _POSITIVE)
    texts = (node for node in _before(prompt, prompt[holder]["inputs"][name][0]))
    text = next((node for node in texts if prompt[node]["class_type"] in ENCODES), None)
    if text is None:
        others = {prompt[node]["class_type"] for node in _before(prompt, prompt[holder]["inputs"][name][0])}
        raise CannotRun(
            f"its prompt comes from {', '.join(sorted(one for one in others if 'TextEncode' in one)) or 'nowhere'}"
        )
    reader, own = _holder(prompt, sampler, (_MODEL,))
    return text, prompt[reader]["inputs"][own], [(reader, own)]


def _rewire(prompt: Prompt, source: str, to: list[Any], but: Sequence[str]) -> None:
    for node_id, node in prompt.items():
        for name, value in node["inputs"].items():
            if node_id not in but and _is_link(value) and value == [source, 0]:
                node["inputs"][name] = to


@dataclass(frozen=True)
class _Encode:
    """The encode node of a prompt: its text, its CLIP, and its own link where ours stand behind it."""

    clip: list[Any]
    text: Any
    behind: list[Any] | None


def _with(
    prompt: Prompt,
    nodes: Callable[[list[Any], _Encode], Prompt],
    text: list[Any],
    model: list[Any],
    keeps_text: bool = False,
) -> Prompt:
    """keeps_text: an encode node that ours cannot take the place of goes on giving the prompt."""
    edited = copy.deepcopy(prompt)
    encode, link, readers = _places(edited)
    kind, inputs = edited[encode]["class_type"], edited[encode]["inputs"]
    behind = None if kind == "CLIPTextEncode" else [encode, 0]
    added = nodes(link, _Encode(inputs["clip"], inputs[ENCODES[kind]], behind))
    if behind is None or not keeps_text:
        _rewire(edited, encode, text, ())
    for node_id, name in readers:
        edited[node_id]["inputs"][name] = model
    if behind is None:
        del edited[encode]
    return edited | {node_id: {"_meta": {"title": node_id}, **node} for node_id, node in added.items()}


def with_diversify(prompt: Prompt) -> Prompt:
    """A copy with Diversify in place of the positive CLIP Text Encode, and between model and sampler; Diversify (Model
    Only) where another encode node gives the prompt."""

    def nodes(model: list[Any], encode: _Encode) -> Prompt:
        if encode.behind is not None:
            return {"ours": {"class_type": "DiversityDiversifyModel", "inputs": {"model": model, "strength": 0.5}}}
        inputs = {"model": model, "clip": encode.clip, "text": encode.text, "seed": 0, "strength": 0.5}
        return {"ours": {"class_type": "DiversityDiversify", "inputs": inputs}}

    return _with(prompt, nodes, ["ours", 1], ["ours", 0], keeps_text=True)


def with_prompts_and_noise(prompt: Prompt) -> Prompt:
    """A copy with Diverse Prompts in place of the positive CLIP Text Encode, or Diverse Conditioning behind another
    encode node, and Diverse Noise on the model."""

    def nodes(model: list[Any], encode: _Encode) -> Prompt:
        prompts = {
            "clip": encode.clip, "text": encode.text, "variants": BATCH, "similarity": 0.8, "ratio": 0.4, "seed": 0,
            "options": ["options", 0],
        }  # fmt: skip
        whole = {"negative_text": "", "mode": "recommended"}
        prompts |= whole if encode.behind is None else {"conditioning": encode.behind}
        noise = {"model": model, "strength": 0.5, "iterations": 2, "mode": "recommended"}
        return {
            "options": {"class_type": "DiversityTPSOOptions", "inputs": {}},
            "ours": {
                "class_type": "DiversityTPSO" if encode.behind is None else "DiversityTPSOConditioning",
                "inputs": prompts,
            },
            "noise": {"class_type": "DiversityCNO", "inputs": noise},
        }

    return _with(prompt, nodes, ["ours", 0], ["noise", 0])


def with_minority(prompt: Prompt) -> Prompt:
    """A copy with Minority Prompt in place of the positive CLIP Text Encode, or behind another encode node, and between
    model and sampler."""

    def nodes(model: list[Any], encode: _Encode) -> Prompt:
        inputs = {
            "model": model, "clip": encode.clip, "text": encode.text, "preset": "base model", "strength": 1.0,
            "initial_word": "cool", "objective": "minority", "mode": "recommended",
        }  # fmt: skip
        inputs["options"] = ["options", 0]
        if encode.behind is not None:
            inputs["positive"] = encode.behind
        return {
            "options": {"class_type": "DiversityMinorityPromptOptions", "inputs": {}},
            "ours": {"class_type": "DiversityMinorityPrompt", "inputs": inputs},
        }

    return _with(prompt, nodes, ["ours", 1], ["ours", 0])


PLACED: dict[str, Callable[[Prompt], Prompt]] = {
    "Diversify": with_diversify,
    "Diverse Prompts and Diverse Noise": with_prompts_and_noise,
    "Minority Prompt": with_minority,
}


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


# --- running ----------------------------------------------------------------------------------------------------------


def _images(client: Client, prompt: Prompt) -> list[np.ndarray]:
    """What a sampler has made, and not what a template shows besides (an image to edit, its edges)."""
    result = client.run(prompt)
    shown = sorted((node for node in result.outputs if node in prompt), key=lambda node: (len(node), node))
    made = [node for node in shown if any(prompt[one]["class_type"] in SAMPLERS for one in _before(prompt, node))]
    return [decode(file).astype(int) for node in made for file in client.images(result, node)]


def tried(client: Client, prompt: Prompt, known: Mapping[str, Any]) -> dict[str, str]:
    """What is said of a template for each of `PLACED`."""
    missing = sorted({node["class_type"] for node in prompt.values()} - set(known))
    try:
        if missing:
            raise CannotRun(f"this ComfyUI has no node {', '.join(missing)}")
        small = with_small_models(prompt)
        _places(small)
        plain = _images(client, small)
    except CannotRun as error:
        return dict.fromkeys(PLACED, f"not run: {error}")
    except PromptError as error:
        return dict.fromkeys(PLACED, f"not run: fails without our nodes ({_first_line(error)})")
    return {name: _outcome(client, _completed(place(small), known), plain) for name, place in PLACED.items()}


def _completed(prompt: Prompt, known: Mapping[str, Any]) -> Prompt:
    """With the defaults of the options nodes, but for what makes them quick."""
    for node in prompt.values():
        if node["class_type"] in FEW:
            inputs = known[node["class_type"]]["input"]
            widgets = {**inputs.get("required", {}), **inputs.get("optional", {})}
            defaults = {name: widget[1]["default"] for name, widget in widgets.items()}
            node["inputs"] = {**defaults, **FEW[node["class_type"]]}
    return prompt


def _outcome(client: Client, prompt: Prompt, plain: list[np.ndarray]) -> str:
    try:
        images = _images(client, prompt)
    except PromptError as error:
        line = _first_line(error)
        refused = "failed with ValueError: " in line
        return f"refused: {line.partition('ValueError: ')[2].split('. ')[0]}" if refused else f"fails: {line}"
    pairs = enumerate(zip(images, plain, strict=True))
    same = [k for k, (ours, before) in pairs if ours.shape == before.shape and abs(ours - before).max() < LEAST_CHANGE]
    return "works" if not same else f"fails: images {same} of {len(plain)} are as without it"


def _first_line(error: PromptError) -> str:
    """The first line, and of a prompt that is refused also which input of which node."""
    first, *others = str(error).splitlines()
    return f"{first}: {others[0].strip()}" if "failed validation" in first and others else first


@contextmanager
def small_server() -> Iterator[Client]:
    """A real server with loaders of small models."""
    from PIL import Image

    base = HERE.work / "test-base-official"
    prepare_base(base, HERE.root)
    mount_folder(HERE.root / "tests" / "node_packs" / "small_loaders", base / "custom_nodes" / "small_loaders")
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(base / "input" / "example.png")
    with Server(base=base) as server:
        yield server.client


def prompts_of(client: Client, workflows: Mapping[str, dict[str, Any]]) -> dict[str, Prompt]:
    """What the real front end sends to run each of these workflows. Raises FileNotFoundError where there is no
    Chromium."""
    from devtools.frontend import Frontend

    found = {}
    with Frontend(client.url) as frontend:
        for name, workflow in workflows.items():
            frontend.load(workflow)
            found[name] = frontend.prompt()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    parser.add_argument("--only", default="", help="templates whose name holds this")
    parser.add_argument("--again", action="store_true", help="also those that the file of results has already")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    file = options.out / f"official_{release(HERE.comfyui())}.json"
    done = set() if options.again or not file.exists() else {row["row"] for row in read(file)["rows"]}
    with small_server() as client:
        known = client.object_info()
        wanted = {name: workflow for name, workflow in templates().items() if options.only in name and name not in done}
        for name, prompt in prompts_of(client, wanted).items():
            cells = tried(client, prompt, known)
            print(name, *(f"    {method}: {text}" for method, text in cells.items()), sep="\n", flush=True)
            row = {"row": name, "collection": collection(), "cells": {"template": name, **cells}}
            add_row(file, COMMAND, row)


if __name__ == "__main__":
    main()
