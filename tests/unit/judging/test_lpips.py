"""LPIPS with weights from a file, against torchmetrics' own with the same weights; nothing is downloaded."""

import sys

import pytest
import torch
import torchvision
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

from consistent_video.modules.judging.lpips import load_lpips


@pytest.mark.parametrize(("name", "make"), [("alex", torchvision.models.alexnet), ("vgg", torchvision.models.vgg16)])
def test_the_distance_is_torchmetrics_own(name: str, make, monkeypatch) -> None:
    torch.manual_seed(0)
    network = make(weights=None)
    monkeypatch.setattr(torchvision.models, {"alex": "alexnet", "vgg": "vgg16"}[name], lambda weights: network)
    frames, others = torch.rand(2, 3, 3, 64, 72)
    expected = learned_perceptual_image_patch_similarity(frames, others, name, reduction="none", normalize=True)
    monkeypatch.undo()
    found = load_lpips(network.state_dict(), "weights.pth")(frames, others)
    torch.testing.assert_close(found, expected)
    assert found.shape == (3,) and (found > 0).all()
    assert not load_lpips(network.state_dict(), "weights.pth")(frames, frames).any()


def test_other_weights_are_refused_by_name() -> None:
    weights = torchvision.models.squeezenet1_1(weights=None).state_dict()
    with pytest.raises(ValueError, match="squeeze.pth holds no weights"):
        load_lpips(weights, "squeeze.pth")


def test_without_torchmetrics_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image.lpips", None)
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        load_lpips({}, "weights.pth")
