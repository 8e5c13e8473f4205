"""Seeds of any size give noise of their own."""

import torch

from consistent_video.modules.diffusion.seed import seeded


def test_seeds_that_agree_in_their_last_32_bits_differ() -> None:
    noises = [torch.randn(4, generator=seeded(seed)) for seed in (3, 3 + 2**32, 3 + 2**33, 2**64 - 1, 2**32 - 1)]
    assert len({tuple(noise.tolist()) for noise in noises}) == 5
    assert torch.equal(noises[1], torch.randn(4, generator=seeded(3 + 2**32)))


def test_small_seeds_are_pytorchs() -> None:
    for seed in (0, 11, 2**32 - 1):
        expected = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.randn(4, generator=seeded(seed)), expected)
