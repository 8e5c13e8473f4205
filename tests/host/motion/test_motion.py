"""Clip Motion in the host: by its own optical flow model, and from flows of another origin."""

from pathlib import Path

import folder_paths
import pytest
import torch
from comfy_extras.nodes_void import OpticalFlowLoader
from comfy_extras.void_noise_warp import RaftOpticalFlow
from torch import Tensor
from torchvision.models.optical_flow import raft_large

from consistent_video.modules.files.host import OPTICAL_FLOW
from consistent_video.modules.motion.flow import Motion, motion_of, read_flow
from consistent_video.nodes.sample import ClipMotion


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(motion: Motion, expected: Motion) -> None:
    for name, value in vars(expected).items():
        assert torch.equal(getattr(motion, name), value), name


@torch.inference_mode()  # as nodes run
def test_the_hosts_own_model_estimates_every_pair_in_both_directions(tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    torch.save(raft_large(weights=None).state_dict(), tmp_path / "raft.pth")
    extensions = folder_paths.folder_names_and_paths[OPTICAL_FLOW][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, OPTICAL_FLOW, ([str(tmp_path)], extensions))
    (model,) = OpticalFlowLoader.execute("raft.pth").args
    images = draw(3, 128, 136, 3)
    (motion,) = ClipMotion.execute(images, optical_flow=model).args
    flow, pictures = RaftOpticalFlow(model.model, model.load_device), images.movedim(-1, 1)
    forward = torch.stack([flow(pictures[n], pictures[n + 1]).cpu() for n in range(2)])
    backward = torch.stack([flow(pictures[n + 1], pictures[n]).cpu() for n in range(2)])
    assert forward.std() > 0 and not forward.allclose(backward)
    torch.testing.assert_close(motion.forward, forward)
    torch.testing.assert_close(motion.backward, backward)
    assert_same(motion, motion_of(motion.forward, motion.backward))


@pytest.mark.parametrize("images", [None, draw(4, 24, 40, 3)])
def test_flows_are_used_instead_of_an_estimate(images: Tensor | None) -> None:
    flows = [9 * draw(3, 2, 24, 40, seed=seed) for seed in (1, 2)]
    (motion,) = ClipMotion.execute(images, "no such file", forward=flows[0], backward=flows[1]).args
    assert_same(motion, motion_of(*flows))


@pytest.mark.parametrize("largest", [16.0, None])
def test_flows_may_be_pictures(largest: float | None) -> None:
    pictures = [draw(3, 24, 40, 3, seed=seed) for seed in (1, 2)]
    given = {} if largest is None else {"largest": largest}
    (motion,) = ClipMotion.execute(forward=pictures[0], backward=pictures[1], **given).args
    assert_same(motion, motion_of(*(read_flow(flow, "flow", largest or 32.0) for flow in pictures)))


@pytest.mark.parametrize("images", [None, draw(4, 24, 40, 3)])
@pytest.mark.parametrize(("given", "missing"), [("forward", "backward"), ("backward", "forward")])
def test_one_flow_alone_is_refused(images: Tensor | None, given: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing} is not connected. Connect the flows of both directions"):
        ClipMotion.execute(images, **{given: draw(3, 2, 24, 40)})


def test_nothing_to_take_the_motion_from_is_refused() -> None:
    with pytest.raises(ValueError, match="Neither images nor forward and backward are connected. Connect the frames"):
        ClipMotion.execute()
