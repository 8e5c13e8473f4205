"""Seeds of PyTorch's generator on the CPU."""

import hashlib

import torch

SEEDS = 2**32  # that the generator tells apart: it leaves out all but the last 32 bits


def seeded(seed: int) -> torch.Generator:
    """Return a generator on the CPU; its seed may be of any size, see `to_32_bits`."""
    return torch.Generator().manual_seed(to_32_bits(seed))


def to_32_bits(seed: int) -> int:
    """Return a seed that the generator takes as it is; one that it would cut is hashed."""
    if 0 <= seed < SEEDS:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
