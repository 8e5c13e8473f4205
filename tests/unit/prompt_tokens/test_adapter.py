"""Prompt adapters: where the tokens stand, what a strength does, other clip lengths, files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from consistent_video.modules.prompt_tokens.adapter import (
    PIECE,
    PromptAdapter,
    PromptTokens,
    interpolate_frames,
    join_tokens,
    load_prompt_adapter,
    save_prompt_adapter,
)

FRAMES, SHARED, OWN, WIDTH, LENGTH = 5, 3, 2, 6, 7
INFO = {"frames": FRAMES, "loss": [0.3, 1 / 3], "prompt": "a swan"}
STATE = {
    "losses": torch.ones(2, dtype=torch.float64),
    "rises": torch.zeros(0, dtype=torch.int64),
    "generator": torch.Generator().manual_seed(5).get_state(),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapter() -> PromptAdapter:
    return PromptAdapter(draw(SHARED, WIDTH), draw(FRAMES, OWN, WIDTH, seed=1), INFO, STATE)


def attend(query: Tensor, context: Tensor) -> Tensor:
    """Cross-attention of one query without projections."""
    return torch.softmax(query @ context.mT, dim=-1) @ context


def test_tokens_begin_as_the_paper_says_and_by_their_seed() -> None:
    tokens, again, other = (PromptTokens(40, 30, FRAMES, 50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert tokens.shared.shape == (40, 50) and tokens.frame.shape == (FRAMES, 30, 50)
    for values in (tokens.shared, tokens.frame):
        assert values.mean().abs() < 2e-3 and values.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(tokens.frame, again.frame) and not torch.equal(tokens.frame, other.frame)


def test_projected_tokens_are_each_frames_embedding_times_the_weights() -> None:
    embeddings = draw(FRAMES, 4000, seed=3)
    tokens = PromptTokens(1, OWN, FRAMES, WIDTH, torch.Generator().manual_seed(1), embeddings)
    expected = torch.zeros(FRAMES, OWN, WIDTH)
    for frame in range(FRAMES):
        for e, value in enumerate(embeddings[frame] / embeddings[frame].norm()):
            expected[frame] += value * tokens.frame[e]
    torch.testing.assert_close(tokens.of_frames(), expected, atol=1e-6, rtol=1e-4)
    assert tokens.of_frames().std().item() == pytest.approx(0.02, rel=0.2), "as tokens that are not projected"
    assert torch.equal(tokens.context(draw(2, LENGTH, WIDTH), slice(0, 2))[1, 1 : 1 + OWN], tokens.of_frames()[1])
    assert set(tokens.state_dict()) == {"shared", "frame"}


def test_embeddings_of_other_frames_or_for_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="clip_vision_output holds 4 images and the clip 5 frames"):
        PromptTokens(1, OWN, FRAMES, WIDTH, torch.Generator(), draw(4, 9))
    with pytest.raises(ValueError, match="frame_tokens is 0, .*disconnect clip_vision_output"):
        PromptTokens(1, 0, FRAMES, WIDTH, torch.Generator(), draw(FRAMES, 9))


def test_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="shared_tokens and frame_tokens are both 0"):
        PromptTokens(0, 0, FRAMES, WIDTH, torch.Generator())


def test_each_frame_sees_shared_own_and_text_in_this_order() -> None:
    text, mine = draw(1, LENGTH, WIDTH, seed=2), adapter()
    context = mine.context(text, FRAMES)
    for i in range(FRAMES):
        assert torch.equal(context[i], torch.cat([mine.shared, mine.frame[i], text[0]]))


def test_learning_sees_the_same_context_as_sampling() -> None:
    tokens = PromptTokens(SHARED, OWN, FRAMES, WIDTH, torch.Generator().manual_seed(1))
    text = draw(FRAMES, LENGTH, WIDTH, seed=2)
    learned = PromptAdapter(tokens.shared.detach(), tokens.frame.detach(), {})
    assert torch.equal(learned.context(text, FRAMES), tokens.context(text, slice(0, FRAMES)))
    assert torch.equal(learned.context(text, FRAMES)[1:4], tokens.context(text[1:4], slice(1, 4)))


def test_a_prompt_for_each_frame_keeps_them_apart() -> None:
    text = draw(FRAMES, LENGTH, WIDTH, seed=2)
    assert torch.equal(adapter().context(text, FRAMES)[:, SHARED + OWN :], text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_texts_type_is_kept(dtype: torch.dtype) -> None:
    assert adapter().context(draw(1, LENGTH, WIDTH).to(dtype), FRAMES).dtype == dtype


def test_strengths_lead_from_padding_to_the_tokens() -> None:
    text, mine = draw(1, LENGTH, WIDTH, seed=2), adapter()
    padding = text[0, -1]
    none = mine.context(text, FRAMES, 0.0, 0.0)
    assert none.shape == mine.context(text, FRAMES).shape
    torch.testing.assert_close(none[:, : SHARED + OWN], padding.expand(FRAMES, SHARED + OWN, -1))
    half = mine.context(text, FRAMES, 0.5, 0.25)
    torch.testing.assert_close(half[2, :SHARED], (padding + mine.shared) / 2)
    torch.testing.assert_close(half[2, SHARED : SHARED + OWN], 0.75 * padding + 0.25 * mine.frame[2])


def test_pieces_of_a_long_prompt_weigh_as_one_does() -> None:
    """The host repeats a shorter prompt to the length of a longer one; that changes no attention."""
    piece, query, mine = draw(FRAMES, PIECE, WIDTH, seed=2), draw(FRAMES, 1, WIDTH, seed=3), adapter()
    once, twice = (mine.context(piece.repeat(1, n, 1), FRAMES) for n in (1, 2))
    assert twice.shape[1] == 2 * once.shape[1]
    torch.testing.assert_close(attend(query, twice), attend(query, once))


def test_what_has_no_pieces_gets_tokens_once() -> None:
    for length in (PIECE + 1, PIECE - 1, LENGTH):
        joined = join_tokens(draw(SHARED, WIDTH), draw(FRAMES, OWN, WIDTH), draw(FRAMES, length, WIDTH))
        assert joined.shape == (FRAMES, SHARED + OWN + length, WIDTH)


def test_another_length_is_linear_in_time() -> None:
    line = torch.linspace(-1, 3, FRAMES)[:, None, None] * draw(1, OWN, WIDTH)
    for frames in (2, 4, 9):
        expected = torch.linspace(-1, 3, frames)[:, None, None] * draw(1, OWN, WIDTH)
        torch.testing.assert_close(interpolate_frames(line, frames), expected)
    mine = adapter().frame
    assert torch.equal(interpolate_frames(mine, FRAMES), mine)
    twice = interpolate_frames(mine, 2 * FRAMES - 1)
    torch.testing.assert_close(twice[::2], mine)
    torch.testing.assert_close(twice[1::2], (mine[1:] + mine[:-1]) / 2)


def test_one_frame_learned_serves_many_and_none_is_none() -> None:
    one = draw(1, OWN, WIDTH)
    torch.testing.assert_close(interpolate_frames(one, 4), one.expand(4, -1, -1))
    assert interpolate_frames(draw(FRAMES, 0, WIDTH), 3).shape == (3, 0, WIDTH)


@pytest.mark.parametrize(
    ("text", "frames", "words"),
    [
        (draw(1, LENGTH, WIDTH + 1), FRAMES, "conditioning is 7 wide and the prompt tokens 6.*text encoder"),
        (draw(3, LENGTH, WIDTH), FRAMES, "conditioning has 3 prompts and the clip 5 frames"),
    ],
)
def test_what_does_not_fit_is_refused(text: Tensor, frames: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        adapter().context(text, frames)


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    path, mine = tmp_path / "swan.safetensors", adapter()
    save_prompt_adapter(mine, path)
    loaded = load_prompt_adapter(path)
    assert torch.equal(loaded.shared, mine.shared) and torch.equal(loaded.frame, mine.frame)
    assert loaded.info == INFO and loaded.state.keys() == STATE.keys()
    assert all(torch.equal(loaded.state[key], value) for key, value in STATE.items())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["format_version"]) == ("consistent_video_prompt_tokens", "1")
    assert json.loads(metadata["info"]) == INFO
    assert [file.name for file in tmp_path.iterdir()] == ["swan.safetensors"]


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "swan.safetensors"
    metadata = {"format": "consistent_video_prompt_tokens", "format_version": "1", "info": "{}"}
    tensors = {"shared": draw(SHARED, WIDTH), "frame": draw(FRAMES, OWN, WIDTH)}
    cases = [
        ({**metadata, "format": "consistent_video_tune"}, tensors, "is not a prompt adapter.*Save Prompt Tokens wrote"),
        ({**metadata, "format_version": "2"}, tensors, "has prompt adapter format 2, .* reads up to 1"),
        (
            metadata,
            {"shared": tensors["shared"]},
            "is not a prompt adapter .*: it lacks the tensor frame",
        ),
        (metadata, {**tensors, "frame": draw(FRAMES, OWN, WIDTH + 1)}, "is not a prompt adapter"),
        (metadata, {**tensors, "shared": torch.full((SHARED, WIDTH), torch.nan)}, "not finite.*Save the prompt tokens"),
    ]
    for given, held, words in cases:
        save_file(held, path, given)
        with pytest.raises(ValueError, match=words):
            load_prompt_adapter(path)
    save_prompt_adapter(replace(adapter(), info=INFO), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"swan\.safetensors is damaged .*Save the prompt tokens again"):
        load_prompt_adapter(path)
