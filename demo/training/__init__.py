"""Trains the demo world's models: `python dev.py train`. See `demo/MODEL_CARD.md` for data, steps and seeds."""

from . import comfy_boot as comfy_boot  # before any module here imports ComfyUI's classes
