"""The nodes of prompt tokens: files, interrupts and resumes."""

import json

import comfy.model_management
import pytest
import torch

from consistent_video.modules.tuning.host import progress
from consistent_video.nodes.prompt import ApplyPromptTokens, LoadPromptTokens, SavePromptTokens, TunePromptTokens

from ..small import EDIT, SOURCE, clip_latent, sample
from .learned import assert_same, clip_model, with_tokens


def tune_by_node(**changes) -> list:
    given = {"shared_tokens": 3, "frame_tokens": 2, "steps": 6, "learning_rate": 3e-2, "seed": 11}
    given |= {"advise_learning_rate": False, **changes}
    with torch.inference_mode():
        return TunePromptTokens.execute(clip_model(), SOURCE, clip_latent(), **given).args


def test_the_nodes_tune_save_load_and_apply(folder, adapter) -> None:
    tokens, lora, plot, advice, report, losses = tune_by_node()
    assert_same(tokens, adapter)
    assert lora == {} and plot.ndim == 4 and advice == "advise_learning_rate is off."
    assert json.loads(report).items() >= adapter.info.items() and len(losses["loss"]) == 6
    (path,) = SavePromptTokens.execute(tokens, "clips/swan").args
    assert path == str(folder / "clips" / "swan_00001_.safetensors")
    (loaded,) = LoadPromptTokens.execute("clips/swan_00001_.safetensors").args
    assert_same(loaded, adapter)
    (applied,) = ApplyPromptTokens.execute(EDIT, loaded, clip_latent(), 1.0, 1.0).args
    assert torch.equal(applied[0][0], with_tokens(adapter)[0][0])


def test_interrupted_and_resumed_it_is_one_run(folder, adapter, monkeypatch) -> None:
    done = []

    def interrupt() -> None:
        done.append(None)
        if len(done) == 3:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(progress, "throw_exception_if_processing_interrupted", interrupt)
    base = clip_model()
    before = sample(base, clip_latent())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tune_by_node()
    assert not comfy.model_management.current_loaded_models
    assert torch.equal(sample(base, clip_latent()), before)
    monkeypatch.setattr(progress, "throw_exception_if_processing_interrupted", lambda: None)
    with torch.inference_mode():
        (unfinished,) = LoadPromptTokens.execute("unfinished_00001_.safetensors").args
    assert len(unfinished.info["loss"]) == 3
    assert_same(tune_by_node(resume=unfinished)[0], adapter)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shared_tokens": 2}, "resume was tuned with shared_tokens = 3, and here it is 2"),
        ({"steps": 6}, "resume has 6 steps done and steps is 6"),
    ],
)
def test_a_resume_that_does_not_fit_is_refused(folder, adapter, changes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tune_by_node(resume=adapter, **changes)
