"""Write workflows/*.json, in the editor's form, from the descriptions: `python scripts/build_workflows.py`.

What sockets and widgets a node has, the running ComfyUI says.
"""

import json
import tempfile
from pathlib import Path

import environment

WORKFLOWS = environment.ROOT / "workflows"


def main() -> None:
    """Write every workflow."""
    environment.enter(__file__, [])
    environment.register_pack()
    from consistent_video.scripts.descriptions import workflows
    from consistent_video.scripts.graph import build
    from consistent_video.scripts.host import Host, device_arguments

    with (
        tempfile.TemporaryDirectory() as base,
        Host(environment.comfyui_tree(), Path(base), device_arguments()) as host,
    ):
        info, version = host.object_info(), host.version()
    WORKFLOWS.mkdir(exist_ok=True)
    for name, groups in workflows().items():
        text = json.dumps(build(groups, info, version), indent=1, ensure_ascii=False)
        (WORKFLOWS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
