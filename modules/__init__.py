"""What the pack does, by subject: torch alone, except in files and folders called `host`, which touch ComfyUI."""
