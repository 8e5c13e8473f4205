"""Write locales/en and the table of docs/models.md from the code: `python scripts/build_locales.py`.

The other languages are written by hand; a test says what they lack.
"""

import json

import environment


def main() -> None:
    """Write the English files and the table."""
    environment.enter(__file__, [])
    environment.register_pack()
    from consistent_video.scripts.in_process import use_host
    from consistent_video.scripts.regions import write_region
    from consistent_video.scripts.texts import LOCALES, MODELS, english, families_table

    use_host(environment.ROOT / ".comfyui-data" / "in-process")
    from consistent_video.modules.clip_model.host.family import FAMILIES
    from consistent_video.modules.files.host import register_folder
    from consistent_video.nodes import NODES

    register_folder()
    folder = LOCALES / "en"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in english([node.GET_NODE_INFO_V1() for node in NODES]).items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    write_region("families", families_table(FAMILIES), MODELS)


if __name__ == "__main__":
    main()
