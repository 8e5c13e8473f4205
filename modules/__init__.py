"""What the pack computes: torch and einops only, except in `host`, the one folder that touches ComfyUI."""
