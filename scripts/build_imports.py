"""Draw who imports whom into docs/architecture.md, from the code: `python scripts/build_imports.py`."""

import environment


def main() -> None:
    """Write the graph."""
    environment.enter(__file__, [])
    environment.register_pack()
    from consistent_video.scripts.imports import draw_imports
    from consistent_video.scripts.regions import write_region

    write_region("imports", draw_imports(), environment.ROOT / "docs" / "architecture.md")


if __name__ == "__main__":
    main()
