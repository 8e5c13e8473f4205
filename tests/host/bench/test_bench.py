"""The measurements run, keep their rows and write their documents, at the smallest size."""

import argparse
import importlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from consistent_video.bench import (
    attention,
    attention_scaling,
    edit,
    edit_cost,
    edit_document,
    memory,
    methods,
    sample,
    sd15,
    temporal,
    tune,
)
from consistent_video.bench.document import TITLES, UNKNOWN, read_sections
from consistent_video.bench.memory_count import Held, Peak
from consistent_video.bench.tasks import KINDS, draw_task
from consistent_video.bench.world import World
from consistent_video.scripts.environment import ROOT

FIRST = {name: value for choice in methods.CHOICES for name, value in zip(choice.names, choice.values[0], strict=True)}
TAKEN = FIRST | methods.CHOSEN  # where nothing is chosen by measurement
UNSTEADY = methods.gamma_row("both", 0.5)  # in the stand-in table less steady than gamma 1


@pytest.fixture
def editing(tmp_path: Path) -> argparse.Namespace:
    """Options of the smallest measurement of edits: one clip, few steps."""
    return argparse.Namespace(
        quick=True, clips_of_kind=1, kinds=("colour",), methods=(), seeds=2, validation=1, steps=2, ddim_steps=2,
        timed=1, state=tmp_path / "state", document=tmp_path / "benchmark.md", json=tmp_path / "edit.json",
    )  # fmt: skip


def test_edits_are_measured_kept_and_written(editing, monkeypatch) -> None:
    names = (methods.REFERENCE, methods.FFAM, methods.EI2, methods.MOTION)
    for module in (edit, edit_cost):
        monkeypatch.setattr(module, "METHODS", {name: methods.METHODS[name] for name in names})
    brief: dict[str, str] = {}
    for module in (edit, edit_document):
        monkeypatch.setattr(module, "PUBLISHED", editing.document)
    monkeypatch.setattr(edit, "PUBLISHED_ROWS", editing.document.with_suffix(".jsonl"))
    for steps in ("DDIM_STEPS", "TUNING_STEPS", "COUNTED_TUNING_STEPS"):
        monkeypatch.setattr(edit_cost, steps, 1)
    monkeypatch.setattr(edit_document, "write_region", brief.__setitem__)
    edit.measure_edit(editing)
    assert "| 1 do nothing | 0 |" in brief["benchmark"] and "- Undecided: INR Smooth" in brief["benchmark"]
    rows = json.loads(editing.json.read_text())["rows"]
    drawn = [(row["method"], row["seed"]) for row in rows]
    assert len(set(drawn)) == len(drawn)
    once = {methods.DO_NOTHING, methods.AS_DRAWN, methods.REFERENCE, methods.FFAM}
    assert {name for name, seed in drawn if seed == 1} == {methods.EI2, methods.MOTION}
    assert {name for name, seed in drawn if seed == 0} == once | {methods.EI2, methods.MOTION}
    by_name = {row["method"]: row for row in rows if row["seed"] == 0}
    nothing, right = by_name[methods.DO_NOTHING], by_name[methods.AS_DRAWN]
    assert nothing["obeyed"] == 0 and nothing["background"] == 100 and nothing["cost"] is None
    assert right["obeyed"] > 0.85 and right["motion_error"] < 1
    assert by_name[methods.REFERENCE]["cost"] == 1 and by_name[methods.REFERENCE]["tuning_cost"] is None
    assert by_name[methods.EI2]["tuning_cost"] == pytest.approx(by_name[methods.MOTION]["tuning_cost"]), "tuned once"
    assert by_name[methods.EI2]["memory"] > by_name[methods.REFERENCE]["memory"] > 0, "tuning takes memory"
    assert by_name[methods.FFAM]["reconstruction"] > 15 and by_name[methods.FFAM]["mean_shift"] is None
    assert by_name[methods.EI2]["mean_shift"] > 0 and nothing["reconstruction"] is None
    moved = by_name[methods.MOTION]
    assert (moved["passes"], moved["end"]) == (TAKEN["passes"], TAKEN["end"]) and moved["denoise"] == methods.MATCHED
    written = editing.document.read_text(encoding="utf-8")
    assert "- **(d) Undecided.** INR Smooth" in written and "| 1 do nothing | 0 |" in written
    assert "Nothing was chosen by measurement" in written
    for name in ("benchmark.png", "benchmark_colour.webp"):
        assert name in written and (editing.document.parent / name).stat().st_size > 1000
    monkeypatch.setattr(edit, "Bench", lambda *_: pytest.fail("what is done is not done again"))
    (editing.state / "edit.jsonl").unlink()  # what is published serves as well
    edit.measure_edit(editing)
    assert editing.document.read_text(encoding="utf-8") == written


def test_times_are_set_against_an_edit_per_frame_of_the_same_round(editing) -> None:
    editing.seeds, asked = 1, []
    seconds = {methods.REFERENCE: 2.0, methods.FFAM: 3.0, methods.EI2: 5.0}

    class Bench:
        key: tuple = ("another clip",)

        def turn_to(self, case, task) -> None:
            assert self.key == (), "nothing tuned is kept"

        def edit(self, case):
            asked.append((case.clip, case.method, case.ddim_steps, case.steps))
            slower = 10.0 if case.clip == "shape_0" else 1.0
            return torch.zeros(3), slower * seconds[case.method], 8.0 if case.steps else None

    cases = [
        edit.make_case(name, clip, True, 0, editing, FIRST)
        for clip in ("colour_0", "shape_0", "style_0")
        for name in (methods.DO_NOTHING, *seconds)
    ]
    tasks = {kind + "_0": draw_task(kind, 0, held_out=True) for kind in ("colour", "shape", "style")}
    costs = edit_cost.Costs(editing.state, Bench)
    costs.memory = {costs.counted(case): {"memory": 1.5} for case in cases}
    costs.measure(cases, tasks, 2)
    timed = [(clip, name) for clip, name, ddim_steps, _ in asked if ddim_steps == edit_cost.DDIM_STEPS]
    order = list(seconds)
    assert timed == [("colour_0", name) for name in order] + [("shape_0", name) for name in reversed(order)]
    assert {steps for *_, steps in asked} == {0, editing.steps}, "no more steps of tuning than asked for"
    by_name = {(case.clip, case.method): costs.of(case) for case in cases}
    assert list(by_name["shape_0", methods.EI2].values()) == [2.5, 0.4, 1.5, 50.0, 8.0]
    assert list(by_name["colour_0", methods.FFAM].values()) == [1.5, None, 1.5, 3.0, None]
    assert by_name["style_0", methods.FFAM]["cost"] is None, "not timed"
    assert by_name["colour_0", methods.DO_NOTHING]["cost"] is None
    lines = costs.times_file.read_text(encoding="utf-8").splitlines(keepends=True)
    costs.times_file.write_text("".join(lines[:-1]), encoding="utf-8")
    asked.clear()
    again = edit_cost.Costs(editing.state, Bench)
    again.memory = costs.memory
    again.measure(cases, tasks, 2)
    assert {clip for clip, *_ in asked} == {"shape_0"}, "a round that was cut is timed again, and only that"
    assert again.of(cases[-1]) == costs.of(cases[-1])


def test_hyper_parameters_are_chosen_on_validation_clips_alone(editing, monkeypatch) -> None:
    editing.quick = False
    asked = []

    class Table:
        def get(self, case, task) -> dict:
            asked.append(case)
            assert task == draw_task(task.kind, 0, held_out=False) and not case.held_out
            obeyed = {2.0: 0.5, 0.2: 0.9}.get(case.value, 0.8) if case.method == methods.INR else 0.8
            steady = 3 - case.value if case.method == methods.INR else case.value
            warp_error = steady + case.rate + case.cfg + case.passes + case.end + (case.method == UNSTEADY)
            figures = dict.fromkeys(edit_document.CURVE, 0.0)
            return figures | {"obeyed": obeyed, "kept": 1 - 0.2 * (case.passes == 1), "warp_error": warp_error}

    chosen, measured = edit.choose(Table(), editing)
    assert chosen["cfg"] == 3 and chosen["rate"] == 1e-4, "as obedient, steadier"
    assert chosen["weight"] == 0.2, "the other obeys less"
    assert (chosen["passes"], chosen["end"]) == (2, 0.5), "one pass is steadier and keeps less"
    assert len(measured) == sum(len(choice.values) for choice in edit.CHOICES)
    assert {case.clip for case in asked} == {f"{kind}_0" for kind in KINDS}
    later = [case for case in asked if case.method == methods.INR]
    assert {(case.cfg, case.rate) for case in later} == {(3, 1e-4)}, "what is chosen first holds for the rest"
    held_out = list(edit.list_cases(editing, chosen))
    assert all(case.held_out for case in held_out)
    assert {case.value for case in held_out if case.method == methods.INR} == {0.2}
    assert [chosen[f"gamma {way}"] for way in methods.WAYS] == [0.5, 0.5, 1.0], "each way its own"
    lines = edit_document.validation_lines(measured, chosen, 6)
    assert "Chosen on 6 validation clips" in lines[0] and "| weight 0.2 | EI² + INR | 0.9 ± " in lines[-1]


def test_methods_that_nobody_asks_for_are_neither_tuned_nor_chosen_for(editing) -> None:
    editing.quick, editing.methods, asked = False, [methods.FFAM, methods.DEFAULT], set()

    class Table:
        def get(self, case, task) -> dict:
            asked.add(case.method)
            return dict.fromkeys(edit_document.CURVE, 1.0)

    chosen, _ = edit.choose(Table(), editing)
    assert asked == {methods.DEFAULT} and chosen["rate"] == FIRST["rate"]
    named = {case.method for case in edit.list_cases(editing, chosen)}
    assert named == {methods.FFAM, methods.DEFAULT, methods.DO_NOTHING, methods.AS_DRAWN}
    editing.methods = ["FFAN"]
    with pytest.raises(ValueError, match="--methods FFAN: there are per frame, "):
        edit.selected(editing)


def test_ablations_are_measured_on_every_third_clip(editing) -> None:
    editing.quick, editing.clips_of_kind, editing.seeds = False, 5, 1
    cases = list(edit.list_cases(editing, FIRST))
    clips = {name: [case.clip for case in cases if case.method == name] for name in (methods.LAYER_NORM, methods.EI2)}
    assert clips[methods.LAYER_NORM] == ["colour_0", "colour_3"] and len(clips[methods.EI2]) == 5


@pytest.mark.parametrize("name", [methods.FFAM, methods.GUIDED])
def test_a_shared_inversion_gives_the_same_edit(name: str, editing) -> None:
    task, bench = draw_task("colour", 0, held_out=False), edit.Bench(World())
    case = edit.make_case(name, "colour", False, 0, editing, FIRST)
    other = edit.make_case(methods.DEFAULT, "colour", False, 0, editing, FIRST)
    with torch.inference_mode():
        bench.turn_to(case, task)
        alone = bench.edit(case)[0]
        bench.edit(other, shares=True)
        shared = bench.edit(case, shares=True)[0]
    assert torch.equal(alone, shared)


def test_every_claim_names_methods_and_figures_that_are_measured() -> None:
    for gamma in (0.5, 1.0):
        for claim in edit_document.claims({f"gamma {way}": gamma for way in methods.WAYS}).values():
            for part in claim.parts:
                assert {part.better, part.worse} <= set(methods.METHODS) and part.key in edit_document.COLUMNS
    assert set(edit_document.SHOWN) <= {methods.DO_NOTHING, methods.AS_DRAWN, *methods.METHODS}
    assert {how.takes for how in methods.METHODS.values()} <= {"", *FIRST}
    quick = {name for name, how in methods.METHODS.items() if how.quick}
    assert {part.better for claim in edit_document.claims(FIRST).values() for part in claim.parts} <= quick


@pytest.mark.parametrize("base", [methods.REFERENCE, methods.FFAM, methods.EI2])
def test_an_edit_with_prompt_tokens_is_another_one(base: str, editing) -> None:
    task, bench = draw_task("colour", 0, held_out=False), edit.Bench(World())
    found = {}
    with torch.inference_mode():
        for name in (base, f"{base} + prompt tokens"):
            case = edit.make_case(name, "colour", False, 0, editing, FIRST)
            bench.turn_to(case, task)
            found[name], _, tuning_seconds = bench.edit(case)
    without, with_tokens = found.values()
    assert with_tokens.shape == without.shape and not torch.equal(with_tokens, without)
    assert methods.METHODS[f"{base} + prompt tokens"].draws and tuning_seconds > 0


NARROW = {
    **sd15.UNET,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Options of a performance benchmark at its smallest, of a narrow UNet."""
    monkeypatch.setattr(sd15, "UNET", NARROW)
    monkeypatch.setattr(sd15, "VAE_CHANNELS", (32, 32, 32, 32))
    monkeypatch.setattr(sd15, "TEXT_LAYERS", 1)
    monkeypatch.setattr(sample, "LONG", (18, 24))
    monkeypatch.setattr(memory, "FRAMES", (4,))
    monkeypatch.setattr(memory, "RS", (4,))
    monkeypatch.setattr(memory, "SIZES", (1.0,))
    monkeypatch.setattr(memory, "PARTS", (memory.USUAL_PART,))
    monkeypatch.setattr(memory, "CURVES", {name: memory.CURVES[name] for name in (memory.SAMPLING, tune.OURS_LEAST)})
    few = (tune.OURS, tune.SMOOTHED, tune.SCRIPT)
    monkeypatch.setattr(tune, "WAYS", {name: tune.WAYS[name] for name in few})
    memory.base_model.cache_clear()
    for part in (sample, tune):
        monkeypatch.setattr(part, "FULL_SIZE", 8)
    return argparse.Namespace(
        device="auto", size=8, frames=4, rounds=2, again=False, document=tmp_path / "performance.md",
        json=tmp_path / "rows.json", state=tmp_path / "state",
    )  # fmt: skip


@pytest.mark.parametrize("part", [attention, temporal, sample, tune, memory])
def test_a_performance_benchmark_writes_its_section_from_its_rows(part, tiny, monkeypatch) -> None:
    name = part.__name__.rsplit(".", 1)[1]
    measure = getattr(part, f"measure_{name}")
    measure(tiny)
    written = tiny.document.read_text(encoding="utf-8")
    sections = read_sections(written)
    own = sections.pop(TITLES[name])
    assert set(sections.values()) == {UNKNOWN}
    assert own.startswith(f"Written by `python -m bench {name}`.") and "| target | met |" in own
    assert not re.search(r"\bnan\b|\binf\b|/home|/work|/tmp", own)
    rows = json.loads(tiny.json.read_text())
    assert rows and all(row["frames"] <= 4 and row["size"] <= 8 for row in rows)
    for done in (part, attention_scaling):
        monkeypatch.setattr(done, "run_case", lambda *_: pytest.fail("what is done is not done again"))
    measure(tiny)
    assert tiny.document.read_text(encoding="utf-8") == written


def test_performance_runs_every_part_with_rows_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    command = importlib.import_module("consistent_video.bench.__main__")
    ran = []
    for part in (attention, temporal, sample, tune, memory):
        name = part.__name__.rsplit(".", 1)[1]
        failed = name == "tune"
        monkeypatch.setattr(
            part, f"measure_{name}", lambda given, name=name, failed=failed: ran.append((name, given.json)) or failed
        )
    for what in ("stop_on_signals", "enter", "register_pack"):
        monkeypatch.setattr(command.environment, what, lambda *_: None)
    monkeypatch.setattr("consistent_video.scripts.in_process.use_host", lambda *_, **__: None)
    monkeypatch.setattr("sys.argv", ["bench", "performance", "--json", str(tmp_path / "rows.json")])
    assert command.main() == 1, "a part's failure is told"
    assert ran == [(name, tmp_path / f"rows-{name}.json") for name in command.PERFORMANCE]
    ran.clear()
    monkeypatch.setattr("sys.argv", ["bench", "memory", "--json", str(tmp_path / "rows.json")])
    assert not command.main() and ran == [("memory", tmp_path / "rows.json")]


def test_more_frames_and_tokens_take_more_memory(tiny) -> None:
    few, ours, checkpointed, code = (
        tune.tuning_peak("cpu", memory.WAYS[name], frames, 24)
        for name, frames in ((tune.OURS, 2), (tune.OURS, 4), (tune.OURS_CHECKPOINTED, 4), (tune.CODE, 4))
    )
    assert few < ours < code and checkpointed < ours
    without, script = (tune.tuning_peak("cpu", memory.WAYS[name], 4, 24) for name in (tune.CODE_DEFAULTS, tune.SCRIPT))
    assert script > 1.02 * without


@pytest.mark.parametrize("what", [tune.OURS_CHUNKED, tune.OURS_CHECKPOINTED])
def test_fit_planner_is_held_against_what_is_held(what: str, tiny, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CURVES", {what: what})
    row = memory.run_case(memory.Case("cpu", "chip", "2", what, 4, 24, 4, memory.USUAL_PART))
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
    base = sd15.make_model(torch.float32)
    losses = []
    for way in (tune.Way(tune.TUNE_A_VIDEO_PRESET), memory.WAYS[tune.CODE], memory.WAYS[tune.CODE_DEFAULTS]):
        with tune.tuning(tune.clip_model(base, way), way, 3, 8) as made:
            made.tuner.advance()
            losses.append(made.tuner.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[2] == pytest.approx(losses[0], rel=1e-4)
