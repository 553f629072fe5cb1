"""The methods: pure torch and einops. Nothing here imports ComfyUI."""
