"""What the pack does, by subject: no ComfyUI, except in files and folders called `host`."""
