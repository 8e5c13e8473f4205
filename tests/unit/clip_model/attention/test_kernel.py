"""The attention kernel, against softmax written out."""

import torch

from consistent_video.modules.clip_model.attention import scaled_dot_product


def test_each_head_attends_for_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 7, 6, generator=generator, dtype=torch.float64)
    ours = scaled_dot_product(q, k, v, heads=3)
    for n in range(2):
        for head in range(3):
            own = slice(2 * head, 2 * head + 2)
            for i in range(5):
                logits = [(q[n, i, own] * k[n, j, own]).sum() / 2**0.5 for j in range(7)]
                weights = torch.stack(logits).exp() / sum(logit.exp() for logit in logits)
                expected = sum(weights[j] * v[n, j, own] for j in range(7))
                torch.testing.assert_close(ours[n, i, own], expected)
