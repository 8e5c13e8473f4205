"""Attention to the bases of a clip, against expectation maximisation in loops over tokens and bases."""

import math

import pytest
import torch
from torch import Tensor

from consistent_video.modules.clip_model.attention import bases as module
from consistent_video.modules.clip_model.attention import scaled_dot_product
from consistent_video.modules.clip_model.attention.bases import bases_attention, find_bases
from consistent_video.modules.clip_model.attention.full import full_attention

HEADS, DIM = 2, 6  # of both heads together


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def em(keys: Tensor, values: Tensor, start: list[int], iterations: int) -> tuple[Tensor, Tensor]:
    """Expectation maximisation of one head's tokens, in double precision."""
    keys, values = keys.double(), values.double()
    bases = [(keys[i], values[i]) for i in start]
    for _ in range(iterations):
        shares = []
        for key in keys:
            fits = [float(key @ base / base.norm()) / 0.01 for base, _ in bases]
            weights = [math.exp(fit - max(fits)) for fit in fits]
            shares.append([weight / sum(weights) for weight in weights])
        for m in range(len(bases)):
            own = [share[m] for share in shares]
            if sum(own) > 1e-4:
                bases[m] = tuple(sum(w * x for w, x in zip(own, xs, strict=True)) / sum(own) for xs in (keys, values))
    return torch.stack([key for key, _ in bases]), torch.stack([value for _, value in bases])


@pytest.mark.parametrize("iterations", [1, 4])
def test_bases_are_found_by_expectation_maximisation(iterations: int) -> None:
    k, v = 0.1 * draw(3, 13, 4), draw(3, 13, 4, seed=1)
    start = torch.tensor([7, 2, 11, 5, 0])
    found = find_bases(k, v, start, iterations)
    for head in range(3):
        expected = em(k[head], v[head], start.tolist(), iterations)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[head], other.float(), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0], k[:, start], atol=1e-2)


def test_a_few_tokens_at_a_time_find_the_same_bases(monkeypatch) -> None:
    k, v, start = draw(2, 37, 4), draw(2, 37, 4, seed=1), torch.arange(0, 35, 7)
    at_once = find_bases(k, v, start)
    monkeypatch.setattr(module, "SHARES_BYTES", 4 * 2 * 5 * 8)  # eight tokens
    for one, other in zip(find_bases(k, v, start), at_once, strict=True):
        torch.testing.assert_close(one, other)


def test_a_basis_that_no_token_takes_stays_what_it_was() -> None:
    """The third begins with two groups of tokens; their mean fits neither as well as other bases do."""
    places = [21.7, -2.8], [1.2, -11.7], [-3.8, -11.6], [1.1, 0.1], [-8.6, 8.4], [-7.1, 9.1], [0.1, 0.2], [1.6, 0.9]
    k, start = torch.tensor(places)[None], torch.arange(4)
    (once, _), (keys, values) = (find_bases(k, k.flip(-1), start, iterations) for iterations in (1, 5))
    torch.testing.assert_close(keys[:, 2], once[:, 2])
    torch.testing.assert_close(values, keys.flip(-1))
    assert (keys - once)[:, [0, 1, 3]].abs().amax(dim=-1).min() > 1


def test_tokens_are_their_own_bases() -> None:
    """Of keys that are far from parallel, at the temperature that there is."""
    k, v = 3 * draw(2, 9, 16), draw(2, 9, 16, seed=1)
    order = torch.tensor([3, 8, 1, 0, 7, 2, 6, 5, 4])
    for found, tokens in zip(find_bases(k, v, order), (k, v), strict=True):
        torch.testing.assert_close(found, tokens[:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [15, 16, 256])
def test_as_many_bases_as_tokens_are_full_attention_to_the_bit(count: int) -> None:
    q, k, v = draw(3, 2 * 3, 5, DIM)
    found = bases_attention(q, k, v, HEADS, 3, count=count)
    assert torch.equal(found, full_attention(q, k, v, HEADS, 3))
    one_frame = bases_attention(q, k, v, HEADS, 1, count=count)
    assert torch.equal(one_frame, scaled_dot_product(q, k, v, HEADS))
    fewer = bases_attention(q, k, v, HEADS, 3, count=14)
    assert (fewer - full_attention(q, k, v, HEADS, 3)).abs().max() > 1e-3


def test_every_frame_sees_the_bases_of_its_own_clip_by_head() -> None:
    q, k, v = draw(3, 2 * 3, 5, DIM)
    count, seen = 4, []

    def note(asking: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
        seen.append((keys, values))
        return scaled_dot_product(asking, keys, values, heads)

    found = bases_attention(q, k, v, HEADS, 3, note, count)
    ((keys, values),) = seen
    assert keys.shape == values.shape == (2, count, DIM)
    start = torch.randperm(15, generator=torch.Generator().manual_seed(0))[:count]
    for clip, head in ((0, 1), (1, 0)):
        own, frames = slice(3 * head, 3 * head + 3), slice(3 * clip, 3 * clip + 3)
        expected = find_bases(*(x[frames, :, own].reshape(1, 15, 3) for x in (k, v)), start)
        torch.testing.assert_close(keys[clip, :, own], expected[0][0])
        torch.testing.assert_close(values[clip, :, own], expected[1][0])
        asked = scaled_dot_product(q[frames, :, own].reshape(1, 15, 3), *expected, 1)
        torch.testing.assert_close(found[frames, :, own].reshape(1, 15, 3), asked)


def test_it_is_the_same_at_each_call_and_leaves_the_global_generator_alone() -> None:
    q, k, v = draw(3, 4, 5, DIM).half()
    before = torch.get_rng_state()
    one, other = (bases_attention(q, 100 * k, v, HEADS, 4, count=6) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, other) and one.isfinite().all() and one.dtype == torch.float16
