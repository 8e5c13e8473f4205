"""Say whether the project is ready for a release, a line for each point: `python scripts/release.py --check`.

`python scripts/release.py --address https://github.com/owner/name` fills in the addresses in pyproject.toml. The exit
status of --check is 1 where a point fails. The tests are not run: see test.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import environment

ROOT = environment.ROOT


def build_all() -> tuple[dict, dict]:
    """Return what build_workflows.py and build_locales.py would write, by path."""
    from consistent_video.scripts.descriptions import write_all
    from consistent_video.scripts.host import Host, device_arguments
    from consistent_video.scripts.texts import english

    with tempfile.TemporaryDirectory() as base:
        with Host(environment.comfyui_tree(), Path(base), device_arguments()) as host:
            info, version = host.object_info(), host.version()
    ours = [entry for name, entry in info.items() if name.startswith("ConsistentVideo_")]
    return write_all(info, version), {f"locales/en/{name}": texts for name, texts in english(ours).items()}


def check_all() -> int:
    """Check every point, print a line for each, and return the exit status."""
    from consistent_video.scripts import checklist

    graphs, texts = build_all()
    points: dict[str, Callable[[], str]] = {
        "version": lambda: checklist.check_version(ROOT),
        "date": lambda: checklist.check_date(ROOT),
        "addresses": lambda: checklist.check_addresses(ROOT),
        "tree": lambda: checklist.check_tree(ROOT),
        "workflows": lambda: checklist.check_built(ROOT, graphs, "build_workflows.py"),
        "locales": lambda: checklist.check_built(ROOT, texts, "build_locales.py"),
        "translations": lambda: checklist.check_translations(ROOT),
        "pictures": lambda: checklist.check_pictures(ROOT),
        "archive": lambda: checklist.check_archive(ROOT),
        "metadata": lambda: checklist.check_metadata(ROOT),
        "packages": lambda: checklist.check_packages(ROOT),
    }
    return checklist.report(points, environment.say)


def main() -> int:
    """Read the command line and do what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--check", action="store_true", help="check every point")
    choice.add_argument("--address", metavar="URL", help="of the repository on GitHub")
    options = parser.parse_args()
    environment.enter(__file__, sys.argv[1:])
    environment.register_pack()
    if options.check:
        return check_all()
    from consistent_video.scripts.checklist import fill_addresses

    try:
        fill_addresses(ROOT, options.address)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
