"""Measure: `python -m bench norms` or `inr`, from the project's folder.

Sets up the virtual environment and ComfyUI as scripts/test.py does. Each measurement keeps its rows on disk and goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scripts import environment

DOCS = environment.ROOT / "docs"
COMMANDS = {
    "norms": "EI²'s Figure 4: each norm of the temporal module, with an edit each",
    "inr": "INR Smooth: directions and weights in the inversion (its Figure 11), the relation at sampling",
}
STATE = environment.ROOT / ".comfyui-data" / "bench"


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, says in COMMANDS.items():
        command = commands.add_parser(name, help=says)
        command.add_argument("--clips", nargs="+", default=["red_circle", "yellow_star"], help="of demo/clips")
        command.add_argument("--seeds", type=int, default=1, help="how many tunings of each (default 1)")
        command.add_argument("--steps", type=int, default=200, help="of the tuning (default 200)")
        command.add_argument("--ddim-steps", type=int, default=50, help="of inversion and sampling (default 50)")
        command.add_argument("--document", type=Path, default=DOCS / f"{name}.md", help=f"default docs/{name}.md")
        command.add_argument("--json", type=Path, help="file for every row")
        command.add_argument("--state", type=Path, default=STATE, help="folder of the rows that are done")
    return parser


def main() -> int:
    """Read the command line, complete the environment and measure."""
    options = make_parser().parse_args()
    environment.stop_on_signals()
    environment.enter("-m", ["bench", *sys.argv[1:]])
    environment.register_pack()
    from consistent_video.scripts.in_process import use_host

    use_host(environment.ROOT / ".comfyui-data" / "in-process")
    if options.command == "norms":
        from consistent_video.bench.norms import measure_norms

        measure_norms(options)
    else:
        from consistent_video.bench.inr import measure_inr

        measure_inr(options)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted; run the same command again to go on.")
