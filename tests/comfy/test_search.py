"""The search keeps what it chose with the revision that it was searched in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import provenance, search
from benchmarks.frontier_rows import Row, chosen
from benchmarks.ours import OURS
from benchmarks.rivals import RIVALS

NAMES = ("pink noise", "first step by the base model", "Diverse Noise")
ROLES = ("rival", "teacher's rival", "method")


class Bench:
    """The last settings are the best."""

    def __init__(self, kind: str, prompts: int, images: int) -> None:
        self.prompts = range(prompts)

    def prompt_score(self, row: Row, k: int) -> dict[str, float]:
        [(name, settings)] = row.parts
        place = list({**RIVALS, **OURS}[name].grid).index(settings)
        return {"good_share": 1.0, "vendi": 1.0 + place, "quality_vendi": 1.0 + place}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(search, "Bench", Bench)
    return tmp_path / "frontier_settings.json"


def run(path: Path, *only: str) -> int:
    return search.main(["--model", "distilled", "--rounds", "1", "2", "--out", str(path.parent), "--only", *only])


def test_what_is_chosen_has_its_revision(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, *NAMES[:2]) == run(path, NAMES[2]) == 0
    found = json.loads(path.read_text())
    now = [provenance.revision(role, "distilled") for role in ROLES]
    assert len(set(now)) == len(ROLES)
    assert found["revisions"] == {"distilled": dict(zip(NAMES, now, strict=True))}
    for name in NAMES:
        best = {**RIVALS, **OURS}[name].grid[-1]
        assert chosen("distilled", name, found["models"]) == best  # as the rows of the frontier read it
    assert [row["row"] for row in found["rows"]] == [f"distilled, {name}" for name in NAMES]
    assert "revision" not in capsys.readouterr().out


def test_entries_of_another_revision_are_named_when_a_search_goes_on(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known: dict[str, Any] = {name: {"alpha": 0.5} for name in ("pink noise", "CADS", "Diverse Noise", "no longer")}
    now, other = provenance.revision("rival", "distilled"), {"turbo": {"pink noise": "theirs"}}
    revisions = {"distilled": {"pink noise": now, "CADS": "older"}, **other}
    models = {"distilled": known, "turbo": {"pink noise": {"alpha": 0.85}}}
    path.write_text(json.dumps({"command": "old", "models": models, "revisions": revisions, "rows": []}))
    assert run(path, "DAVE") == 0
    noted, _ = capsys.readouterr().out.splitlines()
    assert noted.startswith(f"{path} has entries of distilled of another revision than this: ")
    assert noted.endswith(": CADS (older), Diverse Noise (unknown), no longer (unknown)")
    found = json.loads(path.read_text())
    assert found["revisions"] == {"distilled": {**revisions["distilled"], "DAVE": now}, **other}
    assert found["models"].items() >= {"turbo": models["turbo"]}.items()
    assert found["models"]["distilled"].items() >= known.items()


def test_a_file_from_before_there_were_revisions(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(json.dumps({"command": "old", "models": {"distilled": {"CADS": {}}}, "rows": []}))
    assert run(path, "CADS") == 0
    assert "CADS (unknown)" in capsys.readouterr().out
    assert run(path, "CADS") == 0
    assert "another revision" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ['{"models": ', "[]", '{"models": [], "rows": []}', '{"models": {}, "rows": [{}]}'])
def test_a_damaged_file_is_named(text: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(text)
    assert run(path, "CADS") == 1
    assert f"{path} is damaged (" in capsys.readouterr().err
    assert path.read_text() == text
