"""Workflows that `benchmarks.released` takes and refuses, and where it puts the pack's nodes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.released import BASELINE, Plan, cfg_of, jobs_of, main, markdown, rows_for, run, steps_of
from benchmarks.released_edits import (
    defaults_of,
    encoder_of,
    read_workflow,
    sampler_of,
    with_best_kept,
    with_diversify,
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
    "DiversityCNOOptions": {
        "input": {
            "required": {"window": ["INT", {"default": 16}]},
            "optional": {"pink": ["FLOAT", {"default": 0.0}], "wide": ["FLOAT", {"default": 1.0}]},
        }
    },
    "DiversityDiversify": {"input": {"required": {"seed": ["INT", {"default": 0}]}}},
    "DiversityDiversifyModel": {"input": {"required": {"strength": ["FLOAT", {"default": 0.5}]}}},
    "DiversityKeepBest": {
        "input": {"required": {"keep": ["INT", {"default": 4}], "drop": ["FLOAT", {"default": 0.15}]}}
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


def test_diversify_takes_the_place_of_clip_text_encode_alone() -> None:
    workflow = guided_workflow()
    edited = with_diversify(workflow, SCHEMAS, 1.0)
    own = {"seed": 0, "strength": 1.0, "clip": ["2", 0], "text": "a cat", "model": ["1", 0]}
    assert edited["diversity_DiversityDiversify"]["inputs"] == own
    assert edited["5"]["inputs"] == {"model": ["diversity_DiversityDiversify", 0], "conditioning": ["4", 0]}
    assert edited["4"]["inputs"]["conditioning"] == ["diversity_DiversityDiversify", 1]
    assert workflow == guided_workflow()
    # Another encoder may do more with the text, or have no CLIP to take over.
    with_image = {"class_type": "TextEncodeQwenImageEdit", "inputs": {"clip": ["2", 0], "prompt": "a cat"}}
    without_clip = {"class_type": "Else", "inputs": {"text": "a cat"}}
    for encoder in (with_image, without_clip):
        workflow["3"] = encoder
        edited = with_diversify(workflow, SCHEMAS, 1.0)
        assert edited.pop("diversity_DiversityDiversifyModel")["inputs"] == {"strength": 1.0, "model": ["1", 0]}
        edited["5"]["inputs"]["model"] = ["1", 0]
        assert edited == workflow


def test_the_best_are_kept_of_half_as_many_again_by_the_plain_model() -> None:
    workflow = guided_workflow()
    workflow["latent"] = {"class_type": "EmptyLatentImage", "inputs": {"batch_size": 4}, "_meta": {"title": "empty"}}
    sampler = sampler_of(workflow)
    workflow[sampler]["inputs"]["latent_image"] = ["latent", 0]
    workflow["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": [sampler, 0]}, "_meta": {"title": "decode"}}
    edited = with_diversify(with_best_kept(workflow, SCHEMAS, 4), SCHEMAS, 1.0)
    kept = {"keep": 4, "drop": 0.15, "model": ["1", 0], "positive": ["4", 0], "latent": [sampler, 0]}
    assert edited["diversity_DiversityKeepBest"]["inputs"] == kept
    assert edited["decode"]["inputs"]["samples"] == ["diversity_DiversityKeepBest", 0]
    assert edited["latent"]["inputs"]["batch_size"] == 6
    assert workflow["decode"]["inputs"]["samples"] == [sampler, 0]
    workflow["other"] = {"class_type": "VAEDecode", "inputs": {"samples": [sampler, 1]}, "_meta": {"title": "other"}}
    with pytest.raises(ValueError, match="must have one output that is read"):
        with_best_kept(workflow, SCHEMAS, 4)


def test_what_comes_for_nothing_is_beside_the_nodes() -> None:
    workflow = shipped_prompt("baseline_unet")
    sampler = sampler_of(workflow)
    workflow[sampler]["inputs"]["cfg"] = 7
    edits = rows_for(Plan(), workflow)
    for_nothing = ["CFG 3", "Pink noise 0.5", "Wide noise 2"]
    assert list(edits)[:6] == [BASELINE, *for_nothing, "Diversify, strength 0.5", "Diversify, strength 1"]
    lower = edits["CFG 3"](workflow, SCHEMAS, "", 1)
    assert lower[sampler]["inputs"].pop("cfg") == 3
    assert lower[sampler]["inputs"].items() < workflow[sampler]["inputs"].items()
    assert workflow[sampler]["inputs"]["cfg"] == 7
    for name, options in (("Pink noise 0.5", {"pink": 0.5}), ("Wide noise 2", {"wide": 2.0})):
        edited = edits[name](workflow, SCHEMAS, "", 1)
        node = edited[edited[sampler]["inputs"]["model"][0]]
        assert (node["class_type"], node["inputs"]["strength"]) == ("DiversityCNO", 0)
        assert edited[node["inputs"]["options"][0]]["inputs"] == {"window": 16, **options}
    strengths = [
        edits[f"Diversify, strength {given}"](workflow, SCHEMAS, "", 1)["diversity_DiversityDiversify"]["inputs"]
        for given in ("0.5", "1")
    ]
    assert [inputs["strength"] for inputs in strengths] == [0.5, 1]


def test_without_guidance_there_is_no_lower_cfg() -> None:
    for workflow in (shipped_prompt("baseline_distilled"), guided_workflow()):
        assert cfg_of(workflow) == 1
        assert not any(name.startswith("CFG") for name in rows_for(Plan(), workflow))


def test_by_default_an_hour_is_enough() -> None:
    plan = Plan()
    runs = len(rows_for(plan, shipped_prompt("baseline_unet"))) * len(plan.groups())
    assert runs == 10 * 8 * 2  # as the module's docstring says
    assert 0.7 * 3600 < runs * plan.images * 5 < 0.9 * 3600  # the rest is for what the nodes add


def test_every_group_has_its_prompt_its_seed_and_one_batch() -> None:
    workflow, plan = shipped_prompt("baseline_unet"), Plan(["a", "b"], [3, 4], 5)
    jobs = jobs_of(workflow, rows_for(plan, workflow)["Diversify, strength 1"], plan, SCHEMAS)
    found = []
    for job in jobs:
        sampler = job[sampler_of(job)]["inputs"]
        text = job[sampler["positive"][0]]["inputs"]["text"]
        found.append((text, sampler["seed"], job[sampler["latent_image"][0]]["inputs"]["batch_size"]))
    assert found == [("a", 3, 5), ("a", 4, 5), ("b", 3, 5), ("b", 4, 5)]


def test_a_row_that_cannot_be_made_is_refused_before_anything_runs(tmp_path: Path) -> None:
    class Idle:
        def object_info(self) -> dict[str, Any]:
            return SCHEMAS

    workflow = shipped_prompt("baseline_unet")
    encoder = encoder_of(workflow)
    workflow[encoder] = {"class_type": "Else", "inputs": {"text": "a cat"}, "_meta": {"title": "Else"}}
    options = argparse.Namespace(rows=None, clip="demo", out=tmp_path, workflow=tmp_path)
    idle: Any = Idle()  # which cannot run anything
    with pytest.raises(ValueError, match=r"^Diverse Prompts: No node on the positive side .*--rows"):
        run(workflow, Plan(), idle, options)


def test_a_workflow_without_titles_is_read(tmp_path: Path) -> None:
    workflow = guided_workflow()
    for node in workflow.values():
        del node["_meta"]
    assert cfg_of(read_workflow(write(tmp_path / "old.json", workflow))) == 1


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
    # The first group also waits for the model to load.
    text = markdown({BASELINE: (base, [9.0, 2.0, 2.0]), "some": (moved, [3.0, 3.0, 3.0])})
    # A change that is the same everywhere is certain, however much the groups differ.
    assert "21.000 (+1.000; +1.000 to +1.000)" in text
    assert "0.500 (+0.000; -0.100 to +0.100)" in text
    assert text.endswith("| 1.50 |")
