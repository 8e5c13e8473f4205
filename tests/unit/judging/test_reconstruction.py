"""How well a clip comes back, against torchmetrics and by hand."""

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from consistent_video.modules.judging.reconstruction import Reconstruction, drift, psnr, remedies, report_text, ssim


def draw_frames(seed: int = 0) -> Tensor:
    return torch.rand(3, 3, 20, 26, generator=torch.Generator().manual_seed(seed))


def spoil(frames: Tensor) -> Tensor:
    """Add noise to frames, to each more than to the one before."""
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(9))
    return (frames + noise * torch.tensor([0.01, 0.05, 0.2]).view(-1, 1, 1, 1)).clamp(0, 1)


def test_psnr_is_that_of_torchmetrics() -> None:
    frames, spoilt = draw_frames(), spoil(draw_frames())
    expected = [
        peak_signal_noise_ratio(mine, other, data_range=1.0).item() for mine, other in zip(spoilt, frames, strict=True)
    ]
    assert psnr(spoilt, frames) == pytest.approx(expected, abs=1e-3)
    assert expected[0] > 35 > 20 > expected[2]


def test_equal_frames_have_a_hundred_decibels() -> None:
    assert psnr(draw_frames(), draw_frames()) == pytest.approx([100] * 3)


def test_ssim_is_that_of_torchmetrics() -> None:
    frames, spoilt = draw_frames(), spoil(draw_frames())
    _, maps = structural_similarity_index_measure(
        spoilt, frames, kernel_size=11, data_range=1.0, return_full_image=True
    )
    expected = maps.mean(dim=(1, 2, 3)).tolist()
    assert ssim(spoilt, frames) == pytest.approx(expected, abs=2e-5)
    assert expected[0] > 0.99 > 0.9 > expected[2]
    assert ssim(frames, frames) == pytest.approx([1] * 3)


def test_drift_is_relative_to_the_inversions_states() -> None:
    expected = torch.zeros(2, 3, 1, 1, 2)
    expected[0, 0, 0, 0] = torch.tensor([3.0, 4.0])
    expected[1, 2, 0, 0] = torch.tensor([0.0, 10.0])
    states = expected.clone()
    states[0, 1, 0, 0, 0] += 1
    states[1, 0] += 6 / 2**0.5
    assert drift(states, expected) == pytest.approx([1 / 5, 6 / 10])
    assert drift(expected, expected) == [0, 0]


PLAIN, CFG, PROMPT = "set direction of the inversion to none", "set cfg to 1: the inversion", "use the prompt"
NEGATIVE = "for cfg 7.5 connect the source prompt as negative"
OWN, BOTH = "set cfg to 3 and connect its negative: ", "set cfg to 1 in the inversion and here"
ONCE_MORE, MORE_STEPS = "set refinements of the inversion to 2", "raise steps of the inversion from 50 to 100"


@pytest.mark.parametrize(
    ("worst", "cfg", "inverted", "is_plain", "refinements", "steps", "expected"),
    [
        (34.9, 1.0, 1.0, True, 2, 100, [PROMPT]),
        (34.9, 7.5, 1.0, True, 2, 100, [CFG, NEGATIVE, PROMPT]),
        (34.9, 1.0, 3.0, True, 2, 100, [OWN, PROMPT]),
        (34.9, 3.0, 3.0, True, 2, 100, [BOTH, PROMPT]),
        (20.0, 1.0, 1.0, False, 2, 100, [PLAIN, PROMPT]),
        (20.0, 1.0, 1.0, True, 0, 100, [ONCE_MORE, PROMPT]),
        (20.0, 1.0, 1.0, True, 1, 50, [MORE_STEPS, PROMPT]),
        (20.0, 7.5, 1.0, False, 0, 50, [PLAIN, CFG, NEGATIVE, ONCE_MORE, MORE_STEPS, PROMPT]),
        (35.0, 7.5, 1.0, False, 0, 50, []),
        (48.0, 1.0, 1.0, True, 0, 10, []),
    ],
)
def test_what_would_help_is_named_where_it_is_needed(
    worst: float, cfg: float, inverted: float, is_plain: bool, refinements: int, steps: int, expected: list[str]
) -> None:
    found = Reconstruction([40.0, worst, 50.0], [0.9, 0.8, 0.95], [0.1])
    advice = remedies(found, cfg, inverted, is_plain, refinements, steps)
    assert len(advice) == len(expected)
    assert all(given.startswith(begin) for given, begin in zip(advice, expected, strict=True))


def test_other_attention_on_the_way_back_is_the_first_to_change() -> None:
    found = Reconstruction([30.0], [0.9], [0.1])
    first, *others = remedies(found, 1.0, 1.0, True, 2, 100, "STEM")
    assert first.startswith("set method of the inversion to DDIM") and others == remedies(found, 1.0, 1.0, True, 2, 100)
    assert remedies(found, 1.0, 1.0, True, 0, 100, "DDIM", "midpoint") == others, "it has no refinements"


def test_the_report_names_the_worst_frame_the_drift_and_what_helps() -> None:
    found = Reconstruction([31.0, 25.25, 33.75], [0.9, 0.8123, 0.95], [0.02, 0.31, 0.123])
    assert found.worst == 1
    lines = report_text(found, ["set cfg to 1", "use the prompt"]).split("\n")
    assert "30.0 dB on average, 25.2 dB in the worst frame (1), SSIM 0.812 at least" in lines[0]
    assert "12.3% off those of the inversion at the end, 31.0% at most" in lines[1]
    assert lines[2:] == ["- set cfg to 1.", "- use the prompt."]
    assert len(report_text(found, []).split("\n")) == 2
