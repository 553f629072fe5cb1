"""Tests in this folder use real ComfyUI objects in this process."""

from __future__ import annotations

from devtools.pack import load_comfyui

# Test modules import ComfyUI at their top, before any fixture runs.
load_comfyui()
