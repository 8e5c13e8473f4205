"""A few faults of each kind that happens in this process or in the server, and the document of them."""

import argparse
import copy
import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from consistent_video.bench import fault_pressure, fault_probe, fault_runs, fault_soak, fault_twins, faults
from consistent_video.bench.fault_graphs import PACK, try_graphs
from consistent_video.bench.fault_row import Row
from consistent_video.bench.fault_server import kill_writers
from consistent_video.scripts.host import Host


def test_runs_that_are_interrupted_leave_nothing(monkeypatch) -> None:
    rows = list(fault_runs.try_interrupts(6, seed=1))
    assert [row.tried for row in rows] == [1] * 6 + [6] and not [row for row in rows if row.failed]
    monkeypatch.setattr(fault_runs, "leftovers", lambda _: ["hooks"])
    assert fault_runs.interrupt(mock.Mock(), "save", 1) == ["it was not interrupted", "hooks"]


def test_hostile_graphs_are_answered_in_words(host: Host) -> None:
    rows = list(try_graphs(40, seed=2, host=host))
    assert sum(row.tried for row in rows[1:-1]) == 40
    assert not [(row.fault, row.failed) for row in rows if row.failed]


def test_what_is_killed_while_it_writes_leaves_a_whole_file(tmp_path: Path) -> None:
    assert not kill_writers(tmp_path, 5, seed=3).failed


def test_a_full_or_locked_disk_keeps_the_old_file(tmp_path: Path, monkeypatch) -> None:
    rows = list(fault_pressure.try_disks(tmp_path / "a"))
    assert len(rows) == 7 and not [(row.fault, row.failed) for row in rows if row.failed]
    monkeypatch.setattr(fault_pressure, "save_tune", lambda tune, path: save_file(tune.tensors, path))
    assert all(row.failed for row in fault_pressure.try_disks(tmp_path / "b"))
    monkeypatch.setattr(fault_pressure.subprocess, "run", mock.Mock(return_value=mock.Mock(returncode=1, stderr="no")))
    *_, last = fault_pressure.try_disks(tmp_path / "c")
    assert last.tried == 0 and last.seen == "not tried: mounting is not permitted here (no)"


def test_every_output_of_every_node_is_compared(host: Host) -> None:
    infos = copy.deepcopy(host.object_info())
    for kind, saver in fault_twins.LOADED.items():
        for _, options in infos[PACK + kind]["input"]["required"].values():
            options |= {"options": [f"{saver}_1"]} if "options" in options else {}
    kinds = fault_twins.kinds_of(infos)
    assert len(kinds) > 30
    prompt = fault_twins.twin_prompt(infos, 1, kinds)
    for kind in set(kinds) - set(fault_twins.FEEDS):
        for output, socket in zip(infos[PACK + kind]["output_name"], infos[PACK + kind]["output"], strict=True):
            name = f"{kind}.{output}"
            source = prompt[name + fault_twins.SHOWN]["inputs"]["value"][0]
            has_no_bits = socket in ("MODEL", "CLIP", "VAE", "CONTROL_NET", "SAMPLER", "VIDEO")
            assert source == (f"{name} sampled" if has_no_bits else kind)
    links = [value[0] for form in prompt.values() for value in form["inputs"].values() if isinstance(value, list)]
    assert set(links) <= prompt.keys()


@dataclass
class Pair:
    """What a socket may hold."""

    first: Any
    second: Any


def digest(value: Any) -> str:
    whole = hashlib.sha256()
    fault_probe.add_to(whole, value)
    return whole.hexdigest()


def test_a_digest_sees_every_bit() -> None:
    value = {"a": torch.arange(6.0).reshape(2, 3), "b": [1, "x", None, Pair(torch.zeros(2).half(), (2.5, True))]}
    same = {"b": copy.deepcopy(value["b"]), "a": value["a"].clone()}
    assert digest(same) == digest(value)
    for change in (
        {"a": value["a"].nextafter(torch.tensor(9.0))},
        {"a": value["a"].reshape(3, 2)},
        {"a": value["a"].double()},
        {"b": [1, "x", None, Pair(torch.zeros(2).half(), (2.5, False))]},
        {"b": value["b"][:3]},
        {"c": 0},
    ):
        assert digest({**value, **change}) != digest(value)
    with pytest.raises(TypeError, match="has no bits to compare"):
        digest([object()])


def test_tensors_are_counted() -> None:
    def count() -> int:
        return int(fault_probe.CountTensors().execute()["ui"]["text"][0])

    before = count()
    held = list(torch.zeros(100, 1))
    assert count() >= before + len(held)


def test_what_differs_between_twins_is_named(tmp_path: Path, monkeypatch) -> None:
    twin = {f"{kind}.{output}": "1" for kind, output in fault_twins.DRAWING.items()} | {"models/x.safetensors": "2"}
    again = {name: value + "'" for name, value in twin.items()}
    kinds = {PACK + kind: {} for kind in (*fault_twins.DRAWING, "Forgotten", *fault_twins.FEEDS)}
    server = SimpleNamespace(object_info=lambda: kinds)
    monkeypatch.setattr(fault_twins, "serve_probed", lambda base: nullcontext(server))

    def rows(*found: dict[str, str]) -> list[tuple[str, ...]]:
        monkeypatch.setattr(fault_twins, "read_outputs", mock.Mock(side_effect=found))
        return [row.failed for row in fault_twins.try_twins(1)]

    assert rows(twin, dict(twin), again) == [("Forgotten was not run",), ()]
    changed = {**twin, "models/x.safetensors": "3"}
    assert rows(twin, changed, again)[0] == ("models/x.safetensors differs", "Forgotten was not run")
    assert len(rows(twin, dict(twin), dict(twin))[1]) == len(fault_twins.DRAWING)


def soak(monkeypatch, digests: Iterator[str]) -> list[Row]:
    """Run the long run for half a second, in a server that answers at once."""
    outputs = {f"Node.tune{fault_twins.SHOWN}": "", f"Node.report{fault_twins.SHOWN}": ""}
    texts = lambda name: next(digests) if "tune" in name else str(time.monotonic())  # noqa: E731
    answer = SimpleNamespace(outputs=outputs, text=texts)
    server = SimpleNamespace(object_info=dict, run=lambda _: time.sleep(0.002) or answer)
    monkeypatch.setattr(fault_soak, "serve_probed", lambda *_: nullcontext(server))
    monkeypatch.setattr(fault_soak, "twin_prompt", lambda *_: {})
    monkeypatch.setattr(fault_soak, "count_memory", lambda _: (500.0, 1000))
    return list(fault_soak.try_soak(0.5 / 60, 1))


def test_a_long_run_compares_and_counts(monkeypatch) -> None:
    first, second = soak(monkeypatch, itertools.repeat("a"))
    assert first.tried > 20 and len(second.curve) > 20 and not first.failed + second.failed
    assert "500 to 500 resident MiB, +0.0 an hour; 1000 to 1000 tensors" in second.seen
    numbers = itertools.count()
    first, _ = soak(monkeypatch, (str(next(numbers) >= 30) for _ in itertools.count()))
    assert first.failed and "gave something else than at first" in first.failed[0]


def test_memory_that_grows_fails() -> None:
    curve = [(float(minute), 100.0 + 300 * (minute > 2), 1000) for minute in range(20)]  # it settles
    assert fault_soak.describe_growth(curve)[1] == ()
    leaking = [(minute, memory + minute, tensors + 2 * int(minute)) for minute, memory, tensors in curve]
    seen, failed = fault_soak.describe_growth(leaking)
    assert len(failed) == 1 and failed[0].startswith("tensors grew by 2.") and "+60.0 an hour" in seen
    leaking = [(minute, memory + 3 * minute, tensors) for minute, memory, tensors in curve]
    assert fault_soak.describe_growth(leaking)[1][0].startswith("resident MiB grew by")


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        quick=True,
        sections=("numbers",),
        soak=0,
        again=False,
        state=tmp_path / "state",
        document=tmp_path / "reliability.md",
    )


def test_the_document_counts_what_failed_and_nothing_is_made_twice(options, monkeypatch) -> None:
    curve = ((0.0, 500.5, 1000), (1.0, 510.0, 1001))
    made = [Row("a | b", 3, "x" * 300, (), curve), Row("c", 2, "d", ("it is\nleft",))]
    monkeypatch.setattr(faults.Section, "make", lambda *_: iter(made))
    assert faults.measure_faults(options) == 1
    written = options.document.read_text(encoding="utf-8")
    assert "5 faults, 1 failures." in written and "- c: it is left" in written and "a \\| b" in written
    assert "](reliability_memory.png)" in written and options.document.with_name("reliability_memory.png").is_file()
    monkeypatch.setattr(faults.Section, "make", lambda *_: pytest.fail("it is done"))
    faults.measure_faults(options)
    assert options.document.read_text(encoding="utf-8") == written
