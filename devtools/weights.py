"""Whether the demo world's weight files are there and whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .errors import SetupError

MANIFEST = "manifest.json"  # file name -> SHA-256, written when the models are exported
REMEDY = "Get it back with `git checkout -- demo/weights`, or train the models again with `python dev.py train`."


def check_weights(folder: Path) -> None:
    """Raises `SetupError` for a weight file of the manifest that is missing or is not the one that was exported."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(digest) for name, digest in manifest.items()}
    except FileNotFoundError:
        raise SetupError(f"The list of the demo's weight files, {folder / MANIFEST}, is missing. {REMEDY}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise SetupError(
            f"The list of the demo's weight files, {folder / MANIFEST}, is damaged ({error}). {REMEDY}"
        ) from None
    if not files:
        raise SetupError(f"The list of the demo's weight files, {folder / MANIFEST}, is empty. {REMEDY}")
    for name, digest in files.items():
        path = folder / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:
            raise SetupError(f"The weight file {path} is missing. {REMEDY}") from None
        except OSError as error:
            raise SetupError(f"The weight file {path} cannot be read: {error.strerror}. {REMEDY}") from None
        if found != digest:
            size = path.stat().st_size
            raise SetupError(f"The weight file {path} ({size} bytes) is damaged: its SHA-256 is wrong. {REMEDY}")
