"""Workflows that `benchmarks.released` takes and refuses, and where it puts the pack's nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.released import (
    BASELINE,
    defaults_of,
    encoder_of,
    main,
    markdown,
    read_workflow,
    sampler_of,
    steps_of,
    with_minority,
    with_noise,
    with_prompts,
)
from devtools.graph import shipped_prompt

SCHEMAS: dict[str, Any] = {
    "DiversityCNO": {"input": {"required": {"model": ["MODEL"], "strength": ["FLOAT", {"default": 0.5}]}}},
    "DiversityTPSO": {
        "input": {
            "required": {
                "clip": ["CLIP"],
                "text": ["STRING", {"multiline": True, "default": ""}],
                "mode": ["COMBO", {"options": ["recommended", "published"]}],
                "kind": [["first", "second"]],
            }
        }
    },
    "DiversityMinorityPrompt": {"input": {"required": {"preset": ["COMBO", {"default": "base model"}]}}},
}


def guided_workflow() -> dict[str, Any]:
    """One as FLUX has them: a guider and a guidance node on the way from the text to SamplerCustomAdvanced."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}

    return {
        "1": node("UNETLoader", unet_name="some"),
        "2": node("CLIPLoader", clip_name="some"),
        "3": node("CLIPTextEncode", text="a cat", clip=["2", 0]),
        "4": node("FluxGuidance", guidance=3.5, conditioning=["3", 0]),
        "5": node("BasicGuider", model=["1", 0], conditioning=["4", 0]),
        "6": node("BasicScheduler", model=["1", 0], steps=4),
        "7": node("SamplerCustomAdvanced", guider=["5", 0], sigmas=["6", 0]),
    }


def write(path: Path, workflow: Any) -> Path:
    path.write_text(json.dumps(workflow))
    return path


def test_nodes_go_before_the_sampler() -> None:
    workflow = shipped_prompt("baseline_mmdit")
    sampler = sampler_of(workflow)
    edited = with_noise(workflow, SCHEMAS)
    new = edited[sampler]["inputs"]["model"][0]
    assert edited[new]["class_type"] == "DiversityCNO"
    assert edited[new]["inputs"] == {"strength": 0.5, "model": workflow[sampler]["inputs"]["model"]}
    varied = with_prompts(workflow, SCHEMAS, 4, 7)
    positive = varied[sampler]["inputs"]["positive"]
    inputs = varied[positive[0]]["inputs"]
    assert (inputs["variants"], inputs["seed"], inputs["mode"], inputs["kind"]) == (4, 7, "recommended", "first")
    assert inputs["text"] == workflow[encoder_of(workflow)]["inputs"]["text"]
    assert varied[sampler]["inputs"]["negative"] == workflow[sampler]["inputs"]["negative"]


def test_nodes_between_the_text_and_the_sampler_stay() -> None:
    workflow = guided_workflow()
    varied = with_prompts(workflow, SCHEMAS, 4, 7)
    assert varied["4"]["inputs"]["conditioning"] == ["diversity_DiversityTPSO", 0]
    assert varied["5"]["inputs"]["conditioning"] == ["4", 0]
    learned = with_minority(workflow, SCHEMAS, steps_of(workflow))
    assert learned["4"]["inputs"]["conditioning"] == ["diversity_DiversityMinorityPrompt", 1]
    assert learned["5"]["inputs"]["model"] == ["diversity_DiversityMinorityPrompt", 0]
    assert learned["diversity_DiversityMinorityPrompt"]["inputs"]["preset"] == "few-step model"
    assert learned["diversity_DiversityMinorityPrompt"]["inputs"]["model"] == ["1", 0]
    assert workflow == guided_workflow()


def test_a_workflow_without_a_sampler_or_with_several_is_refused_by_name(tmp_path: Path) -> None:
    workflow = guided_workflow()
    without = {name: node for name, node in workflow.items() if name != "7"}
    with pytest.raises(ValueError, match=r"has no sampler .*FluxGuidance"):
        read_workflow(write(tmp_path / "none.json", without))
    second = {"class_type": "KSampler", "inputs": {}, "_meta": {"title": "Refine"}}
    with pytest.raises(ValueError, match=r"2 samplers: SamplerCustomAdvanced \(node 7\), Refine \(node 8\)"):
        read_workflow(write(tmp_path / "two.json", {**workflow, "8": second}))
    with pytest.raises(ValueError, match=r"Export \(API\)"):
        read_workflow(write(tmp_path / "ui.json", {"nodes": [], "links": []}))
    with pytest.raises(ValueError, match="no workflow in API format"):
        read_workflow(write(tmp_path / "list.json", [1]))


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = str(write(tmp_path / "own.json", guided_workflow()))
    assert main(["--workflow", str(tmp_path / "gone.json"), "--clip", "demo"]) == 1
    assert "gone.json, which cannot be read" in capsys.readouterr().err
    assert main(["--workflow", own, "--clip", "demo", "--images", "1"]) == 1
    assert "1 images of each" in capsys.readouterr().err
    assert main(["--workflow", own, "--clip", "demo", "--server", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert main(["--workflow", own, "--clip", "demo", "--rows", "Else"]) == 1
    assert "--rows has 'Else'" in capsys.readouterr().err


def test_a_server_without_the_pack_is_told_so() -> None:
    with pytest.raises(ValueError, match="no DiversityCNO: install"):
        defaults_of({}, "DiversityCNO")


def test_changes_are_taken_group_by_group() -> None:
    base = {"CLIP score": [10.0, 30.0], "Vendi": [1.0, 3.0], "MSS": [0.5, 0.5]}
    moved = {"CLIP score": [11.0, 31.0], "Vendi": [1.5, 3.5], "MSS": [0.4, 0.6]}
    text = markdown({BASELINE: (base, 2.0), "some": (moved, 3.0)})
    # A change that is the same everywhere is certain, however much the groups differ.
    assert "21.000 (+1.000; +1.000 to +1.000)" in text
    assert "0.500 (+0.000; -0.100 to +0.100)" in text
    assert text.endswith("| 1.50 |")
