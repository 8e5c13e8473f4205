"""The seam to ComfyUI."""
