"""The methods, and the hooks through which they reach ComfyUI's models."""
