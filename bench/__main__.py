"""Measure: `python -m bench NAME`, from the project's folder.

Sets up the virtual environment and ComfyUI as scripts/test.py does. Each measurement keeps its rows on disk and goes on
where it was stopped.
"""

import argparse
import importlib
import sys
from pathlib import Path

from scripts import environment

DOCS = environment.ROOT / "docs"
PERFORMANCE = {
    "attention": "time and memory of attention across frames, compared with SDPA of as many pairs",
    "temporal": "time of a temporal module and its parts, compared with a copy of what its attention reads and writes",
    "sample": "time of a guided UNet call of clip models, compared with the image model",
    "solvers": "reconstruction and edits over the UNet calls of each solver",
    "windows": "long clips in context windows: whether their joints show, and memory over frames",
    "tune": "time and memory of a tuning step, compared with Tune-A-Video's",
    "memory": "memory of sampling and tuning over frames, r and resolution, with a plot",
    "cost": "time and memory of EI²'s Table 1, compared with its published figures",
    "options": "compiling, memory layout and optimisers, compared with what is on by itself",
}
ALL = "performance"
EDITS, FAULTS, TIMES = (DOCS / name for name in ("benchmark.md", "reliability.md", "performance.md"))
STATE = environment.ROOT / ".comfyui-data" / "bench"
PAPERS_RATE = 3e-4  # of `papers`
QUICK = {
    "clips_of_kind": 1,
    "seeds": 1,
    "steps": 20,
    "ddim_steps": 6,
    "timed": 1,
    "kinds": ("colour", "shape", "several"),
}


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, says in PERFORMANCE.items():
        part = commands.add_parser(name, help=says, description=f"Measure {says}; writes its section.")
        add_performance(part)
        if name == "memory":
            part.add_argument("--short", action="store_true", help="twelve telling cases, without plot and README")
    add_performance(commands.add_parser(ALL, help=f"{', '.join(PERFORMANCE)}: one after another"))
    add_gpu(
        commands.add_parser("gpu", help="what only a GPU can tell, the most useful parts first, within some minutes")
    )
    add_clips(commands.add_parser("clips", help="real clips, by any SD1.x checkpoint in running ComfyUI servers"))
    add_papers(commands.add_parser("papers", help="the systems and tables of the papers, on drawn or on real clips"))
    add_adapters(commands.add_parser("adapters", help="prompt adapters: their consistency loss and its bounds"))
    add_steady(commands.add_parser("steady", help="Steady Frames: planted flicker, edits per frame, steady edits"))
    add_vote(commands.add_parser("vote", help="a page for a blind vote between the edits that `clips` made"))
    says = "how many steps of a tuning the same quality takes, by the paper's recipe and others"
    add_convergence(commands.add_parser("convergence", help=says))
    add_edit(commands.add_parser("edit", help="every method on drawn clips that the model never saw, and verdicts"))
    add_faults(commands.add_parser("faults", help="interrupts, kills, hostile files and graphs: what the user sees"))
    return parser


def add_outputs(command: argparse.ArgumentParser, document: Path) -> None:
    """Add the options that say where results go."""
    command.add_argument(
        "--document", type=Path, default=document, help=f"default {document.relative_to(environment.ROOT)}"
    )
    command.add_argument("--state", type=Path, default=STATE, help="folder of the rows that are done")


def add_performance(command: argparse.ArgumentParser) -> None:
    """Add what the measurements of time and memory take."""
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: ComfyUI's")
    command.add_argument("--size", type=int, default=0, help="of the latent (default by device: 64 on a GPU)")
    command.add_argument("--frames", type=int, default=0, help="of the clip; of memory the most (default by device)")
    command.add_argument("--rounds", type=int, default=0, help="of each timing (default by device)")
    command.add_argument("--again", action="store_true", help="measure again what is done")
    command.set_defaults(short=False)
    add_outputs(command, TIMES)


def add_gpu(command: argparse.ArgumentParser) -> None:
    """Add what `gpu` takes."""
    command.add_argument("--minutes", type=float, default=8.0, help="time for all parts together (default 8)")
    command.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: small, to output/performance.md"
    )
    command.add_argument("--parts", nargs="+", default=[], help="of: tests, performance parts (default: by worth)")
    command.add_argument("--again", action="store_true", help="start over")
    add_outputs(command, TIMES)


def add_edit(command: argparse.ArgumentParser) -> None:
    """Add what `edit` takes."""
    command.add_argument("--quick", action="store_true", help="some minutes, few clips; to output/benchmark.md")
    command.add_argument("--clips-of-kind", type=int, default=4, help="held-out clips of each kind (default 4)")
    command.add_argument("--tuned-clips", type=int, default=24, help="of all kinds, for methods that tune (default 24)")
    command.add_argument("--kinds", nargs="+", default=(), help="of edits: colour, shape, ... (default all)")
    command.add_argument("--methods", nargs="+", default=(), help="by name (default all)")
    command.add_argument("--seeds", type=int, default=2, help="how many tunings of each clip (default 2)")
    command.add_argument("--steps", type=int, default=100, help="of each tuning (default 100)")
    command.add_argument(
        "--validation", type=int, default=2, help="validation clips of each kind (default 2, 0 = none)"
    )
    command.add_argument("--timed", type=int, default=8, help="clips on which edits are timed, 0 = none (default 8)")
    command.add_argument("--ddim-steps", type=int, default=20, help="of inversion and sampling (default 20)")
    add_outputs(command, EDITS)


def add_faults(command: argparse.ArgumentParser) -> None:
    """Add what `faults` takes."""
    command.add_argument("--quick", action="store_true", help="few tries; to output/reliability.md")
    command.add_argument("--sections", nargs="+", default=(), help="interrupts, kills, files, ... (default all)")
    command.add_argument("--soak", type=int, default=0, metavar="MINUTES", help="also go on for so long (default not)")
    command.add_argument("--again", action="store_true", help="make again what is done")
    add_outputs(command, FAULTS)


def add_convergence(command: argparse.ArgumentParser) -> None:
    """Add what `convergence` takes."""
    parts = (0.125, 0.25, 0.4, 0.5, 1.0)
    command.add_argument(
        "--clips", type=int, default=4, help="drawn validation clips, of the kinds in turn (default 4)"
    )
    command.add_argument("--skip", type=int, default=0, help="so many clips first, on which choices were made")
    command.add_argument("--seeds", type=int, default=3, help="how many tunings of each clip (default 3)")
    for what in ("clips", "seeds"):
        says = f"most {what} for the recipes outside the main comparison (default as --{what})"
        command.add_argument(f"--other-{what}", type=int, help=says)
    command.add_argument("--recipes", nargs="+", default=(), help="by name (default all)")
    command.add_argument("--frames", type=int, default=8, help="of each clip (default 8)")
    command.add_argument("--steps", type=int, default=100, help="of the paper's tuning (default 100)")
    command.add_argument("--rate", type=float, default=1e-4, help="of the paper's tuning (default 0.0001)")
    command.add_argument(
        "--parts", type=float, nargs="+", default=parts, help=f"of the steps to measure after (default {parts})"
    )
    command.add_argument("--pairs", type=int, default=64, help="of noise level and noise, for the loss (default 64)")
    command.add_argument("--ddim-steps", type=int, default=12, help="of inversion and sampling (default 12)")
    command.set_defaults(papers_rate=PAPERS_RATE)
    add_outputs(command, DOCS / "convergence.md")


def add_clips(command: argparse.ArgumentParser) -> None:
    """Add what `clips` takes."""
    command.add_argument("--folder", type=Path, required=True, help="with the videos, in subfolders too")
    command.add_argument("--checkpoint", type=Path, required=True, help='an SD1.x checkpoint, or "demo"')
    command.add_argument("--prompts", type=Path, required=True, help="LOVEU-TGVE's table, as JSON or CSV")
    command.add_argument("--methods", nargs="+", default=[], help="names of methods or systems (default all methods)")
    add_runs(command, steps=500, learning_rate=3e-5, size=512, ddim_steps=50)
    add_outputs(command, environment.ROOT / "output" / "clips.md")


def add_papers(command: argparse.ArgumentParser) -> None:
    """Add what `papers` takes."""
    given = "; without it clips are drawn, for the demo model"
    command.add_argument("--folder", type=Path, help=f"with videos, in subfolders too{given}")
    command.add_argument("--checkpoint", type=Path, help='with --folder: an SD1.x checkpoint, or "demo"')
    command.add_argument("--prompts", type=Path, help="with --folder: LOVEU-TGVE's table, as JSON or CSV")
    command.add_argument("--clips-of-kind", type=int, default=1, help="drawn clips of each kind (default 1)")
    command.add_argument("--kinds", nargs="+", default=(), help="of edits of drawn clips: colour, ... (default all)")
    command.add_argument("--tables", nargs="+", default=[], help="part of the title of each (default all)")
    add_runs(command, steps=100, learning_rate=PAPERS_RATE, size=128, ddim_steps=20)
    add_outputs(command, DOCS / "papers.md")


def add_adapters(command: argparse.ArgumentParser) -> None:
    """Add what `adapters` takes."""
    command.add_argument("--clips-of-kind", type=int, default=1, help="drawn clips of each kind (default 1)")
    command.add_argument("--kinds", nargs="+", default=(), help="of edits: colour, shape, ... (default all)")
    command.add_argument("--steps", type=int, default=60, help="of each tuning (default 60)")
    command.add_argument("--ddim-steps", type=int, default=12, help="of inversion and sampling (default 12)")
    add_outputs(command, DOCS / "adapters.md")


def add_steady(command: argparse.ArgumentParser) -> None:
    """Add what `steady` takes."""
    command.add_argument("--clips-of-kind", type=int, default=1, help="drawn clips of each kind (default 1)")
    command.add_argument("--kinds", nargs="+", default=(), help="of edits: colour, shape, ... (default all)")
    command.add_argument("--ddim-steps", type=int, default=8, help="of the edits per frame (default 8)")
    add_outputs(command, DOCS / "steady.md")


def add_runs(command: argparse.ArgumentParser, steps: int, learning_rate: float, size: int, ddim_steps: int) -> None:
    """Add how edits through servers are worked on and judged."""
    command.add_argument("--frames", type=int, default=8, help="from the start of a real clip (default 8)")
    command.add_argument(
        "--size", type=int, default=size, help=f"side of the central square in pixels (default {size})"
    )
    command.add_argument("--steps", type=int, default=steps, help=f"of the tuning (default {steps})")
    command.add_argument(
        "--learning-rate", type=float, default=learning_rate, help=f"of the tuning (default {learning_rate:g})"
    )
    command.add_argument("--clip-folder", type=Path, help="CLIP model in transformers' form, to measure")
    command.add_argument("--flow", default="variational", help="or a file in models/optical_flow (default variational)")
    command.add_argument("--lpips", default="", help="file in models/lpips")
    command.add_argument("--servers", nargs="+", default=[], help="addresses of ComfyUI servers with this pack")
    command.add_argument("--output", type=Path, default=environment.ROOT / "output" / "clips", help="for the videos")
    command.add_argument(
        "--ddim-steps", type=int, default=ddim_steps, help=f"of inversion and sampling (default {ddim_steps})"
    )


def add_vote(command: argparse.ArgumentParser) -> None:
    """Add what `vote` takes."""
    command.add_argument("--folder", type=Path, required=True, help="with the source videos, in subfolders too")
    command.add_argument("--methods", nargs="+", required=True, help="names of methods, two or more")
    command.add_argument("--output", type=Path, default=environment.ROOT / "output" / "clips", help="of `clips`")
    command.add_argument("--page", type=Path, default=environment.ROOT / "output" / "vote", help="folder to write")
    command.add_argument("--state", type=Path, default=STATE, help="folder of the rows that are done")


def main() -> int:
    """Read the command line, complete the environment and measure."""
    options = make_parser().parse_args()
    if options.command == "edit" and options.quick:
        vars(options).update(QUICK)
    is_small = vars(options).get("quick") or (options.command == "gpu" and options.device == "cpu")
    if is_small and options.document.parent == DOCS:  # not over what was measured in full
        options.document = environment.ROOT / "output" / options.document.name
    environment.stop_on_signals()
    environment.enter("-m", ["bench", *sys.argv[1:]])
    environment.register_pack()
    from consistent_video.scripts.in_process import use_host

    use_host(environment.ROOT / ".comfyui-data" / "in-process", cpu=vars(options).get("device") == "cpu")
    if options.command in ("edit", "convergence"):  # a third faster on a CPU than what ComfyUI takes there
        from comfy.cli_args import args

        args.use_pytorch_cross_attention = True
    status = 0
    for command in PERFORMANCE if options.command == ALL else (options.command,):
        module = importlib.import_module(f"consistent_video.bench.{command}")
        status = getattr(module, f"measure_{command}")(options) or status
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Interrupted; run the same command again to go on.")
