"""Where things are: the pack, the work folder with everything that set-up makes, and the ComfyUI that set-up chose."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

PACK_NAME = "ComfyUI-Diversity"
# For torch: the demo world's models are so small that threads cost more than they bring.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Places:
    """Paths of one clone of the pack. Everything that set-up writes is below `work`; deleting that is a full reset."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / ".dev"

    @property
    def venv(self) -> Path:
        return self.work / "venv"

    @property
    def python(self) -> Path:
        return self.program("python")

    @property
    def base(self) -> Path:
        """ComfyUI's --base-directory: models, custom_nodes, input, output, user."""
        return self.work / "base"

    @property
    def own_comfyui(self) -> Path:
        """The ComfyUI that set-up unpacks when the machine has none to offer."""
        return self.work / "comfyui"

    @property
    def state(self) -> Path:
        """Written last by a finished set-up: which ComfyUI is used."""
        return self.work / "setup.json"

    @property
    def weights(self) -> Path:
        return self.root / "demo" / "weights"

    @property
    def workflows(self) -> Path:
        return self.root / "workflows"

    @property
    def blueprints(self) -> Path:
        """Subgraphs that ComfyUI lists by itself."""
        return self.root / "subgraphs"

    @property
    def prompts(self) -> Path:
        """For each of the workflows the prompt that the front end sends to run it."""
        return self.root / "demo" / "prompts"

    def program(self, name: str) -> Path:
        """A program of the virtual environment, such as `python` or `pytest`."""
        return self.venv / "Scripts" / f"{name}.exe" if os.name == "nt" else self.venv / "bin" / name

    def comfyui(self) -> Path:
        """The ComfyUI to run: COMFYUI_PATH, else the one that the last set-up chose, else the one it would unpack."""
        if given := os.environ.get("COMFYUI_PATH"):
            return Path(given).expanduser().absolute()
        try:
            return Path(json.loads(self.state.read_text(encoding="utf-8"))["comfyui"])
        except (OSError, ValueError, KeyError, TypeError):
            return self.own_comfyui


HERE = Places(Path(__file__).resolve().parents[1])


def python_environment(comfyui: Path) -> dict[str, str]:
    """The environment variables for a Python that works with this ComfyUI: as ours, less what leads Python astray."""
    unwanted = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")  # without the last a start takes thrice as long
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment["PYTHONUNBUFFERED"] = "1"
    for name, value in ONE_THREAD.items():
        environment.setdefault(name, value)
    if comfyui != HERE.own_comfyui:
        environment["PYTHONPYCACHEPREFIX"] = str(HERE.work / "pycache")  # a tree that is not ours stays as it is
    return environment
