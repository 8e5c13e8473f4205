"""The real ComfyUI, importable in this process."""

import argparse
import sys
from pathlib import Path

from .environment import comfyui_tree
from .host import device_arguments, prepare_base


def use_host(base: Path, cpu: bool = False) -> argparse.Namespace:
    """Make ComfyUI importable, on the CPU if asked or where there is no accelerator, with a base directory of its own.

    Returns:
        Its arguments, which it heeds as it is imported.

    Raises:
        SetupError: there is no ComfyUI.
    """
    sys.path.insert(0, str(comfyui_tree()))
    import utils.install_util  # noqa: F401  (as main.py does: older nodes.py put another `utils` before it)
    from comfy.cli_args import args

    prepare_base(base)
    args.base_directory = str(base)
    args.cpu = cpu or bool(device_arguments())
    return args
