"""Edits are measured, kept and written, at the smallest size."""

import argparse
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from consistent_video.bench import edit, edit_cost, edit_document, methods, tasks
from consistent_video.bench.edit_rows import Case
from consistent_video.bench.tasks import KINDS, draw_task
from consistent_video.bench.world import World
from consistent_video.modules.motion import variational

FIRST = {name: value for choice in methods.CHOICES for name, value in zip(choice.names, choice.values[0], strict=True)}
TAKEN = FIRST | methods.CHOSEN  # where nothing is chosen by measurement
UNSTEADY = methods.gamma_row("both", 0.5)  # in the stand-in table less steady than gamma 1


@pytest.fixture
def editing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Options of the smallest measurement of edits: one short clip, few steps."""
    monkeypatch.setattr(tasks, "FRAMES", 4)
    return argparse.Namespace(
        quick=True, clips_of_kind=1, tuned_clips=1, kinds=("colour",), methods=(), seeds=1, validation=1,
        steps=2, ddim_steps=2, timed=1, state=tmp_path / "state", document=tmp_path / "benchmark.md",
    )  # fmt: skip


def test_edits_are_measured_kept_and_written(editing, monkeypatch) -> None:
    names = (methods.REFERENCE, methods.EI2, methods.MOTION)
    monkeypatch.setattr(variational, "WARPS", 1)  # the flow is of no matter here, and its every sweep is counted
    monkeypatch.setattr(variational, "SWEEPS", 2)
    for module in (edit, edit_cost):
        monkeypatch.setattr(module, "METHODS", {name: methods.METHODS[name] for name in names})
    brief: dict[str, str] = {}
    for module in (edit, edit_document):
        monkeypatch.setattr(module, "PUBLISHED", editing.document)
    monkeypatch.setattr(edit, "PUBLISHED_ROWS", editing.document.with_suffix(".jsonl"))
    for steps in ("DDIM_STEPS", "TUNING_STEPS", "COUNTED_TUNING_STEPS"):
        monkeypatch.setattr(edit_cost, steps, 1)
    monkeypatch.setattr(edit_document, "write_region", brief.__setitem__)
    given: list[tuple] = []
    monkeypatch.setattr(edit, "write_document", lambda *all: (given.append(all), edit_document.write_document(*all)))
    edit.measure_edit(editing)
    assert "| 2 as drawn | 1 | 1 |" in brief["benchmark"] and "| 1 do nothing |" not in brief["benchmark"]
    rows = [row for own in given[0][2].values() for row in own]
    by_name = {row["method"]: row for row in rows}
    assert list(by_name) == [row["method"] for row in rows] == [*methods.BOUNDS, *names]
    nothing, right = by_name[methods.DO_NOTHING], by_name[methods.AS_DRAWN]
    assert nothing["obeyed"] == 0 and nothing["background"] == 100 and nothing["cost"] is None
    assert right["obeyed"] > 0.85 and right["motion_error"] < 1
    read = {key for key, value in by_name[methods.FROM_TEXT].items() if value is not None}
    assert read == {"obeyed", "kept", *nothing.keys() & {field.name for field in fields(Case)}}
    assert by_name[methods.REFERENCE]["cost"] == 1 and by_name[methods.REFERENCE]["tuning_cost"] is None
    assert by_name[methods.EI2]["tuning_cost"] == pytest.approx(by_name[methods.MOTION]["tuning_cost"]), "tuned once"
    assert by_name[methods.EI2]["memory"] > by_name[methods.REFERENCE]["memory"] > 0, "tuning takes memory"
    assert by_name[methods.REFERENCE]["reconstruction"] > 15 and by_name[methods.REFERENCE]["mean_shift"] is None
    assert by_name[methods.EI2]["mean_shift"] > 0 and nothing["reconstruction"] is None
    moved = by_name[methods.MOTION]
    assert (moved["passes"], moved["end"]) == (TAKEN["passes"], TAKEN["end"]) and moved["denoise"] == methods.MATCHED
    written = editing.document.read_text(encoding="utf-8")
    assert "- **(d) Not measured.** INR Smooth" in written and "| 1 do nothing | 1 | 0 |" in written
    assert "Nothing was chosen by measurement" in written
    for name in ("benchmark.png", "benchmark_colour.webp"):
        assert name in written and (editing.document.parent / name).stat().st_size > 1000
    monkeypatch.setattr(edit, "Bench", lambda *_: pytest.fail("what is done is not done again"))
    (editing.state / "edit.jsonl").unlink()  # what is published serves as well
    edit.measure_edit(editing)
    assert editing.document.read_text(encoding="utf-8") == written


def test_obedience_is_listed_by_kind_of_edit() -> None:
    clips = tasks.list_tasks(2, held_out=True, kinds=("colour", "shape"))
    obeyed = dict(zip(clips, (1.0, 0.0, 0.5, 0.0), strict=True))  # colour_0, shape_0, colour_1, shape_1
    rows = [{"clip": clip, "obeyed": share} for clip, share in obeyed.items()]
    groups = dict.fromkeys((methods.FFAM, methods.SPARSE), rows)
    _, _, head, _, *body = edit_document.kind_lines(groups, clips).splitlines()
    assert head == "| method | colour | shape |"
    assert body == [f"| {methods.FFAM} | 0.75 ± 0.2 | 0 ± 0 |"], "only what is shown"


def test_times_are_set_against_an_edit_per_frame_of_the_same_round(editing) -> None:
    asked = []
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
    clips = {kind + "_0": draw_task(kind, 0, held_out=True) for kind in ("colour", "shape", "style")}
    costs = edit_cost.Costs(editing.state, Bench)
    costs.memory = {costs.counted(case): {"memory": 1.5} for case in cases}
    costs.measure(cases, clips, 2)
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
    again.measure(cases, clips, 2)
    assert {clip for clip, *_ in asked} == {"shape_0"}, "a round that was cut is timed again, and only that"
    assert again.of(cases[-1]) == costs.of(cases[-1])


def test_hyper_parameters_are_chosen_on_validation_clips_alone(editing, monkeypatch) -> None:
    editing.quick, editing.validation = False, 2
    asked = []

    class Table:
        def get(self, case, task) -> dict:
            asked.append(case)
            assert task == draw_task(task.kind, int(case.clip[-1]), held_out=False) and not case.held_out
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
    assert {case.clip for case in asked} == {f"{kind}_{number}" for kind in KINDS for number in range(2)}
    assert {case.clip for case in asked if case.steps} == {f"{kind}_0" for kind in KINDS}, "fewer tunings"
    later = [case for case in asked if case.method == methods.INR]
    assert {(case.cfg, case.rate) for case in later} == {(3, 1e-4)}, "what is chosen first holds for the rest"
    held_out = list(edit.list_cases(editing, chosen))
    assert all(case.held_out for case in held_out)
    assert {case.value for case in held_out if case.method == methods.INR} == {0.2}
    assert [chosen[f"gamma {way}"] for way in methods.WAYS] == [0.5, 0.5, 1.0], "each way its own"
    lines = edit_document.validation_lines(measured, chosen)
    assert "| weight 0.2 | EI² + INR | 6 | 0.9 ± " in lines[-1]


def test_methods_that_nobody_asks_for_are_neither_tuned_nor_chosen_for(editing) -> None:
    editing.quick, editing.methods, asked = False, [methods.FFAM, methods.DEFAULT], set()

    class Table:
        def get(self, case, task) -> dict:
            asked.add(case.method)
            return dict.fromkeys(edit_document.CURVE, 1.0)

    chosen, _ = edit.choose(Table(), editing)
    assert asked == {methods.DEFAULT} and chosen["rate"] == FIRST["rate"]
    named = {case.method for case in edit.list_cases(editing, chosen)}
    assert named == {methods.FFAM, methods.DEFAULT, *methods.BOUNDS}
    editing.methods = ["FFAN"]
    with pytest.raises(ValueError, match="--methods FFAN: there are per frame, "):
        edit.selected(editing)


def test_tunings_are_measured_on_as_many_clips_as_asked_one_of_each_kind_first(editing) -> None:
    editing.quick, editing.kinds, editing.clips_of_kind, editing.tuned_clips = False, (), 2, 8
    cases = list(edit.list_cases(editing, FIRST))
    clips = {
        name: [case.clip for case in cases if case.method == name]
        for name in (methods.FFAM, methods.EI2, methods.CENTERING)
    }
    assert len(clips[methods.FFAM]) == 12 and clips[methods.EI2] == clips[methods.FFAM][:8]
    assert [clip.rsplit("_", 1)[1] for clip in clips[methods.EI2]] == ["0"] * 6 + ["1"] * 2
    assert clips[methods.CENTERING] == clips[methods.EI2][:3]


def test_only_what_is_drawn_is_measured_with_every_seed(editing) -> None:
    editing.seeds, editing.methods = 2, [methods.REFERENCE, methods.EI2, methods.INR, methods.MOTION]
    drawn = [(case.method, case.seed) for case in edit.list_cases(editing, FIRST)]
    once = [(name, 0) for name in (*methods.BOUNDS, *editing.methods)]
    assert drawn == [*once, (methods.EI2, 1), (methods.MOTION, 1)], "a loss is measured on a part of the clips"


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
        for claim in methods.claims({f"gamma {way}": gamma for way in methods.WAYS}).values():
            for part in claim.parts:
                assert {part.better, part.worse} <= set(methods.METHODS) and part.key in edit_document.COLUMNS
    assert set(methods.SHOWN) <= {*methods.BOUNDS, *methods.METHODS}
    assert {how.takes for how in methods.METHODS.values()} <= {"", *FIRST}
    quick = {name for name, how in methods.METHODS.items() if how.quick}
    assert {part.better for claim in methods.claims(FIRST).values() for part in claim.parts} <= quick


def test_an_edit_with_prompt_tokens_is_another_one(editing) -> None:
    base = methods.REFERENCE
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
