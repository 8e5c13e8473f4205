"""`python -m bench gpu`: what a GPU is asked, in the order of its worth, is kept and goes on."""

import argparse
import importlib
import sys
import time
from pathlib import Path

import comfy.model_management
import pytest

from consistent_video.bench import gpu
from consistent_video.bench.document import TITLES, read_sections
from consistent_video.scripts.environment import ROOT

GOOD, BAD, SLOW = (
    [sys.executable, "-c", code]
    for code in ("print('3 passed')", "1 / 0", "print('it began'); import time; time.sleep(60)")
)


@pytest.fixture
def asked(tmp_path: Path) -> argparse.Namespace:
    """Options of a run on this machine."""
    device = comfy.model_management.get_torch_device().type
    return argparse.Namespace(
        device=device, minutes=1, parts=[], again=False, state=tmp_path / "state", document=tmp_path / "performance.md"
    )


def rows_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the cells of the table by part."""
    own = read_sections(options.document.read_text(encoding="utf-8"))[TITLES["gpu"]]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in own.splitlines() if line.startswith("|")]
    assert cells[0] == ["part", "result", "seconds", "last line"]
    return {part: its for part, *its in cells[2:]}


def test_what_a_gpu_is_asked_is_kept_and_goes_on(asked, monkeypatch, capfd) -> None:
    """Parts end well, fail, run out of time or are not reached; only the first is not done again."""
    commands = {"tests": GOOD, "cost": BAD, "memory": SLOW}
    monkeypatch.setattr(gpu, "command_of", lambda part, *_: commands[part])
    asked.minutes = 4 / 60
    assert gpu.measure_gpu(asked) == 1
    rows = rows_of(asked)
    assert rows["tests"][::2] == ["done", "3 passed"] and rows["memory"][0] == gpu.OUT_OF_TIME
    assert rows["cost"][::2] == ["failed (1)", "ZeroDivisionError: division by zero"]
    assert rows["attention"] == ["not begun", "0", ""] and list(rows) == list(gpu.PARTS)
    printed = capfd.readouterr().out
    assert "ZeroDivisionError" in printed and "it began" in printed, "also what a stopped part printed"
    (path,) = asked.state.glob("gpu-*.json")
    assert gpu.load_ended(path)["memory"].tail == ["it began"]
    commands |= {"tests": SLOW, "cost": GOOD, "memory": GOOD}
    asked.parts, asked.minutes = ["tests", "cost", "memory"], 1
    assert gpu.measure_gpu(asked) == 0, "what was done is not done again, the others are"
    assert {part: its[0] for part, its in rows_of(asked).items() if its[0] != "not begun"} == dict.fromkeys(
        asked.parts, "done"
    )
    asked.parts = ["coffee"]
    with pytest.raises(SystemExit, match="--parts coffee"):
        gpu.measure_gpu(asked)


def test_what_a_part_prints_is_shown_at_once(monkeypatch) -> None:
    code = "import time; print('first'); time.sleep(1); print('last')"
    said = []
    monkeypatch.setattr(gpu, "say", lambda line: said.append((line, time.monotonic())))
    ended = gpu.run_part([sys.executable, "-c", code], 20)
    assert [line for line, _ in said] == ended.tail == ["first", "last"] and ended.how == "done"
    assert said[1][1] - said[0][1] > 0.8


def test_another_card_or_pytorch_is_asked_again(asked, monkeypatch) -> None:
    ran = []
    monkeypatch.setattr(gpu, "run_part", lambda command, _: ran.append(command[-1]) or gpu.Ended("done"))
    monkeypatch.setattr(gpu, "command_of", lambda part, *_: [part])
    asked.parts = ["cost"]
    for chip, pytorch in (("H200", "2.11"), ("L4 / 24 GB", "2.11"), ("H200", "2.12"), ("H200", "2.11")):
        monkeypatch.setattr(gpu, "read_chip", lambda _, chip=chip: chip)
        monkeypatch.setattr(gpu.torch, "__version__", pytorch)
        gpu.measure_gpu(asked)
    assert ran == ["cost"] * 3 and len(list(asked.state.iterdir())) == 3


def test_what_is_to_be_done_again_stays_so_until_it_is(asked, monkeypatch) -> None:
    """Also where the time is up before it, and only once."""
    ran = []

    def run(command: list[str], _seconds: float) -> gpu.Ended:
        ran.append((command[command.index("bench") + 1], "--again" in command))
        return gpu.Ended("done")

    monkeypatch.setattr(gpu, "run_part", run)
    asked.parts = ["cost", "memory"]
    gpu.measure_gpu(asked)
    asked.again, asked.minutes = True, 0
    gpu.measure_gpu(asked)
    assert [rows_of(asked)[part][0] for part in asked.parts] == [gpu.AGAIN] * 2
    asked.again, asked.minutes = False, 1
    for _ in range(2):
        gpu.measure_gpu(asked)
    assert ran == [("cost", False), ("memory", False), ("cost", True), ("memory", True)]


def test_a_part_that_is_killed_with_all_of_it_goes_on(asked, monkeypatch) -> None:
    """The state says so, and no longer that it is to begin again."""
    ran = []

    def run(command: list[str], _seconds: float) -> gpu.Ended:
        ran.append("--again" in command)
        if len(ran) == 1:
            raise SystemExit
        return gpu.Ended("done")

    monkeypatch.setattr(gpu, "run_part", run)
    asked.parts, asked.again = ["cost"], True
    with pytest.raises(SystemExit):
        gpu.measure_gpu(asked)
    asked.again = False
    gpu.measure_gpu(asked)
    assert ran == [True, False]


@pytest.fixture
def command(monkeypatch):
    """The module of the command line, as where it is started, without what it would set up."""
    with monkeypatch.context() as paths:  # not for longer: ComfyUI's nodes would be ours
        paths.syspath_prepend(ROOT)
        module = importlib.import_module("consistent_video.bench.__main__")
    for what in ("stop_on_signals", "enter", "register_pack"):
        monkeypatch.setattr(module.environment, what, lambda *_: None)
    monkeypatch.setattr("consistent_video.scripts.in_process.use_host", lambda *_, **__: None)
    return module


@pytest.mark.parametrize("again", [False, True])
def test_the_parts_of_gpu_are_commands_that_there_are(command, again: bool) -> None:
    options = argparse.Namespace(device="cpu", state=Path("state"), document=Path("performance.md"))
    for part in set(gpu.PARTS) - {gpu.TESTS}:
        parsed = command.make_parser().parse_args(gpu.command_of(part, options, again)[3:])
        assert (parsed.command, parsed.device, parsed.size) == (part, "cpu", gpu.SMALL["size"])
        assert (parsed.short, parsed.again) == (part == "memory", again)


@pytest.mark.parametrize(
    ("given", "document"),
    [
        (["gpu"], "docs/performance.md"),
        (["gpu", "--device", "cpu"], "output/performance.md"),
        (["gpu", "--device", "cpu", "--document", "mine.md"], "mine.md"),
        (["edit", "--quick"], "output/benchmark.md"),
        (["edit"], "docs/benchmark.md"),
        (["faults", "--quick"], "output/reliability.md"),
    ],
)
def test_a_small_form_does_not_write_over_what_was_measured_in_full(
    given: list[str], document: str, command, monkeypatch
) -> None:
    written = []
    module = importlib.import_module(f"consistent_video.bench.{given[0]}")
    monkeypatch.setattr(module, f"measure_{given[0]}", lambda options: written.append(options.document))
    monkeypatch.setattr("sys.argv", ["bench", *given])
    command.main()
    assert written == [Path(document) if document == "mine.md" else ROOT / document]
