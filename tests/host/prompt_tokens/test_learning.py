"""Prompt tokens in the host: what is learned, from what, and what is refused."""

import json

import pytest
import torch

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.settings import clip_settings
from consistent_video.modules.clip_model.methods import EI2, method
from consistent_video.modules.prompt_tokens.adapter import PromptTokens
from consistent_video.modules.prompt_tokens.host.session import PromptSettings, PromptTuning
from consistent_video.modules.tuning.host import progress
from consistent_video.modules.tuning.host.private_copy import private_copy
from consistent_video.modules.tuning.host.training import tune_model
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs
from consistent_video.modules.tuning.losses.consistency import temporal_consistency_loss
from consistent_video.modules.tuning.settings import TuneSettings

from ..small import EDIT, FRAMES, SOURCE, UNET, clip_latent, family_model, prompt, random_model, sample
from .learned import PROMPT, SETTINGS, assert_same, clip_model, run, with_tokens


def test_the_tokens_lower_the_loss() -> None:
    """On the very noise that they were not learned on."""
    settings = SETTINGS.changed(steps=80)
    inputs = TuneInputs(SOURCE, clip_latent())
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        private_copy(clip_model()) as copy,
    ):
        tuning = PromptTuning(copy, clip_model(), inputs, settings, PROMPT)

        def loss() -> float:
            with torch.no_grad(), tuning.tuner.whole_step():
                tuning.tuner.generator.manual_seed(5)
                draws = [tuning.tuner.draw(t) for t in range(100, 1000, 100)]
                return sum(tuning.tuner.objective.evaluate(drawn, 0)[0]["loss"].item() for drawn in draws)

        before = loss()
        tuning.run(progress.TuningProgress("1"))
        assert loss() < 0.97 * before


def test_what_is_learned_is_the_tokens_and_each_frames_own(adapter) -> None:
    width = UNET["context_dim"]
    assert adapter.shared.shape == (3, width) and adapter.frame.shape == (FRAMES, 2, width)
    assert adapter.info["steps"] == len(adapter.info["loss"]) == 6 and json.loads(json.dumps(adapter.info))
    begun = PromptTokens(3, 2, FRAMES, width, torch.Generator().manual_seed(SETTINGS.seed))
    assert not torch.equal(adapter.shared, begun.shared)
    assert all(not torch.equal(*frames) for frames in zip(adapter.frame, begun.frame, strict=True))


def test_tokens_projected_from_like_frames_are_alike_and_go_on_to_the_bit() -> None:
    embeddings = torch.randn(FRAMES, 9, generator=torch.Generator().manual_seed(3))
    embeddings[2] = 5 * embeddings[0]  # only the direction counts
    whole = run(embeddings=embeddings).adapter
    torch.testing.assert_close(whole.frame[2], whole.frame[0])
    assert (whole.frame[1] - whole.frame[0]).norm() > 0.1 * whole.frame[0].norm()
    begun = PromptTokens(3, 2, FRAMES, UNET["context_dim"], torch.Generator().manual_seed(SETTINGS.seed), embeddings)
    assert (whole.frame - begun.of_frames()).norm() > 1e-2 * whole.frame.norm()
    half = run(settings=SETTINGS.changed(steps=3), embeddings=embeddings).adapter
    assert_same(run(embeddings=embeddings, resume=half).adapter, whole)
    with pytest.raises(ValueError, match="resume was tuned with embedding = 9, and here it is None"):
        run(resume=half)


def test_same_seed_same_tokens_and_torchs_generator_stays(adapter) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert_same(run().adapter, adapter)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(run(settings=SETTINGS.changed(seed=12)).adapter.shared, adapter.shared)


def test_checkpointing_and_the_captured_features_learn_the_same() -> None:
    settings = SETTINGS.changed(consistency_weight=20.0, consistency_part="all", steps=3)
    plain, checked = (run(settings=settings.changed(gradient_checkpointing=on)).adapter for on in (False, True))
    assert min(plain.info["consistency_loss"]) > 0
    torch.testing.assert_close(plain.shared, checked.shared, rtol=1e-4, atol=1e-6)
    without = run(settings=settings.changed(consistency_weight=0.0)).adapter
    assert (plain.shared - without.shared).norm() > 1e-3 * plain.shared.norm()


def test_the_features_of_a_step_are_not_held_after_it() -> None:
    """Checkpointing runs the layers again in the backward."""
    settings = SETTINGS.changed(steps=1, consistency_weight=1.0, gradient_checkpointing=True)
    with torch.inference_mode(False), torch.enable_grad(), private_copy(clip_model()) as copy:
        tuning = PromptTuning(copy, clip_model(), TuneInputs(SOURCE, clip_latent()), settings, PROMPT)
        tuning.tuner.advance()
        assert tuning.features["middle"].held == [] and tuning.tuner.losses["consistency_loss"][0] > 0


def test_the_features_are_those_of_self_attention() -> None:
    """Against a hook on the whole attention module, which runs where nothing replaces it."""
    seen = []
    base = clip_model()
    settings = SETTINGS.changed(steps=1, consistency_weight=1.0, consistency_part="middle")
    inputs = TuneInputs(SOURCE, clip_latent())
    with torch.inference_mode(False), torch.enable_grad(), private_copy(base) as copy:
        tuning = PromptTuning(copy, base, inputs, settings, PROMPT)
        tuning.call.options["patches_replace"]["attn1"].clear()
        attention = copy.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
        attention.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        losses, _ = tuning.tuner.objective.evaluate(tuning.tuner.draw(), 0)
        assert len(seen) == 1 and seen[0].shape[0] == FRAMES
        torch.testing.assert_close(losses["consistency_loss"], temporal_consistency_loss(seen[0]))


def test_the_consistency_loss_in_one_shot_tune(caplog) -> None:
    model = attach(clip_model(), *method(EI2, 2, "area"))

    def tune(frames: int = FRAMES, **changes):
        inputs = TuneInputs(SOURCE, clip_latent(frames))
        settings = TuneSettings(2, 11).changed(learning_rate=1e-3, **changes)
        with torch.inference_mode():
            return tune_model(model, inputs, settings, progress.TuningProgress("1"))

    plain, other = tune(), tune(consistency_part="all")
    assert all(torch.equal(other.tensors[key], value) for key, value in plain.tensors.items())
    assert "consistency_loss" not in plain.info
    weighted = tune(consistency_weight=50.0)
    assert weighted.info["loss"][0] == plain.info["loss"][0] and min(weighted.info["consistency_loss"]) > 0
    assert any(not torch.equal(weighted.tensors[key], value) for key, value in plain.tensors.items())
    assert tune(2, consistency_weight=50.0).info["consistency_loss"] == [0.0, 0.0]
    assert "needs 3 in each step, and a step has 2" in caplog.text


def test_wrong_inputs_are_refused_in_words(far) -> None:
    with pytest.raises(ValueError, match="model is an image model. Connect it through Inflate UNet"):
        run(family_model("SD1.x"))
    with pytest.raises(ValueError, match="shared_tokens and frame_tokens are both 0"):
        run(asked=PromptSettings(0, 0))
    with pytest.raises(ValueError, match="positive has 2 conditionings"):
        run(positive=[*SOURCE, *EDIT])
    with pytest.raises(ValueError, match=f"conditioning is 40 wide and the prompt tokens {UNET['context_dim']}"):
        with_tokens(far, prompt(5, 40))


def test_a_full_memory_is_met_with_advice(monkeypatch) -> None:
    def fill(*_args) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(PromptTuning, "denoise", fill)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="turn chunking on in Tuning Options"):
        run(settings=SETTINGS.changed(on_out_of_memory="stop"))


def test_a_full_memory_is_met_by_less_from_the_last_step_on(adapter, monkeypatch) -> None:
    denoise = PromptTuning.denoise

    def crowded(self, *args):
        denoised = denoise(self, *args)
        if self.tuner.done >= 2 and not self.tuner.settings.memory.gradient_checkpointing:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return denoised

    monkeypatch.setattr(PromptTuning, "denoise", crowded)
    found = run().adapter
    rungs = [
        {"chunking": True, "gradient_checkpointing": on, "checkpointing_share": share, "frames_per_step": 0}
        for on, share in ((False, 1.0), (True, 0.25))
    ]
    assert found.info["stepped_down"] == [{"after": 2, **rung} for rung in rungs]
    assert found.info["loss"] == pytest.approx(adapter.info["loss"], rel=1e-4)


def test_the_advice_is_measured_with_less_where_it_does_not_fit(monkeypatch) -> None:
    denoise = PromptTuning.denoise

    def crowded(self, *args):
        if not self.tuner.settings.memory.chunking:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return denoise(self, *args)

    monkeypatch.setattr(PromptTuning, "denoise", crowded)
    found = run(settings=SETTINGS.changed(steps=1), with_advice=True)
    assert [rung["after"] for rung in found.adapter.info["stepped_down"]] == [0]
    assert [curvature.step for curvature in found.curvatures[::3]] == [0, 1]


def test_tokens_are_learned_with_temporal_modules() -> None:
    model = attach(clip_model(), *method(EI2, 2, "area"))
    assert run(model, SETTINGS.changed(steps=2)).adapter.info["loss"] != run().adapter.info["loss"][:2]
    assert clip_settings(model).temporal is not None


def test_the_hosts_model_is_left_alone() -> None:
    base = random_model()
    before = sample(base, clip_latent())
    run(inflate(base))
    assert torch.equal(sample(base, clip_latent()), before)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not any(module._forward_hooks for module in base.model.modules())
