"""What happens at run time: one module a method, which joins its mathematics (`methods`) to ComfyUI (`hooks`)."""
