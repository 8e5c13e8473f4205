"""What sampling and inversion tell on their way, and what steers them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from consistent_video.modules.diffusion.ddim import (
    InversionOptions,
    SamplingOptions,
    sample_ddim,
    sample_ddim_inversion,
)
from consistent_video.modules.diffusion.schedule import ddim_sigmas

from .denoisers import TABLE, FakeModel, FakeUNet, draw


def test_sampling_calls_back_before_each_step() -> None:
    sigmas, start = ddim_sigmas(TABLE, 5, set_alpha_to_one=True), draw(2, 3, 4, 5) * 10
    model, calls = FakeModel(FakeUNet()), list[dict]()
    end = sample_ddim(model, start, sigmas, callback=calls.append)
    assert [call["i"] for call in calls] == [0, 1, 2, 3, 4]
    assert [call["sigma"].item() for call in calls] == sigmas[:-1].tolist()
    assert [call["sigma_hat"].item() for call in calls] == sigmas[:-1].tolist()
    assert torch.equal(calls[0]["x"], start)
    for call in calls:
        torch.testing.assert_close(call["denoised"], model(call["x"], call["sigma"].expand(2)))
    torch.testing.assert_close(end, calls[-1]["denoised"])  # the last sigma is 0


def test_inversion_reports_the_noise_of_each_step() -> None:
    sigmas, clean = ddim_sigmas(TABLE, 5).flip(0), draw(2, 3, 4, 5)
    calls, noises = list[dict](), list[tuple[int, Tensor]]()
    end = sample_ddim_inversion(
        FakeModel(FakeUNet()),
        clean,
        sigmas,
        callback=calls.append,
        options=InversionOptions(on_eps=lambda i, x, eps: (noises.append((i, eps)), eps)[1]),
    )
    assert [call["i"] for call in calls] == [i for i, _ in noises] == [0, 1, 2, 3, 4]
    assert [call["sigma"].item() for call in calls] == sigmas[:-1].tolist()
    expected = clean.clone()
    for i, (call, (_, eps)) in enumerate(zip(calls, noises, strict=True)):
        torch.testing.assert_close(call["x"], expected)
        torch.testing.assert_close(call["denoised"] + sigmas[i] * eps, call["x"])
        expected += (sigmas[i + 1] - sigmas[i]) * eps
    torch.testing.assert_close(end, expected)


@pytest.mark.parametrize("sample", [sample_ddim, sample_ddim_inversion])
def test_extra_arguments_reach_every_call_and_no_graph_is_kept(sample: Callable[..., Tensor]) -> None:
    sigmas = ddim_sigmas(TABLE, 3) if sample is sample_ddim else ddim_sigmas(TABLE, 3).flip(0)
    scale, given = torch.ones((), requires_grad=True, dtype=torch.float64), list[str]()

    def model(x: Tensor, sigma: Tensor, *, prompt: str) -> Tensor:
        given.append(prompt)
        return x * scale * 0.5

    end = sample(model, draw(1, 3, 4, 5), sigmas, {"prompt": "a cat"}, disable=True)
    assert given == ["a cat"] * 3 and not end.requires_grad


def test_hooks_come_in_order_and_what_they_return_is_gone_on_with() -> None:
    sigmas, start, seen = ddim_sigmas(TABLE, 3), 10 * draw(2, 3, 5, 4), list[tuple]()
    inner = FakeModel(FakeUNet())

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(("model", x, inner(x, sigma)))
        return seen[-1][2]

    def on_eps(step: int, x: Tensor, eps: Tensor) -> Tensor:
        seen.append(("eps", step, x, eps))
        return 0.5 * eps

    def on_state(level: int, x: Tensor) -> Tensor:
        seen.append(("state", level, x))
        return x + 1

    def callback(state: dict) -> None:
        seen.append(("callback", state["i"], state["x"], state["denoised"]))

    end = sample_ddim(model, start, sigmas, callback=callback, options=SamplingOptions(on_eps, on_state))
    assert [entry[0] for entry in seen] == ["model", "eps", "callback", "state"] * 3
    x = start
    for i in range(3):
        (_, given, denoised), (_, step, at, eps), (_, called, shown, predicted), (_, level, reached) = seen[
            4 * i : 4 * i + 4
        ]
        assert (step, called, level) == (i, i, i + 1)
        for state in (given, at, shown):
            torch.testing.assert_close(state, x)
        torch.testing.assert_close(eps, (x - denoised) / sigmas[i])
        torch.testing.assert_close(predicted, x - sigmas[i] * 0.5 * eps)
        torch.testing.assert_close(reached, x + (sigmas[i + 1] - sigmas[i]) * 0.5 * eps)
        x = reached + 1
    torch.testing.assert_close(end, x)


def test_a_noise_hook_steers_the_inversion() -> None:
    sigmas = ddim_sigmas(TABLE, 6, set_alpha_to_one=True).flip(0)
    clean, fixed = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=8)
    options = InversionOptions(refinements=1, on_eps=lambda i, x, eps: fixed)
    end = sample_ddim_inversion(FakeModel(FakeUNet()), clean, sigmas, options=options)
    torch.testing.assert_close(end, clean + sigmas[-1] * fixed)
