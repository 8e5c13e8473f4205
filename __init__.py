"""Consistent Video: text-driven editing of a video clip with text-to-image diffusion models, in ComfyUI."""

WEB_DIRECTORY = "./web"

try:
    import comfy.utils  # noqa: F401  (absent when the maths is used or tested without the host)
except ImportError:
    pass
else:
    from .modules.host import check_host

    check_host()
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
