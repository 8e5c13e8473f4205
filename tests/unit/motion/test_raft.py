"""RAFT's weights are recognised, and its flow comes back at the size of the frames."""

import pytest
import torch
from torch import Tensor
from torchvision.models.optical_flow import raft_large, raft_small

from consistent_video.modules.motion.raft import estimate_motion_by, fitting, load_raft


@pytest.mark.parametrize("make", [raft_small, raft_large])
def test_either_network_is_told_by_its_weights(make) -> None:
    torch.manual_seed(0)
    given = make(weights=None).eval()
    network = load_raft(given.state_dict(), "raft.pth")
    first, second = torch.rand(2, 1, 3, 128, 136) * 2 - 1
    with torch.no_grad():
        expected = given(first, second, num_flow_updates=2)[-1]
        assert torch.equal(network(first, second, num_flow_updates=2)[-1], expected)


def test_other_weights_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="other.pth holds no weights"):
        load_raft({"weight": torch.zeros(3)}, "other.pth")


def test_sizes_are_made_to_fit() -> None:
    assert [fitting(size) for size in (64, 128, 131, 200, 513)] == [128, 128, 128, 200, 512]


def test_the_flow_is_in_pixels_of_the_frames() -> None:
    seen: list[tuple] = []

    def network(first: Tensor, second: Tensor) -> list[Tensor]:
        seen.append(tuple(first.shape))
        assert first.min() >= -1 and first.min() < -0.5 and first.max() > 0.5
        right = 6.0 if first.mean() < second.mean() else -6.0  # the frames grow brighter
        flow = torch.stack([torch.full(first.shape[2:], right), torch.full(first.shape[2:], right / 2)])
        return [flow[None] * 100, flow[None]]

    ramp = torch.linspace(0, 0.8, 96).view(1, 1, 96, 1) + 0.05 * torch.arange(4).view(4, 1, 1, 1)
    motion = estimate_motion_by(network, ramp.expand(4, 64, 96, 3))
    assert set(seen) == {(1, 3, 128, 128)} and len(seen) == 6
    assert motion.forward.shape == (3, 2, 64, 96)
    torch.testing.assert_close(motion.forward[:, 0], torch.full((3, 64, 96), 6 * 96 / 128))
    torch.testing.assert_close(motion.forward[:, 1], torch.full((3, 64, 96), 3 * 64 / 128))
    torch.testing.assert_close(motion.backward, -motion.forward)
    assert motion.seen_forward[..., :50, :90].all() and not motion.seen_forward[..., -1].any()


def test_one_frame_has_no_motion() -> None:
    assert estimate_motion_by(lambda *_: [], torch.zeros(1, 20, 24, 3)).forward.shape == (0, 2, 20, 24)
