"""Prompt tokens in the host: learned, kept, applied to other prompts and clips, and sampled with."""

import json
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import comfy.model_management
import comfy.samplers
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_train import LoraModelLoader, SaveLoRA

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.clip_model.methods import EI2, method
from consistent_video.modules.files import host as files
from consistent_video.modules.prompt_tokens.adapter import PromptAdapter
from consistent_video.modules.prompt_tokens.host import tokens as prompt_tokens
from consistent_video.modules.prompt_tokens.host.session import PromptSettings, PromptTuning
from consistent_video.modules.prompt_tokens.host.tokens import apply_prompt_tokens, measure_curvatures, tune_prompt
from consistent_video.modules.tuning.host import progress, session
from consistent_video.modules.tuning.host.private_copy import private_copy
from consistent_video.modules.tuning.host.training import tune_model
from consistent_video.modules.tuning.host.tune_inputs import TuneInputs
from consistent_video.modules.tuning.losses.consistency import temporal_consistency_loss
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.nodes.prompt import ApplyPromptTokens, LoadPromptTokens, SavePromptTokens, TunePromptTokens
from nodes import ControlNetApplyAdvanced, KSampler

from .small import (
    EDIT,
    EMPTY,
    FRAMES,
    HEIGHT,
    SOURCE,
    TOKENS,
    UNET,
    WIDTH,
    clip_latent,
    control_net,
    family_model,
    prompt,
    random_model,
    sample,
)

SETTINGS = TuneSettings(steps=6, learning_rate=3e-2, seed=11)
PROMPT = PromptSettings(3, 2)
LENGTH = TOKENS + 5


def clip_model(base=None):
    return inflate(base or family_model("SD1.x"))


def run(model=None, settings=SETTINGS, asked=PROMPT, keep=None, with_advice=False, **changes):
    """Tune as the node does: the host executes nodes in inference mode."""
    inputs = TuneInputs(**{"positive": SOURCE, "latent": clip_latent(), **changes})
    with torch.inference_mode():
        return tune_prompt(
            model or clip_model(), inputs, settings, asked, progress.TuningProgress("1"), keep, with_advice
        )


@pytest.fixture(scope="module")
def adapter() -> PromptAdapter:
    return run().adapter


@pytest.fixture(scope="module")
def far() -> PromptAdapter:
    """Tokens far from where they began, whose effect is large."""
    generator = torch.Generator().manual_seed(8)
    width = UNET["context_dim"]
    return PromptAdapter(
        2 * torch.randn(3, width, generator=generator), 2 * torch.randn(FRAMES, 2, width, generator=generator), {}
    )


def with_tokens(tokens: PromptAdapter, conditioning=EDIT, frames: int = FRAMES, *strengths: float) -> list:
    return apply_prompt_tokens(conditioning, tokens, frames, *strengths)


def assert_same(adapter: PromptAdapter, expected: PromptAdapter) -> None:
    assert torch.equal(adapter.shared, expected.shared) and torch.equal(adapter.frame, expected.frame)
    assert adapter.info == expected.info and adapter.state.keys() == expected.state.keys()
    assert all(torch.equal(adapter.state[key], value) for key, value in expected.state.items())


def test_the_tokens_lower_the_loss() -> None:
    """On the very noise that they were not learned on."""
    settings = replace(SETTINGS, steps=80)
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
                return sum(tuning.tuner.evaluate(drawn).diffusion.item() for drawn in draws)

        before = loss()
        tuning.run(progress.TuningProgress("1"))
        assert loss() < 0.97 * before


def test_what_is_learned_is_the_tokens_and_each_frames_own(adapter) -> None:
    width = UNET["context_dim"]
    assert adapter.shared.shape == (3, width) and adapter.frame.shape == (FRAMES, 2, width)
    assert adapter.info["steps"] == len(adapter.info["loss"]) == 6 and json.loads(json.dumps(adapter.info))
    begun = PromptTokensAtStart(adapter)
    assert not torch.equal(adapter.shared, begun.shared)
    assert all(not torch.equal(*frames) for frames in zip(adapter.frame, begun.frame, strict=True))


class PromptTokensAtStart:
    """The tokens before their first step."""

    def __init__(self, adapter: PromptAdapter):
        generator = torch.Generator().manual_seed(SETTINGS.seed)
        self.shared = 0.02 * torch.randn(adapter.shared.shape, generator=generator)
        self.frame = 0.02 * torch.randn(adapter.frame.shape, generator=generator)


def test_same_seed_same_tokens_and_torchs_generator_stays(adapter) -> None:
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert_same(run().adapter, adapter)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(run(settings=replace(SETTINGS, seed=12)).adapter.shared, adapter.shared)


def test_checkpointing_and_the_captured_features_learn_the_same() -> None:
    settings = replace(SETTINGS, consistency_weight=20.0, consistency_part="all", steps=3)
    plain, checked = (run(settings=replace(settings, gradient_checkpointing=on)).adapter for on in (False, True))
    assert min(plain.info["consistency_loss"]) > 0
    torch.testing.assert_close(plain.shared, checked.shared, rtol=1e-4, atol=1e-6)
    without = run(settings=replace(settings, consistency_weight=0.0)).adapter
    assert (plain.shared - without.shared).norm() > 1e-3 * plain.shared.norm()


def test_the_features_of_a_step_are_not_held_after_it() -> None:
    """Checkpointing runs the layers again in the backward."""
    settings = replace(SETTINGS, steps=1, consistency_weight=1.0, gradient_checkpointing=True)
    with torch.inference_mode(False), torch.enable_grad(), private_copy(clip_model()) as copy:
        tuning = PromptTuning(copy, clip_model(), TuneInputs(SOURCE, clip_latent()), settings, PROMPT)
        tuning.tuner.advance()
        assert tuning.features.held == [] and tuning.tuner.consistency_losses


def test_the_features_are_those_of_self_attention() -> None:
    """Against a hook on the whole attention module, which runs where nothing replaces it."""
    seen = []
    base = clip_model()
    settings = replace(SETTINGS, steps=1, consistency_weight=1.0, consistency_part="middle")
    inputs = TuneInputs(SOURCE, clip_latent())
    with torch.inference_mode(False), torch.enable_grad(), private_copy(base) as copy:
        tuning = PromptTuning(copy, base, inputs, settings, PROMPT)
        tuning.call.options["patches_replace"]["attn1"].clear()
        attention = copy.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1
        attention.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        losses = tuning.tuner.evaluate(tuning.tuner.draw())
        assert len(seen) == 1 and seen[0].shape[0] == FRAMES
        torch.testing.assert_close(losses.consistency, temporal_consistency_loss(seen[0]))


def test_the_consistency_loss_in_one_shot_tune(caplog) -> None:
    model = attach(clip_model(), *method(EI2, 2, "area"))

    def tune(frames: int = FRAMES, **changes):
        inputs = TuneInputs(SOURCE, clip_latent(frames))
        settings = replace(TuneSettings(2, 1e-3, 11), **changes)
        with torch.inference_mode():
            return tune_model(model, inputs, settings, progress.TuningProgress("1"))

    plain, other = tune(), tune(consistency_part="all")
    assert all(torch.equal(other.tensors[key], value) for key, value in plain.tensors.items())
    assert "consistency_loss" not in plain.info
    weighted = tune(consistency_weight=50.0)
    assert weighted.info["loss"][0] == plain.info["loss"][0] and min(weighted.info["consistency_loss"]) > 0
    assert any(not torch.equal(weighted.tensors[key], value) for key, value in plain.tensors.items())
    assert tune(2, consistency_weight=50.0).info["consistency_loss"] == [0.0, 0.0]
    assert "needs 3 frames, and a step has 2" in caplog.text


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_host_samples_with_them(far, cfg: float) -> None:
    model, latent = clip_model(), clip_latent()
    plain = sample(model, latent, cfg)
    edited = sample(model, latent, cfg, with_tokens(far), with_tokens(far, EMPTY))
    assert edited.isfinite().all() and (edited - plain).norm() > 1e-2 * plain.norm()


def test_each_frame_is_drawn_with_its_own_tokens(far) -> None:
    """Frame by frame in an image model, which has no other tie between the frames."""
    model, latent = clip_model(), clip_latent()
    whole = sample(model, latent, 1.0, with_tokens(far))
    contexts = with_tokens(far)[0][0]
    for i in range(FRAMES):
        alone = sample(model, latent, 1.0, [[contexts[i : i + 1], EDIT[0][1]]])
        torch.testing.assert_close(whole[i], alone[i], rtol=1e-4, atol=1e-4)
        assert (whole[i] - alone[i - 1]).norm() > 1e-3 * whole[i].norm()


def calls(model, positive, negative) -> tuple[list, torch.Tensor]:
    """Return how many conditionings each UNet call had, and the sample."""
    seen = []

    def note(executor, *args, **kwargs):
        seen.append(list(args[5]["cond_or_uncond"]))
        return executor(*args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "note", note)
    return seen, sample(watched, clip_latent(), 3.0, positive, negative)


def test_with_tokens_on_both_sides_guidance_is_one_call(far) -> None:
    model = clip_model()
    seen, joined = calls(model, with_tokens(far), with_tokens(far, EMPTY, FRAMES, 0.0, 0.0))
    assert all(sorted(call) == [0, 1] for call in seen)
    with mock.patch.object(comfy.samplers, "can_concat_cond", lambda one, other: one is other):
        apart, separate = calls(model, with_tokens(far), with_tokens(far, EMPTY, FRAMES, 0.0, 0.0))
    assert all(len(call) == 1 for call in apart)
    torch.testing.assert_close(joined, separate, rtol=1e-4, atol=1e-4)


def test_with_tokens_on_one_side_the_host_makes_two_calls_and_draws_right(far) -> None:
    seen, mixed = calls(clip_model(), with_tokens(far), EMPTY)
    assert {len(call) for call in seen} == {1} and mixed.isfinite().all()


def test_a_long_prompt_is_joined_with_a_short_one(far) -> None:
    """One of two pieces, one of a single piece: the host repeats the shorter."""
    width = UNET["context_dim"]
    one, two = (torch.randn(1, 77 * n, width, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    sides = [with_tokens(far, [[states, EDIT[0][1]]]) for states in (two, one)]
    seen, joined = calls(clip_model(), *sides)
    assert all(len(call) == 2 for call in seen)
    with mock.patch.object(comfy.samplers, "can_concat_cond", lambda one, other: one is other):
        _, separate = calls(clip_model(), *sides)
    torch.testing.assert_close(joined, separate, rtol=1e-4, atol=1e-4)


def test_ksampler_and_controlnet_take_them(far) -> None:
    model, latent = clip_model(), clip_latent()
    hint = torch.rand(FRAMES, 8 * HEIGHT, 8 * WIDTH, 3, generator=torch.Generator().manual_seed(7))
    sides = with_tokens(far), with_tokens(far, EMPTY)
    given = (3, 2, 3.0, "euler", "normal")
    plain = KSampler().sample(model, *given, *sides, latent)[0]["samples"]
    controlled = ControlNetApplyAdvanced().apply_controlnet(*sides, control_net(), hint, 1.0, 0.0, 1.0)
    controlled = KSampler().sample(model, *given, *controlled, latent)[0]["samples"]
    assert plain.shape == controlled.shape == latent["samples"].shape
    assert controlled.isfinite().all() and (controlled - plain).norm() > 1e-3 * plain.norm()


def test_another_clip_length_is_interpolated_and_said(far, caplog) -> None:
    assert with_tokens(far) and not caplog.text
    longer = with_tokens(far, EDIT, 2 * FRAMES - 1)[0][0]
    assert longer.shape == (2 * FRAMES - 1, LENGTH, UNET["context_dim"])
    assert torch.equal(longer[::2], with_tokens(far)[0][0])
    assert "has 9 frames and the prompt tokens were learned on 5" in caplog.text
    assert (
        sample(clip_model(), clip_latent(2 * FRAMES - 1), 1.0, with_tokens(far, EDIT, 2 * FRAMES - 1)).isfinite().all()
    )


def test_the_given_conditioning_stays(far) -> None:
    states, values = EDIT[0][0].clone(), dict(EDIT[0][1])
    ((_, given),) = with_tokens(far)
    assert torch.equal(EDIT[0][0], states) and EDIT[0][1].keys() == values.keys()
    assert given is not EDIT[0][1] and torch.equal(given["pooled_output"], values["pooled_output"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files.folder_paths, "get_folder_paths", lambda _: [str(tmp_path)])
    monkeypatch.setattr(files.folder_paths, "get_full_path_or_raise", lambda _, name: str(tmp_path / name))
    monkeypatch.setattr(TunePromptTokens, "hidden", SimpleNamespace(unique_id="1"))
    return tmp_path


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
        run(settings=replace(SETTINGS, on_out_of_memory="stop"))


def test_a_full_memory_is_met_by_less_from_the_last_step_on(adapter, monkeypatch) -> None:
    denoise = PromptTuning.denoise

    def crowded(self, *args):
        denoised = denoise(self, *args)
        if len(self.tuner.losses) >= 2 and not self.tuner.settings.gradient_checkpointing:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return denoised

    monkeypatch.setattr(PromptTuning, "denoise", crowded)
    found = run().adapter
    rungs = [{"chunking": True, "gradient_checkpointing": given, "frames_per_step": 0} for given in (False, True)]
    assert found.info["stepped_down"] == [{"after": 2, **rung} for rung in rungs]
    assert found.info["loss"] == pytest.approx(adapter.info["loss"], rel=1e-4)


def test_gradient_descent_at_the_advised_rate_never_rises() -> None:
    gentle = replace(SETTINGS, steps=1, optimizer="gradient descent", learning_rate=1e-9, max_grad_norm=0.0)
    found = run(settings=gentle, with_advice=True)
    rate = 1 / max(curvature.value for curvature in found.curvatures)
    assert [curvature.step for curvature in found.curvatures] == [0, 0, 0, 1, 1, 1]
    safe = run(settings=replace(gentle, steps=5, learning_rate=rate)).adapter.info
    assert safe["rises"] == []
    assert run(settings=replace(gentle, steps=5, learning_rate=1e4 * rate)).adapter.info["rises"]


def test_the_bound_on_this_clips_features_holds() -> None:
    smoothness = run(settings=replace(SETTINGS, steps=1, consistency_part="all"), with_advice=True).smoothness
    assert smoothness.frames == FRAMES and 0 < smoothness.found < smoothness.bound


def test_advice_changes_nothing(adapter) -> None:
    assert_same(run(with_advice=True).adapter, adapter)


def test_curvature_is_that_of_the_whole_hessian() -> None:
    """With few numbers learned, so that the Hessian can be written down column by column."""
    with torch.inference_mode(False), torch.enable_grad(), private_copy(clip_model()) as copy:
        tuning = PromptTuning(copy, clip_model(), TuneInputs(SOURCE, clip_latent()), SETTINGS, PromptSettings(1, 0))
        with mock.patch.object(prompt_tokens, "ITERATIONS", 40), mock.patch.object(prompt_tokens, "LEVELS", (0.5,)):
            (found,) = measure_curvatures(tuning)
        with tuning.tuner.whole_step():
            drawn = tuning.tuner.draw(500)
        shared = tuning.learned.tokens.shared
        gradient = prompt_tokens.gradient_of(tuning, drawn, [shared])
        here, h = shared.detach().reshape(-1).clone(), 2e-3
        columns = [(gradient(here + h * e) - gradient(here - h * e)) / (2 * h) for e in torch.eye(len(here)).to(here)]
        expected = torch.linalg.eigvalsh((torch.stack(columns) + torch.stack(columns).T) / 2).abs().max().item()
    assert found.value == pytest.approx(expected, rel=0.1)


def test_low_rank_adapters_are_a_lora_of_the_host(folder, monkeypatch) -> None:
    settings = replace(SETTINGS, steps=4)
    found = run(settings=settings, asked=replace(PROMPT, rank=2))
    model, latent = clip_model(), clip_latent()
    blocks = len(transformer_blocks(model.model.diffusion_model))
    assert len(found.low_rank) == 3 * 8 * blocks  # up, down and alpha of eight projections
    (loaded,) = LoraModelLoader.execute(model, found.low_rank, 1.0).args
    assert len(loaded.patches) == 8 * blocks
    plain, with_lora = sample(model, latent), sample(loaded, latent)
    assert (with_lora - plain).norm() > 1e-3 * plain.norm()
    monkeypatch.setattr("comfy_extras.nodes_train.folder_paths.get_output_directory", lambda: str(folder))
    SaveLoRA.execute(found.low_rank, "swan")
    weights = comfy.utils.load_torch_file(str(folder / "swan_00001_.safetensors"), safe_load=True)
    again, _ = comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)
    assert torch.equal(sample(again, latent), with_lora)


def test_the_low_rank_adapters_are_what_was_learned_with() -> None:
    """The loss with the LoRA as the host applies it is that of the tuning's next step."""
    whole = run(settings=replace(SETTINGS, steps=5, learning_rate=1e-2), asked=replace(PROMPT, rank=2))
    part = run(settings=replace(SETTINGS, steps=4, learning_rate=1e-2), asked=replace(PROMPT, rank=2))
    (loaded,) = LoraModelLoader.execute(clip_model(), part.low_rank, 1.0).args
    inputs = TuneInputs(SOURCE, clip_latent())
    with torch.inference_mode(False), torch.enable_grad(), private_copy(loaded) as copy:
        tuning = PromptTuning(copy, loaded, inputs, SETTINGS, PROMPT)
        with torch.no_grad():
            tuning.learned.tokens.shared.copy_(part.adapter.shared)
            tuning.learned.tokens.frame.copy_(part.adapter.frame)
        tuning.tuner.generator.set_state(part.adapter.state["generator"])
        loss = tuning.tuner.evaluate(tuning.tuner.draw()).diffusion.item()
    assert loss == pytest.approx(whole.adapter.info["loss"][4], rel=1e-4)
    assert loss != pytest.approx(run(settings=replace(SETTINGS, steps=5)).adapter.info["loss"][4], rel=1e-4)


def test_tokens_are_learned_on_a_tuned_model_and_with_ei2() -> None:
    model = attach(clip_model(), *method(EI2, 2, "area"))
    assert run(model, replace(SETTINGS, steps=2)).adapter.info["loss"] != run().adapter.info["loss"][:2]
    assert session.clip_settings(model).temporal is not None


def test_the_hosts_model_is_left_alone() -> None:
    base = random_model()
    before = sample(base, clip_latent())
    run(inflate(base))
    assert torch.equal(sample(base, clip_latent()), before)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not any(module._forward_hooks for module in base.model.modules())
