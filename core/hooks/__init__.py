"""The only place that knows ComfyUI's model objects."""
