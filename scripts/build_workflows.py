"""Write workflows/*.json and subgraphs/*.json from the descriptions: `python scripts/build_workflows.py`.

What sockets and widgets a node has, the running ComfyUI says.
"""

import json
import tempfile
from pathlib import Path

import environment


def main() -> None:
    """Write every workflow and blueprint."""
    environment.enter(__file__, [])
    environment.register_pack()
    from consistent_video.scripts.descriptions import write_all
    from consistent_video.scripts.host import Host, device_arguments

    with (
        tempfile.TemporaryDirectory() as base,
        Host(environment.comfyui_tree(), Path(base), device_arguments()) as host,
    ):
        info, version = host.object_info(), host.version()
    for name, form in write_all(info, version).items():
        path = environment.ROOT / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(form, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
