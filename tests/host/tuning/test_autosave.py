"""A tuning that goes on from its autosave after ComfyUI has ended in its middle."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy_extras.nodes_freelunch import FreeU_V2

from consistent_video.modules.clip_model.methods import EI2
from consistent_video.modules.files import tensor_file
from consistent_video.modules.files.host import AUTOSAVES
from consistent_video.modules.files.whole import PART
from consistent_video.modules.tuning.host import progress
from consistent_video.modules.tuning.host.autosave import Autosave
from consistent_video.modules.tuning.host.training import Tuning
from consistent_video.modules.tuning.weights import Tune, load_tune
from consistent_video.nodes import tune
from consistent_video.nodes.tune import OneShotTune
from consistent_video.nodes.tuning_options import TuningOptionsNode

from ..small import EDIT, SOURCE, clip_latent, random_model
from .tuned import LONG, assert_same_tuning, interrupt_after, keeper, lively_model, patched, run

MASK = torch.rand(1, 96, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of autosaves, in a tunes' folder of the test's own."""
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda _: [str(tmp_path)])
    return tmp_path / AUTOSAVES


class EachStep(Autosave):
    """An autosave after every step."""

    def __init__(self) -> None:
        super().__init__(minutes=1e-9)

    def look(self, tuning) -> None:
        Autosave.look(self, tuning)
        if self.writing is not None:
            self.writing.result()


def crash_after(steps: int, saved: Path, monkeypatch) -> Path:
    """Tune until ComfyUI ends, and return what is on disk then."""
    interrupt_after(steps, monkeypatch)
    with monkeypatch.context() as dying, pytest.raises(comfy.model_management.InterruptProcessingException):
        dying.setattr(Path, "unlink", lambda *_, **__: None)  # what is killed deletes nothing
        run(patched(EI2, lively_model()), LONG, autosave=EachStep())
    monkeypatch.setattr(progress, "throw_exception_if_processing_interrupted", lambda: None)
    (path,) = saved.iterdir()
    return path


def test_a_killed_tuning_goes_on_by_itself_to_the_bit(long, saved, monkeypatch, caplog) -> None:
    path = crash_after(3, saved, monkeypatch)
    found, shorter = load_tune(path), run(patched(EI2, lively_model()), LONG.changed(steps=3, snapshots=(1, 2)))
    assert_same_tuning(Tune(found.tensors, shorter.info, found.snapshots, found.state), shorter)
    (saved / f"{path.name}.0a1b2c3d{PART}").mkdir()  # what a process that is killed while it writes leaves
    again = EachStep()
    assert_same_tuning(run(patched(EI2, lively_model()), LONG, autosave=again), long)
    assert again.resumed == 3 and f"goes on after step 3, from its autosave {path.name}" in caplog.text
    assert not list(saved.iterdir()), "it has ended"


class Begun(Exception):
    """A tuning is about to take its first step."""


def name_of(monkeypatch, model=None, settings=LONG, **changes) -> Path:
    """Return the autosave of a tuning."""
    named = Autosave(1)
    with monkeypatch.context() as patching, pytest.raises(Begun):
        patching.setattr(Autosave, "take_up", mock.Mock(side_effect=Begun))
        run(patched(EI2, model or lively_model()), settings, autosave=named, **changes)
    return named.path


def test_each_tuning_has_an_autosave_of_its_own(long, saved, monkeypatch) -> None:
    def with_free_u():
        return FreeU_V2.execute(lively_model(), 1.1, 1.2, 0.9, 0.2).args[0]

    def with_lora(strength: float):
        base = lively_model()
        base.add_patches({"diffusion_model.out.2.weight": ("diff", (torch.ones(4, 32, 3, 3),))}, strength)
        return base

    same = name_of(monkeypatch)
    assert same == name_of(monkeypatch, settings=LONG.changed(autosave_minutes=5.0)) and same.parent == saved
    others = [
        name_of(monkeypatch, settings=LONG.changed(seed=12)),
        name_of(monkeypatch, settings=LONG.changed(steps=7), resume=long),
        name_of(monkeypatch, settings=LONG.changed(steps=7)),
        name_of(monkeypatch, mask=MASK),
        name_of(monkeypatch, mask=MASK.flip(-1)),
        name_of(monkeypatch, positive=EDIT),
        name_of(monkeypatch, latent=clip_latent(seed=20)),
        name_of(monkeypatch, random_model()),
        name_of(monkeypatch, with_lora(0.5)),
        name_of(monkeypatch, with_lora(1.0)),
        name_of(monkeypatch, with_free_u()),
        name_of(monkeypatch, with_free_u()),  # nobody knows its settings
    ]
    assert len({same, *others}) == 13


def test_a_tuning_that_had_stepped_down_goes_on_with_as_little_memory(saved, monkeypatch) -> None:
    def scarce() -> None:
        steps, denoise = iter((1, 1)), Tuning.denoise

        def full(self, x, sigma, frames):
            if self.tuner.done == 2 and next(steps, None):
                raise torch.cuda.OutOfMemoryError("allocation")
            return denoise(self, x, sigma, frames)

        monkeypatch.setattr(Tuning, "denoise", full)

    scarce()
    whole = run(patched(EI2, lively_model()), LONG)
    monkeypatch.undo()
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda _: [str(saved.parent)])
    scarce()
    crash_after(4, saved, monkeypatch)
    again = EachStep()
    found = run(patched(EI2, lively_model()), LONG, autosave=again)
    assert again.resumed == 4 and found.info["stepped_down"] == whole.info["stepped_down"]
    assert_same_tuning(found, whole)


def test_an_interrupted_tuning_leaves_its_autosave_only_where_nothing_else_was_kept(saved, monkeypatch, caplog) -> None:
    def refuse(_tune: Tune) -> str:
        raise OSError("x could not be written (No space left on device).")

    for keep, files in ((keeper([]), 0), (None, 0), (refuse, 1)):
        interrupt_after(2, monkeypatch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(patched(EI2), LONG, keep, autosave=EachStep())
        assert len([*saved.iterdir()]) == files
    assert f"No space left on device). The last autosave, {next(saved.iterdir()).name}, stays." in caplog.text


def test_a_tuning_goes_on_where_it_cannot_be_saved_or_its_autosave_is_damaged(long, saved, monkeypatch, caplog) -> None:
    path = crash_after(2, saved, monkeypatch)
    path.write_bytes(path.read_bytes()[:-100])

    def full(*_) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tensor_file, "save_file", full)
    again = EachStep()
    assert_same_tuning(run(patched(EI2, lively_model()), LONG, autosave=again), long)
    assert "begins at its first step, for its autosave cannot be read" in caplog.text and again.resumed == 0
    assert "goes on without a new autosave" in caplog.text


def test_one_shot_tune_says_that_it_went_on(saved, monkeypatch) -> None:
    monkeypatch.setattr(OneShotTune, "hidden", SimpleNamespace(unique_id="1"))
    (options,) = TuningOptionsNode.execute(**{"autosave_minutes": 1e-9}).args
    given = {"options": options, "learning_rate": 1e-3, "seed": 11, "snapshots": "", "on_interrupt": "discard"}
    model, kept = patched(EI2, lively_model()), saved.parent / "kept"
    monkeypatch.setattr(tune, "Autosave", lambda minutes: EachStep() if minutes == 1e-9 else pytest.fail("it is off"))
    write = Autosave.write

    def writing(self, make) -> None:
        write(self, make)
        shutil.copytree(saved, kept, dirs_exist_ok=True)

    monkeypatch.setattr(Autosave, "write", writing)
    whole = OneShotTune.execute(model, SOURCE, clip_latent(), 3, **given).args
    assert not [*saved.iterdir()]
    shutil.copytree(kept, saved, dirs_exist_ok=True)
    again = OneShotTune.execute(model, SOURCE, clip_latent(), 3, **given).args
    assert json.loads(again[3])["resumed_from_autosave_after"] == 2
    assert_same_tuning(again[1], whole[1])
    (off,) = TuningOptionsNode.execute(**{"autosave_minutes": 0.0}).args
    OneShotTune.execute(model, SOURCE, clip_latent(), 2, **{**given, "options": off})
