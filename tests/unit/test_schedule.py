"""The noise levels of a DDIM walk, against diffusers and in closed form."""

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import example, given
from hypothesis import strategies as st

from consistent_video.modules.schedule import ddim_sigmas, ddim_timesteps, sigma_to_alpha_bar


def make_scheduler() -> DDIMScheduler:
    """The scheduler that ships with Stable Diffusion 1.x."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )


def make_table() -> torch.Tensor:
    """Sigma of each training step of Stable Diffusion 1.x, from its betas one by one."""
    table, alpha_bar = [], 1.0
    for t in range(1000):
        beta = (0.00085**0.5 + t / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2
        alpha_bar *= 1 - beta
        table.append(((1 - alpha_bar) / alpha_bar) ** 0.5)
    return torch.tensor(table, dtype=torch.float64)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500])
def test_timesteps_are_those_of_diffusers_where_they_divide(num_steps: int) -> None:
    scheduler = make_scheduler()
    scheduler.set_timesteps(num_steps)
    assert ddim_timesteps(num_steps).tolist() == sorted(scheduler.timesteps.tolist())


@given(num_steps=st.integers(1, 999))
@example(num_steps=501)
def test_every_number_of_steps_ends_one_stride_from_full_noise(num_steps: int) -> None:
    timesteps = ddim_timesteps(num_steps)
    assert not timesteps.is_floating_point() and len(timesteps) == num_steps
    assert timesteps[0] == 1 and 1000 - 1000 / num_steps <= timesteps[-1] <= 999
    strides = set((timesteps[1:] - timesteps[:-1]).tolist())
    assert strides <= {1000 // num_steps, 1000 // num_steps + 1}


def test_fifty_steps_visit_1_21_to_981() -> None:
    assert ddim_timesteps(50).tolist() == list(range(1, 982, 20))


@pytest.mark.parametrize("num_steps", [-3, 0, 1000, 2000])
def test_impossible_numbers_of_steps_are_refused_by_name(num_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"steps must be between 1 and 999, got {num_steps}\."):
        ddim_timesteps(num_steps)


def test_the_limit_follows_the_number_of_training_steps() -> None:
    with pytest.raises(ValueError, match="between 1 and 36, got 37"):
        ddim_sigmas(torch.arange(1, 38) / 10, 37)


@pytest.mark.parametrize("num_steps", [1, 8, 50])
def test_sigmas_descend_to_zero_over_the_timesteps(num_steps: int) -> None:
    table = make_table()
    sigmas = ddim_sigmas(table, num_steps)
    assert sigmas.shape == (num_steps + 1,) and sigmas.dtype == table.dtype and sigmas[-1] == 0
    assert (sigmas[:-1] > sigmas[1:]).all()
    ratio = 1000 // num_steps
    assert sigmas[:-1].tolist() == [table[1 + i * ratio].item() for i in reversed(range(num_steps))]


def test_alpha_bar_of_a_sigma_is_that_of_the_training_step() -> None:
    alpha_bar = sigma_to_alpha_bar(make_table())
    torch.testing.assert_close(alpha_bar.float(), make_scheduler().alphas_cumprod, rtol=1e-5, atol=0)
    assert make_table()[-1] == pytest.approx(14.6146, abs=1e-4)
    assert sigma_to_alpha_bar(torch.tensor(0.0)) == 1 and sigma_to_alpha_bar(torch.tensor(3.0)) == pytest.approx(0.1)
