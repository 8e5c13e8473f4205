"""Time and memory are measured, kept and written, at the smallest size."""

import argparse
import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from consistent_video.bench import (
    attention,
    cost,
    memory,
    options,
    performance,
    sample,
    solvers,
    step_parts,
    temporal,
    tune,
    unets,
    windows,
)
from consistent_video.bench.document import TITLES, UNKNOWN, read_sections
from consistent_video.bench.memory_count import Held, Peak, without_values
from consistent_video.modules.clip_model.chunks import apply_in_chunks
from consistent_video.scripts.environment import ROOT

CALLS = {solvers.DDIM: (4,), solvers.MIDPOINT: (3,), solvers.REFINED: (4,), solvers.DDPM: (2,)}
NARROW = {
    **unets.FAMILIES[unets.SD15].unet,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 0],
}
NARROW_SDXL = {
    **unets.FAMILIES[unets.SDXL].unet,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
}
TWO_BLOCKS = {**NARROW, "transformer_depth_middle": -1, "transformer_depth_output": [1, 0, 0, 0]}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Options of a performance benchmark at its smallest, of a narrow UNet."""
    for name, unet in ((unets.SD15, NARROW), (unets.SDXL, NARROW_SDXL)):
        monkeypatch.setitem(unets.FAMILIES, name, replace(unets.FAMILIES[name], unet=unet))
    small = {"WINDOW": 2, "OVERLAP": 1, "KINDS": ("colour",), "STEPS": 2, "CUT": (3, 1)}
    small["KEPT_CLIPS"] = ((8, 4),)
    small["LONG"] = {what: (8, (3, 4)) for what in windows.LONG}
    for name, value in small.items():
        monkeypatch.setattr(windows, name, value)
    for name, value in {"KINDS": ("colour",), "TARGET": 3, "OF_DDIM": 4, "CALLS": CALLS}.items():
        monkeypatch.setattr(solvers, name, value)
    monkeypatch.setattr(memory, "FRAMES", (4,))
    monkeypatch.setattr(memory, "RS", (4,))
    monkeypatch.setattr(memory, "SIZES", (1.0,))
    monkeypatch.setattr(memory, "LARGE_FRAMES", (4,))
    monkeypatch.setattr(memory, "LARGE_SIZES", (1.0,))
    monkeypatch.setattr(memory, "LARGE_WAYS", (memory.SAMPLING, memory.OURS_8_BIT))
    monkeypatch.setattr(memory, "CURVES", {name: memory.CURVES[name] for name in (memory.SAMPLING,)})
    monkeypatch.setattr(tune, "WAYS", {name: tune.WAYS[name] for name in (tune.OURS, tune.SMOOTHED)})
    monkeypatch.setattr(cost, "COMPARED", {name: cost.COMPARED[name] for name in (cost.EI2, cost.CODE)})
    few = {name: options.OPTIONS[name] for name in (options.AS_IT_IS, "AdamW, not fused", "channels-last")}
    monkeypatch.setattr(options, "OPTIONS", few)
    memory.planned_model.cache_clear()
    monkeypatch.setattr(tune, "FULL_SIZE", 8)
    monkeypatch.setattr(tune, "FULL_FRAMES", 4)
    return argparse.Namespace(
        device="auto", size=8, frames=4, rounds=2, again=False, short=False, document=tmp_path / "performance.md",
        state=tmp_path / "state",
    )  # fmt: skip


@pytest.mark.parametrize("part", [attention, temporal, sample, solvers, windows, tune, memory, cost, options])
def test_a_performance_benchmark_writes_its_section_from_its_rows(part, tiny, monkeypatch) -> None:
    name = part.__name__.rsplit(".", 1)[1]
    if part in (tune, memory):  # whose every operation is counted
        monkeypatch.setitem(unets.FAMILIES, unets.SD15, replace(unets.FAMILIES[unets.SD15], unet=TWO_BLOCKS))
    if part is solvers or part is windows:
        tiny.size = 64  # what a GPU takes where none is given; the demo model has its own
    measure, write, texts = getattr(part, f"measure_{name}"), performance.write_section, []

    def note(document: Path, command: str, body: str) -> None:
        texts.append(body)
        write(document, command, body)

    monkeypatch.setattr(performance, "write_section", note)
    measure(tiny)
    written = tiny.document.read_text(encoding="utf-8")
    sections = read_sections(written)
    own = sections.pop(TITLES[name])
    assert set(sections.values()) == {UNKNOWN}
    assert own.startswith(f"Written by `python -m bench {name}`.") and (
        "| target | met |" in own or part in (cost, options)
    )
    assert not re.search(r"\bnan\b|\binf\b|/home|/work|/tmp", own)
    rows = [json.loads(line) for path in tiny.state.iterdir() for line in path.read_text().splitlines()]
    assert part is not memory or {"SD1.5", "SDXL"} == {row["family"] for row in rows}
    assert rows and all(row["frames"] <= 4 and row["size"] <= 16 for row in rows)
    marks = [f"Incomplete: {number} of {len(rows)} cases. " for number in range(1, len(rows))]
    assert [text.startswith(mark) for text, mark in zip(texts, marks, strict=False)] == [True] * len(marks)
    assert len(texts) == len(rows) + 1 and "Incomplete" not in own, "each row is written when it is there"
    assert part not in (solvers, windows) or "4 frames of 16 × 16 latents" in own
    monkeypatch.setattr(performance, "add_row", lambda *_: pytest.fail("what is done is not done again"))
    measure(tiny)
    assert tiny.document.read_text(encoding="utf-8") == written


def test_a_larger_size_is_measured_besides_where_none_is_given(tiny, monkeypatch) -> None:
    asked = {}
    monkeypatch.setattr(tune, "measure_jobs", lambda *given: asked.update({job.name: job.cases for job in given[2]}))
    tiny.device, tiny.size, tiny.frames, tiny.rounds = "cpu", 0, 0, 0
    tune.measure_tune(tiny)
    order, reverse = [tune.OURS, tune.SMOOTHED], [tune.SMOOTHED, tune.OURS]
    assert [(case.size, case.frames, case.round_number, case.way) for case in asked["tune"]] == [
        *((16, 4, number, way) for number in range(4) for way in (order, reverse)[number % 2]),
        *((32, 8, number, way) for number in range(2) for way in (order, reverse)[number % 2]),
    ]
    assert [(case.size, case.frames) for case in asked["tune-parts"]] == [(32, 8)]
    assert [case.way for case in asked["tune-peaks"]] == order, "accounted at one size, whatever is timed"


@dataclass(frozen=True)
class Toy:
    """A case of a job."""

    number: int


def test_a_stopped_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    options = argparse.Namespace(again=False, state=tmp_path / "state", document=tmp_path / "performance.md")
    ran, others = [], performance.Job("toys", [Toy(7)], lambda _: {"found": "kept"})

    def measure(last: int, found: str) -> str:
        def run(case: Toy) -> dict[str, str]:
            if case.number > last:
                raise KeyboardInterrupt
            ran.append(case.number)
            return {"found": f"{found} {case.number}"}

        jobs = [performance.Job("toys", [Toy(0), Toy(1)], run), performance.Job("more-toys", [Toy(2), Toy(3)], run)]
        with suppress(KeyboardInterrupt):
            performance.measure_jobs(
                "tune", options, jobs, lambda *jobs: f"{[[r['found'] for r in of] for of in jobs]}"
            )
        return read_sections(options.document.read_text(encoding="utf-8"))[TITLES["tune"]].split("`. ")[1]

    performance.measure_jobs("sample", options, [others], str)
    assert measure(2, "a") == "Incomplete: 3 of 4 cases. [['a 0', 'a 1'], ['a 2']]"
    assert measure(3, "b") == "[['a 0', 'a 1'], ['a 2', 'b 3']]"
    options.again = True
    assert measure(0, "c") == "Incomplete: 1 of 4 cases. [['c 0'], []]"
    options.again = False
    assert measure(3, "d") == "[['c 0', 'd 1'], ['d 2', 'd 3']]", "what --again has not reached is done again"
    assert ran == [0, 1, 2, 3, 0, 1, 2, 3]
    performance.measure_jobs("sample", options, [replace(others, run=lambda _: pytest.fail("it was kept"))], str)


@pytest.mark.parametrize("part", [tune, cost])
def test_a_way_that_does_not_fit_is_told_and_the_others_are_measured(part, tiny, monkeypatch) -> None:
    tuning, ways = part.tuning, {tune: tune.WAYS, cost: cost.COMPARED}[part]
    large = ways[{tune: tune.SMOOTHED, cost: cost.CODE}[part]]

    @contextmanager
    def scarce(model, way, *given, **more) -> Iterator:
        if way == large:
            raise torch.OutOfMemoryError("CUDA out of memory")
        with tuning(model, way, *given, **more) as made:
            yield made

    monkeypatch.setattr(part, "tuning", scarce)
    getattr(part, {tune: "measure_tune", cost: "measure_cost"}[part])(tiny)
    own = read_sections(tiny.document.read_text(encoding="utf-8"))[TITLES[{tune: "tune", cost: "cost"}[part]]]
    if part is tune:
        assert f"| {tune.SMOOTHED} | out of memory | out of memory |" in own
        assert re.search(rf"\| {re.escape(tune.OURS)} \| [\d.]+ \| [\d.e-]+ \|", own)
    else:
        assert f"| {cost.CODE} | 1 |  | out of memory |" in own
        assert re.search(rf"\| {re.escape(cost.EI2)} \| 2 \| 1 \| [\d.e-]+ \|", own)


def test_an_option_that_fails_is_told_with_its_reason(tiny, monkeypatch) -> None:
    def fail(_unet) -> None:
        raise AssertionError("expected size 4\nand more")

    monkeypatch.setitem(options.OPTIONS, "torch.compile", options.Option(fail))
    monkeypatch.setattr(options, "MEASURED", {"guided UNet call": options.time_sampling})
    options.measure_options(tiny)
    row = next(line for line in tiny.document.read_text(encoding="utf-8").splitlines() if "torch.compile" in line)
    assert row == "| torch.compile | guided UNet call |  | AssertionError: expected size 4 |"


def test_the_prompts_part_is_of_all_operations(tiny, monkeypatch) -> None:
    """A wider text costs keys and values alone: their part is what the calls differ in."""
    monkeypatch.setattr(sample, "FULL_SIZE", 8)
    parts = []
    for width in (64, 128):
        unet = {**TWO_BLOCKS, "context_dim": width}
        monkeypatch.setitem(unets.FAMILIES, unets.SD15, replace(unets.FAMILIES[unets.SD15], unet=unet))
        parts.append(sample.part_of_prompt())
    one, two = (part / (1 - part) for part in parts)
    assert two == pytest.approx(2 * one) and 0 < one < 1
    with without_values(), sample.operations_counter() as counted:
        torch.nn.functional.scaled_dot_product_attention(*(torch.randn(2, 3, n, 7) for n in (5, 11, 11)))
    assert counted.get_total_flops() == 2 * 2 * 2 * 3 * 5 * 11 * 7, "queries by keys, then by values"


def test_the_parts_of_a_step_are_told_apart() -> None:
    weight = torch.nn.Parameter(torch.randn(96, 96))
    optimizer = torch.optim.AdamW([weight])

    def step() -> None:
        x = apply_in_chunks(lambda x: (x @ weight).sin(), torch.ones(4, 8, 96), inner=1, recompute=True)
        x = torch.nn.functional.layer_norm(torch.cat([x, x]), (96,))
        torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()
        optimizer.step()

    step()
    with step_parts.marking_what_is_computed_again():
        shares = step_parts.time_parts(step, torch.device("cpu"))
    assert sum(shares.values()) == pytest.approx(1) and all(share > 0 for share in shares.values())
    assert step_parts.time_parts(step, torch.device("cpu"))[step_parts.AGAIN] == 0, "no one marked it"
    told = {
        ("aten::mm", "aten::linear"): "products, convolutions",
        ("aten::convolution_backward", "ConvolutionBackward0"): "products, convolutions",
        ("aten::bmm", "aten::_scaled_dot_product_attention_math"): "attention",
        ("aten::copy_", "aten::cat"): "cat",
        ("aten::mm", step_parts.AGAIN, "autograd::engine::evaluate_function: SinBackward0"): step_parts.AGAIN,
        ("aten::_fused_adamw_", "Optimizer.step#AdamW.step"): step_parts.OPTIMIZER,
        ("aten::mul",): step_parts.REST,
    }
    assert {names: step_parts.part_of_step(names) for names in told} == told


def test_performance_runs_every_part(monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    command = importlib.import_module("consistent_video.bench.__main__")
    ran = []
    for part in (attention, temporal, sample, solvers, windows, tune, memory, cost, options):
        name = part.__name__.rsplit(".", 1)[1]
        monkeypatch.setattr(part, f"measure_{name}", lambda _, name=name: ran.append(name) or name == "tune")
    for what in ("stop_on_signals", "enter", "register_pack"):
        monkeypatch.setattr(command.environment, what, lambda *_: None)
    monkeypatch.setattr("consistent_video.scripts.in_process.use_host", lambda *_, **__: None)
    monkeypatch.setattr("sys.argv", ["bench", "performance"])
    assert command.main() == 1, "a part's failure is told"
    assert ran == list(command.PERFORMANCE)
    ran.clear()
    monkeypatch.setattr("sys.argv", ["bench", "memory"])
    assert not command.main() and ran == ["memory"]


def test_tune_a_videos_code_takes_more_memory(tiny) -> None:
    ours, code = (tune.tuning_peak("cpu", memory.WAYS[name], 3, 24) for name in (tune.OURS, tune.CODE))
    assert ours < code


def test_fit_planner_is_held_against_what_is_held(tiny) -> None:
    row = memory.run_case(memory.Case("cpu", "chip", "2", memory.OURS_8_BIT, 4, 24, 4))
    assert row["planned"] == pytest.approx(row["bytes"], rel=memory.CLOSE)


def test_accounting_finds_what_a_real_step_holds(tiny, monkeypatch) -> None:
    accounted = tune.tuning_peak("cpu", memory.WAYS[tune.OURS], 3, 16)

    @contextmanager
    def with_values(_device: str) -> Iterator[Peak]:
        with Held() as held:
            yield Peak(held)

    monkeypatch.setattr(tune, "measured_peak", with_values)
    assert tune.tuning_peak("cpu", memory.WAYS[tune.OURS], 3, 16) == pytest.approx(accounted, rel=0.05)


def test_tune_a_videos_code_learns_the_same(tiny) -> None:
    """With the frozen weights in float32 either way, only the kernels differ."""
    base = unets.make_model(torch.float32)
    losses = []
    for way in (tune.Way(tune.TUNE_A_VIDEO_PRESET), memory.WAYS[tune.CODE], memory.WAYS[tune.CODE_DEFAULTS]):
        with tune.tuning(tune.clip_model(base, way), way, 3, 8) as made:
            made.tuner.advance()
            losses.append(made.tuner.losses["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[2] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_short_list_of_memory_is_a_part_of_the_long_one(device: str) -> None:
    setting = performance.Setting(device, "chip", 1, "2", size=64, frames=memory.MOST_FRAMES, rounds=1)
    short, long = memory.list_short(setting), memory.list_cases(setting)
    assert len(short) == 12 and set(short) <= set(long) and len(long) == len(set(long))
    assert {case.what for case in short} == memory.PLANNED.keys(), "Fit Planner predicts each"
    assert (128 in {case.frames for case in long}) == (device == "cuda")


def test_memory_in_short_has_no_plot(tiny, monkeypatch) -> None:
    monkeypatch.setattr(memory, "SHORT", ((memory.SAMPLING, 64, 1.0, 4, unets.SD15),))
    tiny.short = True
    memory.measure_memory(tiny)
    own = read_sections(tiny.document.read_text(encoding="utf-8"))[TITLES["memory"]]
    assert re.search(r"\| SD1.5 \| sampling \| 4 \| 8 \| 4 \| [\d.e-]+ \|", own) and "![" not in own
    assert {path.name for path in tiny.document.parent.iterdir()} == {"state", "performance.md"}
